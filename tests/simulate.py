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

def cross_validated(n_sim, S, folds=5, n=100, noise=.1, gain=0., seed=0):
    """Differences (n_sim,folds,S) in accuracy of two nearest-mean classifiers on features of their own, by cross-validation

    Folds share training images as in reality. Without `gain` the two are alike by construction, so that the truth is zero.
    """
    rng, y, fold = np.random.default_rng(seed), np.resize([-1, 1], n), np.arange(n)//2 % folds
    x = rng.normal(size=(2, n_sim, n, 5)) + y[:, None]*np.array([.5, .5 + gain])[:, None, None, None]/np.sqrt(5)
    acc = np.empty((2, n_sim, folds, S))
    for f in range(folds):
        train, test = x[:, :, fold != f], x[:, :, fold == f]
        w = (train*y[fold != f, None]).mean(2, keepdims=True) + noise*rng.normal(size=(2, n_sim, S, 5))
        score = (test - train.mean(2, keepdims=True)) @ w.swapaxes(2, 3)
        acc[:, :, f] = ((score > 0) == (y[fold == f, None] > 0)).mean(2)
    return acc[1] - acc[0]
