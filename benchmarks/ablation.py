"""Train many GAN recipes on the same images, judge them alike, and write a row a trial: `python benchmarks/ablation.py OUT.parquet`.

"Hinge is better than Wasserstein" is mostly a sentence about two trainings and one seed. Here all recipes get the same
real images, the same number of images seen, the same batch size, several seeds and one judge: a classifier trained on
the real training part. Counts are images. What chooses is `cas`, the accuracy on real *validation* images of a classifier
trained on synthetic ones alone; the test part is not read. Trials that OUT already holds are skipped.
nbs/results/02_gans.ipynb reads nbs/results/records/gan_faces.parquet: these recipes, sizes and seeds, about an hour on one core.
"""
from __future__ import annotations
import argparse, copy, math, time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from fastprogress.fastprogress import progress_bar
from torch.utils.flop_counter import FlopCounterMode

from synthrob.cnn.learner import cnn_learner, recipe
from synthrob.core.basics import replacing
from synthrob.core.stages import device_name, versions
from synthrob.data.core import prepare
from synthrob.data.loaders import device_dls
from synthrob.data.splits import splits
from synthrob.gan.learner import gan_learner
from synthrob.gan.memorization import evaluate_pool
from synthrob.gan.pools import sample_pool
from synthrob.gan.trainer import gan_recipe

def recipes(width=16, bs=32):
    "One thing at a time is changed from the reference; the residual nets have learning rates of their own"
    change = lambda name, **changes: replace(gan_recipe(name), nf=width, nz=4*width, bs=bs, **changes)
    ref, r3gan = (partial(change, o, augment=None) for o in ('default', 'r3gan'))
    resnet = partial(change, 'sngan', augment=None, gamma=.1, lr=1e-3, lr_d=2e-3)
    return {
        'reference': ref(), 'r3gan': r3gan(), 'resnet, hinge, spectral norm': resnet(), 'augmentation': ref(augment='diff'),
        'nonsaturating': ref(loss='nonsaturating'), 'hinge': ref(loss='hinge'), 'least squares': ref(loss='leastsquares'),
        'wasserstein, gradient penalty': ref(loss='wasserstein', penalty='gp', gamma=10., lazy=1),
        'attention at 8 px': ref(attention=(8,)), 'adaptive augmentation': ref(augment='ada'), 'no penalty': ref(penalty=None),
        'gamma 0.1': ref(gamma=.1), 'learning rate 4e-4': ref(lr=4e-4), 'LeCam': ref(lecam=.3),
        'r3gan, attention at 8 px': r3gan(attention=(8,)),
        'resnet, hinge, spectral norm, attention at 8 px': resnet(attention=(8,)),
        'study': change('study'), 'study, one pair': change('study', per_class=False)}

def fit_classifier(images, a, n_real, seed=0):
    "A classifier trained on `images`, for as many steps as on `n_real` images"
    r = recipe('poster', epochs=a.epochs)
    learn = cnn_learner(device_dls(images, bs=r.bs, n_steps=max(1, n_real//r.bs), seed=seed, device=a.device), arch=r,
                        seed=seed)
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe()
    return learn

@torch.no_grad()
def cost_of(gan):
    "Parameters of both nets, and their multiply-adds for one sample"
    device, rows = next(gan.parameters()).device, {}
    y = torch.zeros(1, dtype=torch.long, device=device)
    for name, net, shape in (('G', gan.generator, (gan.params['nz'],)), ('D', gan.discriminator, gan.shape)):
        x = torch.zeros(1, *shape, device=device)
        with FlopCounterMode(display=False) as count: copy.deepcopy(net).eval()(x, y)
        rows[name] = dict(parameters=sum(p.numel() for p in net.parameters()), flops=count.get_total_flops()//2)
    return pd.DataFrame(rows).T

def trial(r, seed, a, real, valid, net):
    "Train a GAN by the recipe `r` and judge it with the classifier `net`: a row of plain values"
    start, cpu = time.perf_counter(), time.process_time()
    dls = device_dls(real, bs=a.bs, n_steps=max(1, math.ceil(a.images/a.bs/10)), seed=seed, device=a.device)
    learn = gan_learner(dls, r, seed=seed)
    with learn.no_bar(), learn.no_logging(): learn.fit_gan(a.images)
    cost = dict(seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - cpu)
    counts = (real.y.bincount(minlength=len(real.vocab))*a.pool/len(real)).round().long()     # classes as in the real images
    pool = sample_pool(learn.model, counts.tolist(), seed=seed, progress=False, vocab=real.vocab)
    fit = partial(fit_classifier, a=a, n_real=len(real), seed=seed)
    judged = evaluate_pool(pool, real, valid, net, fit=fit, progress=False).summary
    nets = cost_of(learn.model)
    sizes = {f'{what}_{part.lower()}': int(nets.loc[part, what]) for part in nets.index for what in nets}
    own = {k: v if isinstance(v, (int, float, str, type(None))) else str(v) for k, v in r.params.items()}
    return dict(own, **{k: v for k, v in judged.items() if isinstance(v, (int, float, type(None)))}, **cost, **sizes,
                failed=(learn.failure or {}).get('kind'), device=device_name(a.device), torch=versions()['torch'])

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path, help='a parquet file, written after each trial')
    p.add_argument('--data', default='faces', help="of synthrob.data.core.prepare: 'faces', 'fer2013', 'folder' ...")
    p.add_argument('--path', help='of the data')
    p.add_argument('--size', type=int, default=32, help='pixels')
    p.add_argument('--images', type=int, default=25_000, help='real images that the discriminator sees')
    p.add_argument('--bs', type=int, default=32, help='batch size of the GAN')
    p.add_argument('--width', type=int, default=16, help='of the nets of the GAN')
    p.add_argument('--pool', type=int, default=2_500, help='synthetic images that are judged')
    p.add_argument('--epochs', type=int, default=15, help='of the classifiers')
    p.add_argument('--seeds', type=int, default=3, help='trainings of each recipe')
    p.add_argument('--only', nargs='*', metavar='NAME', help='recipes; all if left out')
    p.add_argument('--root', default='runs', help='where the prepared images are kept')
    p.add_argument('--device', help="'cpu' or 'cuda'; if left out, CUDA if there is one")
    a = p.parse_args(args)
    images = prepare(a.data, a.path, size=a.size, root=a.root)
    s = splits(images)
    real, valid = images.subset(s.train), images.subset(s.valid)
    net = fit_classifier(real, a, len(real)).model.eval()
    rows = pd.read_parquet(a.out).to_dict('records') if a.out.exists() else []
    have = {(o['name'], o['seed']) for o in rows}
    todo = [(k, r, seed) for seed in range(a.seeds) for k, r in recipes(a.width, a.bs).items()
            if (k, seed) not in have and (not a.only or k in a.only)]
    for name, r, seed in progress_bar(todo):
        rows.append(dict(name=name, seed=seed, **trial(r, seed, a, real, valid, net)))
        with replacing(a.out) as f: pd.DataFrame(rows).to_parquet(f)
    return pd.DataFrame(rows)

if __name__ == '__main__': main()
