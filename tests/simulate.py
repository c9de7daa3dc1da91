"Experiments whose truth is known, for tests of error rates"
import numpy as np

def simulated(n_sim, k, effect=0., sd=.014, shape='normal', seed=0):
    "Paired differences (n_sim,k), fractions of 1; the shapes are explained in nbs/sweep/05_stats.ipynb"
    rng, size = np.random.default_rng(seed), (n_sim, k)
    if shape == 'normal': z = rng.normal(size=size)
    elif shape == 'heavy': z = rng.standard_t(3, size=size)/np.sqrt(3)
    elif shape == 'skewed': z = (4 - rng.gamma(4, size=size))/2
    elif shape == 'lopsided': z = 1 - rng.exponential(size=size)
    elif shape == 'failures':
        arm, base = rng.normal(size=(2, *size)) - 5*(rng.random((2, *size)) < .05)
        z = (arm - base)/np.sqrt(2*(1 + 25*.05*.95))
    elif shape == 'counts':
        p = np.array([.2, .4, .6, .8, .95])
        runs = p + effect*np.array([0, 1])[:, None, None, None] + rng.normal(0, .005, (2, *size, 1))
        arm, base = rng.binomial([624, 624, 623, 623, 624], runs.clip(0, 1)).sum(-1)[::-1]
        return (arm - base)/3118
    return effect + sd*z
