"Experiments whose truth is known, for tests of error rates, and runs with planted effects"
from __future__ import annotations
import math
from dataclasses import asdict
from itertools import product
import numpy as np, pandas as pd
from scipy.special import ndtr, ndtri
from synthrob.cnn.learner import Evaluation
from synthrob.cnn.robustness import Robustness, robustness_levels
from synthrob.core.basics import hash_of, write_json, write_parquet
from synthrob.core.stages import Stage, versions
from synthrob.sweep.results import SEEDS

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

# --- runs ---

def _normal(*keys): return np.random.default_rng(int(hash_of(keys), 16)).normal      # one stream per `keys`

def _write_record(stage, seconds, **record):
    "Write params.json and record.json of a simulated stage; return the stage"
    when = '2026-01-01T12:00:00+00:00'
    write_json(stage.file('params.json'), stage.spec)
    write_json(stage.file('record.json'), dict(
        kind=stage.kind, hash=stage.hash, **stage.spec, versions=versions(), device='none (simulated)', started=when,
        finished=when, resumed=False, seconds=seconds, simulated=True) | record)
    return stage

def _simulate_evaluation(given, effect, vocab, hard):
    "The simulated `Evaluation` on images of difficulty `hard` (n,)"
    n, k = len(hard), len(vocab)
    y, run = np.arange(n) % k, [given[o] for o in ('ratio', 'how', 'classes', 'treatment', 'cnn', *SEEDS) if o in given]
    p = dict(poster=.55, strong=.7).get(given['cnn'], .6) + .012*_normal('cnn', given['cnn_seed'], given['cnn'])()
    if given['ratio'] and given['treatment'] == 'synthetic': p += .004*_normal('gan', given['gan_seed'])()
    p += .003*_normal('run', run)()
    if given['ratio']: p = p + np.broadcast_to(effect(given), k)[y]
    correct = .85*hard + math.sqrt(1 - .85**2)*_normal('images', run, hard[:2].tolist())(size=n) < ndtri(p)
    pred = np.where(correct, y, (y + 1 + np.arange(n)//k % (k - 1)) % k)
    conf = (.95 - .35*ndtr(hard))[:, None]
    return Evaluation(np.where(np.arange(k) == pred[:, None], conf, (1 - conf)/(k - 1)), y, vocab)

def _simulate_robustness(root, split, given, test, effect):
    "Write a simulated `runs/robustness/<hash>/`, where accuracy falls with severity from that of the run"
    k, lv, rows = len(test['vocab']), robustness_levels['fast'], []
    n, recall = min(lv.n, test['n']), {f'recall_{c}': v['recall'] for c, v in test['per_class'].items()}
    for (i, name), s in product(enumerate(lv.corruptions), lv.severities):
        hit, shift = (.3 + .05*(i % 5))*s/5, .01*_normal('corruption', split.hash, name, s)()
        shift += effect(given, name) if given['ratio'] else 0
        fall = lambda a: float(np.clip(1/k + (a - 1/k)*(1 - hit) + shift, 0, 1))
        rows.append(dict(corruption=name, group='common', severity=s, n=n, accuracy=fall(test['accuracy']),
                         ece=.05 + hit/4, ece_calibrated=.02 + hit/4, **{c: fall(v) for c, v in recall.items()}))
    attacks = [dict(attack=name, norm=norm, eps=e, steps=steps, n=min(lv.n_attack, n),
                    accuracy=test['accuracy']*math.exp(-255*e))
               for name, norm, steps, radii in lv.attacks for e in (0., *radii)]
    clean = dict(n=n, accuracy=test['accuracy'], ece=test['ece'], temperature=1.3, ece_calibrated=.02, **recall)
    stage = Stage('robustness', dict(level=asdict(lv)), None, dict(split=split), out=root)
    r = Robustness(pd.DataFrame(rows), pd.DataFrame(attacks), clean, pd.DataFrame(dict(index=range(n))), test['vocab'],
                   dict(level=dict(name='fast', **asdict(lv))))
    r.save(stage.path)
    _write_record(stage, 9., **r.to_dict())

def simulate_runs(root,                           # folder to write to, as `runs`
                  effect=lambda given: 0.,        # gain in accuracy, scalar or per class, given a run's parameters
                  robust_effect=lambda given, corruption: 0., # additional gain under a corruption
                  ratios=(0, .1, .2, .3, .4, .5), # shares of synthetic images
                  hows=('replace', 'add'),        # see `MixParams.how`
                  treatments=('synthetic',),      # and the controls 'oversample', 'class_weights'
                  classes=('prior',),             # and 'balance'
                  cnns=('poster',),               # and 'strong'
                  gan_seeds=(0,),                 # seeds of the GAN
                  cnn_seeds=range(6),             # seeds of the classifier
                  vocab=('fear', 'angry', 'happy', 'sad', 'neutral'), # class names
                  n=1000,                         # test images, and as many validation images
                  folds=1,                        # of a cross-validation, each with `n` test images of its own
                  **more                          # further parameters of all runs, such as `margin` or `real_share`
                 ) -> int:                        # number of runs
    "Write simulated records, predictions and tables in the form of real runs; nothing is trained"
    vocab, n_runs = list(vocab), 0
    hard = {(f, part): _normal('difficulty', part, n, *[f]*bool(f))(size=n)
            for f in range(folds) for part in ('valid', 'test')}
    common = dict(data='faces', size=32, real_share=1., cnn_epochs=20, split_seed=42, gan_arch='default',
                  gan_images=1000, gan_width=32, margin=.02) | more
    images = _write_record(Stage('data', dict(n=n, vocab=vocab), out=root), 1., content=hash_of(('images', n, vocab)))
    parts = _write_record(Stage('parts', {}, None, dict(data=images), out=root), 1.)
    write_parquet(parts.file('parts.parquet'), pd.DataFrame(dict(part=['test']*n)))
    arms = [dict(ratio=0, how='replace', classes='prior', treatment='synthetic')]*(0 in ratios)
    arms += [dict(ratio=r, how=h, classes=c, treatment=t) for r, h, t, c in product(ratios, hows, treatments, classes)
             if r and not (r == 1 and (h == 'add' or t != 'synthetic'))]
    gans = {g: _write_record(Stage('gan', dict(gan_seed=g), out=root), 100. + g) for g in gan_seeds}
    pools = {g: _write_record(Stage('pool', {}, None, dict(gan=gan), out=root), 2.) for g, gan in gans.items()}
    for cnn, arm in product(cnns, arms):
        made = arm['treatment'] == 'synthetic' and arm['ratio'] > 0
        for f, g, s in product(range(folds), gan_seeds if made else (0,), cnn_seeds):
            given = common | arm | dict(cnn=cnn, gan_seed=g, cnn_seed=s)
            if folds > 1: given |= dict(folds=folds, fold=f)
            evs = {part: _simulate_evaluation(given, effect, vocab, hard[f, part]) for part in ('valid', 'test')}
            split = Stage('split', given, None, dict(train=parts, pool=pools[g] if made else None), out=root)
            write_parquet(split.file('predictions.parquet'), pd.concat(
                pd.DataFrame(dict(part=k, index=range(n), true=ev.y, predicted=ev.pred)) for k, ev in evs.items()))
            scores = {k: ev.to_dict() for k, ev in evs.items()}
            counts = {c: dict(real=round(given['real_share']*5*n/len(vocab))) for c in vocab}
            _write_record(split, 20., **scores, given=given, counts=counts)
            _simulate_robustness(root, split, given, scores['test'], robust_effect)
            n_runs += 1
    return n_runs
