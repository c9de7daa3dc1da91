"""Train a classifier on few images with every use of a pool and its control, and write a row a trial: `python benchmarks/uses.py OUT.parquet`.

A first screening, on validation images only: which uses (see nbs/cnn/07_uses.ipynb) are worth a campaign? A trial is one
classifier with one seed. One GAN, trained on the same few images, makes the pool of all trials, and one net, trained on
them with another seed, is the teacher. Robust accuracy is that under PGD. Trials that OUT already holds are skipped.
nbs/results/06_uses.ipynb reads nbs/results/records/uses_faces.parquet, of `--steps 900 --seeds 6 --images 30000`.
"""
from __future__ import annotations
import argparse, time
from dataclasses import replace
from pathlib import Path

import pandas as pd
from fastprogress.fastprogress import progress_bar

from synthrob.cnn.attacks import Predictor, attack
from synthrob.cnn.learner import cnn_learner, evaluate, recipe
from synthrob.cnn.models import StrongNet
from synthrob.cnn.uses import AdversarialTraining, SyntheticFirst, soft_labels
from synthrob.core.basics import replacing
from synthrob.core.stages import device_name, versions
from synthrob.data.core import prepare
from synthrob.data.splits import splits
from synthrob.gan.learner import gan_learner
from synthrob.gan.trainer import gan_recipe
from synthrob.split.mixture import mix, nested_order

# name -> the parameters of the trial, and the name of its control
TRIALS = {
    'real': (dict(ratio=0), None), 'mixed': ({}, 'real'), 'pretrain': (dict(schedule='pretrain'), 'real'),
    'weight 0.3': (dict(synthetic_weight=.3), 'real'), 'oversample': (dict(treatment='oversample'), 'real'),
    'soft, real': (dict(ratio=0, labels='soft'), 'real'), 'soft, mixed': (dict(labels='soft'), 'soft, real'),
    'soft, pretrain': (dict(labels='soft', schedule='pretrain'), 'soft, real'),
    'adversarial, real': (dict(ratio=0, training='adversarial'), 'real'),
    'adversarial, mixed': (dict(training='adversarial'), 'adversarial, real'),
    'adversarial, noise': (dict(training='adversarial', treatment='noise'), 'adversarial, real'),
    'epochs, oversample': (dict(equal='epochs', treatment='oversample'), 'real'),
    'epochs, mixed': (dict(equal='epochs'), 'epochs, oversample')}

class Narrow(StrongNet):
    "A strong net of a quarter of the width"
    def __init__(self, size, channels, n_classes): super().__init__(size, channels, n_classes, nf=16)

def fit(data, a, seed, cbs=(), longer=1.):
    "A classifier of `data`; `longer`: its steps over those of ratio 0"
    r = recipe('strong', net=Narrow) if a.cnn == 'narrow' else recipe(a.cnn)
    learn = cnn_learner(data, data.subset(slice(8)), replace(r, epochs=1, min_steps=a.steps), seed=seed, device=a.device)
    epochs = round(learn.recipe.epochs*longer)
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe(epochs, cbs=list(cbs))
    return learn, epochs*len(learn.dls.train)

def trial(a, seed, real, pool, valid, teacher, ratio=None, treatment='synthetic', schedule='mixed', synthetic_weight=1., labels='hard',
          equal='steps', training='standard'):
    "A row of plain values"
    cpu = time.process_time()
    data = mix(real, pool, a.ratio if ratio is None else ratio, 'add', treatment=treatment, synthetic_weight=synthetic_weight)
    if labels == 'soft': data = soft_labels(data, teacher, a.temperature, flip=True)
    cbs = [SyntheticFirst()]*(schedule == 'pretrain') + [AdversarialTraining(a.eps)]*(training == 'adversarial')
    learn, steps = fit(data, a, seed, cbs, len(data)/len(real) if equal == 'epochs' else 1.)
    cost = time.process_time() - cpu
    robust = attack(Predictor(learn).eval(), valid.x, valid.y, 'pgd', a.eps, steps=10).accuracy
    return dict(accuracy=evaluate(learn, valid).accuracy, robust_accuracy=robust, steps=steps, n_real=len(real), n=len(data),
                n_valid=len(valid), cpu_seconds=cost)

def make_pool(a, real):
    "Twice as many synthetic items as real ones"
    learn = gan_learner(real, gan_recipe('default', nf=a.width, bs=32), device=a.device)
    with learn.no_bar(), learn.no_logging(): learn.fit_gan(a.images)
    return learn.sample_pool(2*int(real.y.bincount().max()), progress=False)

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path, help='a parquet file, written after each trial')
    p.add_argument('--data', default='faces', help="of synthrob.data.core.prepare: 'faces', 'fer2013', 'folder' ...")
    p.add_argument('--path', help='of the data')
    p.add_argument('--size', type=int, default=32, help='pixels')
    p.add_argument('--n', type=int, default=300, help='real training images that are used')
    p.add_argument('--ratio', type=float, default=.5, help='share of synthetic images, which are added')
    p.add_argument('--images', type=int, default=10_000, help='real images that the discriminator sees')
    p.add_argument('--width', type=int, default=16, help='of the nets of the GAN')
    p.add_argument('--cnn', default='poster', help="a recipe, or 'narrow': a strong net of a quarter of the width")
    p.add_argument('--steps', type=int, default=300, help='of the classifiers')
    p.add_argument('--temperature', type=float, default=2., help='of the teacher')
    p.add_argument('--eps', type=float, default=3/255, help='of the attacks')
    p.add_argument('--seeds', type=int, default=4, help='trials of each kind')
    p.add_argument('--only', nargs='*', metavar='NAME', help='trials; all if left out')
    p.add_argument('--root', default='runs', help='where the prepared images are kept')
    p.add_argument('--device', help="'cpu' or 'cuda'; if left out, CUDA if there is one")
    a = p.parse_args(args)
    images = prepare(a.data, a.path, size=a.size, root=a.root)
    s = splits(images)
    real, valid = images.subset(s.train), images.subset(s.valid)
    real = real.subset(nested_order(real.y, real.c)[:a.n])
    rows = pd.read_parquet(a.out).to_dict('records') if a.out.exists() else []
    have, own = {(o['name'], o['seed']) for o in rows}, {k: str(v) for k, v in vars(a).items() if k in ('data', 'cnn', 'ratio', 'temperature', 'eps', 'images')}
    pool, teacher = make_pool(a, real), fit(real, a, 1000)[0].model
    for seed in range(a.seeds):
        todo = [k for k in TRIALS if (k, seed) not in have and (not a.only or k in a.only)]
        for k in progress_bar(todo):
            how, control = TRIALS[k]
            rows.append(dict(name=k, control=control, seed=seed, **own, **trial(a, seed, real, pool, valid, teacher, **how),
                             device=device_name(a.device), torch=versions()['torch']))
            with replacing(a.out) as f: pd.DataFrame(rows).to_parquet(f)
    return pd.DataFrame(rows)

if __name__ == '__main__': main()
