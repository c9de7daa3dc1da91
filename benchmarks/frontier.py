"""Accuracy against processor time of classifiers on FER-2013: `python benchmarks/frontier.py OUT.parquet strong:10 poster:25`.

A trial is a recipe, its epochs and a seed: trained on the whole training part without exact and near copies (five classes, or `--vocab`), then
evaluated on validation and test part. Recipes are chosen by validation; the test figures are there to be reported. Trials that OUT
already holds are skipped. nbs/results/07_frontier.ipynb reads nbs/results/records/frontier.parquet.
"""
from __future__ import annotations
import time
from dataclasses import replace

from torch import nn

from synthrob.cnn.learner import cnn_learner, evaluate, recipe
from synthrob.cnn.models import StrongNet, _conv_bn, _ResBlock
from synthrob.data.loaders import Augment
from trials import run_trials

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
RECIPES = dict(strong=strong, wide=replace(strong, net=Wide), mixup=replace(strong, mix='mixup'),
               wide_mixup=replace(strong, net=Wide, mix='mixup'),
               adamw=replace(strong, opt='adamw', bs=128), poster=recipe('poster'), previous=replace(strong, net=Previous, bs=128, **earlier))

def trial(name, epochs, seed, parts, device=None):
    "A row of plain values"
    train, valid, test = parts.values()
    r = replace(RECIPES[name], epochs=int(epochs), min_steps=0)
    learn = cnn_learner(train, valid.subset(slice(64)), r, seed=seed, device=device)
    start, cpu = time.perf_counter(), time.process_time()
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe()
    cost = dict(seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - cpu)
    of = {k: evaluate(learn, d) for k, d in dict(train=train.subset(slice(0, len(train), 5)), valid=valid, test=test).items()}
    return dict({k: e.accuracy for k, e in of.items()}, valid_loss=float(of['valid'].top_losses()[0].mean()), n_train=len(train),
                n_valid=len(valid), n_test=len(test), parameters=sum(p.numel() for p in learn.model.parameters()), **cost)

if __name__ == '__main__': run_trials(f"{__doc__}\nRecipes: {', '.join(RECIPES)}.", ('name', 'epochs', 'seed'), trial)
