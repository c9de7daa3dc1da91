"""Accuracy against processor time of classifiers on FER-2013: `python benchmarks/frontier.py OUT.parquet strong:10 poster:25`.

A trial is a recipe, its epochs and a seed: trained on the whole training part without exact and near copies (five classes), then
evaluated on validation and test part. Recipes are chosen by validation; the test figures are there to be reported. Trials that OUT
already holds are skipped. nbs/results/07_frontier.ipynb reads nbs/results/records/frontier.parquet.
"""
from __future__ import annotations
import argparse, time
from dataclasses import replace
from pathlib import Path

import pandas as pd
from fastprogress.fastprogress import progress_bar
from torch import nn

from synthrob.cnn.learner import cnn_learner, evaluate, recipe
from synthrob.cnn.models import StrongNet, _conv_bn, _ResBlock
from synthrob.core.stages import device_name, versions
from synthrob.data.core import fer2013_path
from synthrob.data.loaders import Augment
from synthrob.split.params import check_params
from synthrob.split.run import SplitRun

class Previous(StrongNet):
    "The strong net of earlier editions: twice as wide, nothing but the stem at full resolution"
    def __init__(self, size, channels, n_classes, nf=64):
        super().__init__(size, channels, n_classes, nf)
        self.stem = nn.Sequential(_conv_bn(channels, nf//2), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(*(_ResBlock(nf*i//2, nf*i, 2) for i in (1, 2, 4)), _ResBlock(4*nf, 4*nf))

class Wide(StrongNet):
    "A strong net of 1.5 times the width"
    def __init__(self, size, channels, n_classes): super().__init__(size, channels, n_classes, nf=96)

strong = recipe('strong')
earlier = dict(opt='adamw', lr=3e-3, augment=Augment(erase=.25))
RECIPES = dict(strong=strong, wide=replace(strong, net=Wide), adamw=replace(strong, opt='adamw', bs=128), poster=recipe('poster'),
               previous=replace(strong, net=Previous, bs=128, **earlier))

def trial(name, epochs, seed, train, valid, test, device=None):
    "A row of plain values"
    r = replace(RECIPES[name], epochs=epochs, min_steps=0)
    learn = cnn_learner(train, valid.subset(slice(64)), r, seed=seed, device=device)
    start, cpu = time.perf_counter(), time.process_time()
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe()
    cost = dict(seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - cpu)
    of = {k: evaluate(learn, d) for k, d in dict(train=train.subset(slice(0, len(train), 5)), valid=valid, test=test).items()}
    return dict({k: e.accuracy for k, e in of.items()}, valid_loss=float(of['valid'].top_losses()[0].mean()), n_train=len(train),
                n_valid=len(valid), n_test=len(test), parameters=sum(p.numel() for p in learn.model.parameters()), **cost)

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path, help='a parquet file, written after each trial')
    p.add_argument('trials', nargs='+', metavar='NAME:EPOCHS', help=f"of {', '.join(RECIPES)}")
    p.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3])
    p.add_argument('--path', default=fer2013_path(), help='of FER-2013')
    p.add_argument('--root', default='runs', help='where the prepared images are kept')
    p.add_argument('--device', help="'cpu' or 'cuda'; if left out, CUDA if there is one")
    a = p.parse_args(args)
    run = SplitRun(check_params(dict(data='fer2013', path=a.path, out=a.root, ratio=0)))
    for stage in ('data', 'copies', 'parts'): run.make(stage)
    parts = [run.images.subset(i) for i in (run.splits.train, run.splits.valid, run.splits.test)]
    read = lambda: pd.read_parquet(a.out).to_dict('records') if a.out.exists() else []
    wanted = [(name, int(epochs), seed) for seed in a.seeds for name, epochs in (o.split(':') for o in a.trials)]
    for one in progress_bar(wanted):
        if one in {(o['name'], o['epochs'], o['seed']) for o in read()}: continue
        row = dict(zip(('name', 'epochs', 'seed'), one)) | trial(*one, *parts, a.device)
        pd.DataFrame([*read(), row | dict(device=device_name(a.device), torch=versions()['torch'])]).to_parquet(a.out)

if __name__ == '__main__': main()
