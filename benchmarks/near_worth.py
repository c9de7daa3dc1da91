"""What near copies of test images are worth: `python benchmarks/near_worth.py OUT.parquet --cnn poster --path fer2013.zip`.

A net trained without the near copies of test images loses accuracy for two reasons: the copies gave answers away, and there are fewer
images. So the net that keeps the copies gives up as many other images of the same classes; both train for equally many steps, from
the same seed. The copied test images may be easier or harder than others: the last row is the worth on these less that on the others.
Finished trainings are found again. nbs/results/04_near_copies.ipynb reads nbs/results/records/near_worth_*.parquet.
"""
from __future__ import annotations
import argparse
from pathlib import Path

import numpy as np, pandas as pd, torch

from synthrob.cnn.learner import cnn_learner, evaluate
from synthrob.core.basics import BadInput, generator, write_parquet
from synthrob.core.stages import CHECKPOINT, Stage
from synthrob.data.core import fer2013_path
from synthrob.split.params import check_params
from synthrob.split.run import SplitRun, evaluation_from, predictions_frame
from synthrob.sweep.stats import decide, image_se

def _arms(run):
    "Indices of the training images with the near copies of test images and without; which test images are copied"
    t, y = run.splits.table, run.images.y.numpy()
    if 'near' not in t: raise BadInput("copies='near' is needed to know the copies: near copies were not looked for.")
    copies = np.flatnonzero((t.removed == 'near') & ~t.flat & t.near.isin(t.near[t.part == 'test']))
    if not len(copies):
        raise BadInput("No test image has a near copy in the training part: there is nothing to compare.")
    if run.p.real_share < 1: raise BadInput("real_share leaves out images, copies among them: leave it at 1.")
    without, rest = run.splits.train.numpy(), []
    for c, n in enumerate(np.bincount(y[copies], minlength=run.images.c)):
        own = without[y[without] == c]
        if n > len(own):
            raise BadInput(f"Class {run.images.vocab[c]!r} has {n} copies of test images and {len(own)} other training "
                           "images, too few to stand in for the copies.")
        rng = generator('as many others', run.p.split_seed, c)
        rest.append(own[torch.randperm(len(own), generator=rng).numpy()[n:]])
    test = t.iloc[run.splits.test.numpy()]
    labels = pd.Series(y[copies]).groupby(t.near.to_numpy()[copies]).agg(set)
    found = [labels.get(g, set()) for g in test.near]
    same = np.array([k in o for k, o in zip(y[run.splits.test], found)])
    return np.sort(np.concatenate([copies, *rest])), without, np.array([len(o) > 0 for o in found]), same

def _trained(run, arm, idx, seed):
    "The finished stage of a net trained on the images at `idx`"
    r = run.recipe
    def work(stage):
        data, test = run.images.subset(torch.from_numpy(idx)), run.part('test')
        learn = cnn_learner(data, run.part('valid'), r, seed=seed, device=run.p.device)
        learn.fit_recipe(path=stage.path/CHECKPOINT)
        ev = evaluate(learn, test)
        t = predictions_frame(dict(test=(ev, run.splits.test.tolist(), test.names)))
        write_parquet(stage.file('predictions.parquet'), t)
        return dict(accuracy=ev.accuracy, n_train=len(idx), epochs=learn.recipe.epochs, bs=learn.recipe.bs)
    own = dict(arm=arm, recipe=r.params, seed=seed)
    return Stage('copies_worth', own, work, dict(parts=run.stages['parts']), 1, run.p.out, run.p.device).make()

def copies_worth(
    run:SplitRun,   # with `copies='near'`: its data, classifier and split
    seeds:int=3     # classifiers of each kind, at least 2
) -> pd.DataFrame: # row per set of test images: n, accuracy with and without copies, worth, low, high (fractions of 1)
    "Train with and without the near copies of test images, at equal size, and compare accuracies on copied and others"
    run.make('parts')
    *arms, copied, same = _arms(run)
    right = []
    for s in range(seeds):
        made = [_trained(run, arm, idx, s) for arm, idx in zip(('with', 'without'), arms)]
        evs = [evaluation_from(pd.read_parquet(o.file('predictions.parquet'))) for o in made]
        right.append([(o.pred == o.y).numpy() for o in evs])
    right = np.array(right, float)                                             # (seeds,2,n)
    x, rows = right[:,0] - right[:,1], {}
    for name, m in {'copied': copied, 'copied, same label': copied & same, 'copied, other label': copied & ~same,
                    'not copied': ~copied, 'all': copied | True}.items():
        if m.sum() > 1: rows[name] = _row(x[:,m], m.sum(), *right[:,:,m].mean((0, 2)))
    weight = np.where(copied, len(x[0])/copied.sum(), -len(x[0])/max(1, (~copied).sum()))
    rows['copied less not copied'] = _row(x*weight, len(x[0]), np.nan, np.nan)
    return pd.DataFrame(rows, ['n', 'with_copies', 'without', 'worth', 'low', 'high']).T.astype({'n': int})

def _row(x, n, *accuracies):
    top = max(1, abs(x).max())
    x = (x/top)[None]                                                          # (1,seeds,n)
    d = decide(x.mean(-1), image_se=image_se(x)).iloc[0]
    return n, *accuracies, top*x.mean(), top*d.low, top*d.high

def main(args=None):
    "Write the table and return it"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path, help='a parquet file')
    p.add_argument('--cnn', default='poster', help='a recipe')
    p.add_argument('--epochs', type=int, default=8)
    p.add_argument('--seeds', type=int, default=3, help='classifiers of each kind, at least 2')
    p.add_argument('--data', default='fer2013', help="of synthrob.data.core.prepare: 'fer2013', 'folder' ...")
    p.add_argument('--path', default=fer2013_path(), help='of the data')
    p.add_argument('--size', type=int, default=48, help='pixels')
    p.add_argument('--root', default='runs', help='folder of the stages')
    a = p.parse_args(args)
    given = dict(data=a.data, path=a.path, size=a.size, cnn=a.cnn, cnn_epochs=a.epochs, ratio=0, robustness='none', out=a.root)
    t = copies_worth(SplitRun(check_params(given)), a.seeds)
    write_parquet(a.out, t)
    return t

if __name__ == '__main__': print(main().round(3))
