"""Measure synthrob against the usual way to do the same: `python benchmarks/bench.py loader cnn --json`.

The two take turns in one process, so a busy machine slows both, and the ratio of their times hardly moves. A ratio of
2 means twice as fast, or half of the memory allowed; the median over the rounds counts. Each opponent gets its best
settings, and before the clock starts both must report the same work. What came out is in nbs/results/05_speed.ipynb.
"""
from __future__ import annotations
import argparse, importlib, json, math, os, statistics, subprocess, sys, tempfile, time, warnings
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np, torch, torch.nn.functional as F
from fastai.callback.core import Callback, CancelValidException
from fastai.optimizer import OptimWrapper
from fastai.vision.augment import aug_transforms
from fastai.vision.core import PILImage, PILImageBW
from fastai.vision.data import ImageDataLoaders
from fastai.vision.gan import GANLearner
from fastprogress.fastprogress import progress_bar
from PIL import Image
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchvision.transforms.functional import to_tensor

from synthrob.cnn.corruptions import common, corrupted
from synthrob.cnn.learner import cnn_learner, evaluate, recipes
from synthrob.core.basics import BadInput, check_name, default_device, generator, has_bf16, seeded
from synthrob.core.stages import device_name, versions
from synthrob.core.training import Autocast
from synthrob.data.core import fer2013_path, prepare
from synthrob.data.dataset import Dataset
from synthrob.data.files import list_images
from synthrob.data.loaders import Augment, _balanced_stream, device_dls, stream, to_float, to_uint8
from synthrob.data.rows import DiskImages, read_images, take
from synthrob.data.splits import check_held_out, check_no_leak, splits
from synthrob.gan.learner import gan_learner
from synthrob.gan.losses import (AdaptiveStrength, DiffAugment, LeCam, adversarial_losses, gradient_penalty,
                                 interpolated_penalty)
from synthrob.gan.memorization import evaluate_pool
from synthrob.gan.metrics import features, fid, kid
from synthrob.gan.nets import GAN
from synthrob.gan.trainer import _relative, gan_recipe, gan_recipes
from synthrob.split.mixture import mix

# --- what both sides work on ---

@dataclass
class Setting:
    "What both sides of a benchmark are given"
    train: Dataset         # training images
    test: Dataset          # test images, for accuracies that must agree
    folder: Path           # scratch space, deleted at the end
    device: torch.device
    data: str              # 'fer2013' or 'faces'
    path: Path = None      # of FER-2013
    names: list = None     # of the training images' JPEGs in `path`; None: JPEGs are written here
    bs: int = 256          # batch size of loaders and classifiers
    gan: dict = None       # `bs`, `n_steps` and `nf` of the GAN
    repeats: int = 5       # rounds
    quick: bool = False    # a few hundred images and tiny nets: does it run?

    @property
    def n(self): return len(self.train)//self.bs*self.bs      # images in an epoch of whole batches

    def rounds(self, most=10**6):
        "The rounds, at most `most`, with a progress bar"
        return progress_bar(range(min(self.repeats, most)), leave=False, display=not self.quick)

    def dls(self, **kwargs):
        "Our `DataLoaders` over the training images"
        return device_dls(self.train, **{'bs': self.bs, 'device': self.device, **kwargs})

    @cached_property
    def files(self):
        "The training images as files in `folder/train/class/`; the first of each class is in `folder/valid` too"
        originals = self.names is not None and list_images(self.path)
        files = []
        for i, (x, y) in enumerate(self.train):
            f = self.folder/'train'/self.train.vocab[y]/f'{i}.jpg'
            f.parent.mkdir(parents=True, exist_ok=True)
            if originals: f.write_bytes(originals.read(self.names[i]))
            else: Image.fromarray(x.permute(1, 2, 0).squeeze().numpy()).save(f, quality=95)
            files.append(f)
        for y in range(self.train.c):
            f = files[self.train.y.tolist().index(y)]
            g = self.folder/'valid'/f.parent.name/f.name
            g.parent.mkdir(parents=True, exist_ok=True)
            g.write_bytes(f.read_bytes())
        return files

@contextmanager
def setting(data=None, path=None, repeats=None, quick=False, device=None):
    "Prepare the images in a temporary folder: FER-2013 if it is found, else the embedded faces"
    if data not in (None, 'fer2013', 'faces'): raise BadInput(f"data={data!r} is unknown: choose fer2013 or faces.")
    if repeats is not None and repeats < 1: raise BadInput(f"repeats={repeats} is too small: choose at least 1.")
    if data == 'faces' and path is not None: raise BadInput(f"data='faces' needs no path: leave out path={str(path)!r}.")
    if data != 'faces' and path is None: path = fer2013_path()
    if data == 'fer2013' and path is None:
        raise BadInput("FER-2013 was not found: give its path, set SYNTHROB_FER2013, or choose data='faces'.")
    data, options = ('faces', dict(n=80, n_test=20) if quick else {}) if path is None else ('fer2013', {})
    device, path = default_device(device), path and Path(path).expanduser().resolve()
    with tempfile.TemporaryDirectory() as folder:
        images = prepare(data, path, root=Path(folder)/'runs', **options)
        def part(p):
            i = np.flatnonzero(images.part == p)
            return images.subset(i[::max(1, len(i)//400)][:400] if quick else i)
        train, test = part('train'), part('test')
        names = list(train.names) if path is not None and str(train.names[0]).lower().endswith('.jpg') else None
        small = dict(bs=64, gan=dict(bs=16, n_steps=6, nf=16))
        full = dict(gan=dict(bs=64, n_steps=20, nf=48) if device.type == 'cuda' else dict(bs=32, n_steps=20, nf=32))
        yield Setting(Dataset(train.x.clone(), train.y, train.vocab), test, Path(folder), device, data, path, names,
                      repeats=repeats or (2 if quick else 5), quick=quick, **(small if quick else full))

# --- taking turns ---

def stopwatch(work, device):
    "Seconds that `work()` takes, until the device has finished"
    wait = torch.cuda.synchronize if torch.device(device).type == 'cuda' else lambda: None
    wait()
    t = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - t

def duel(ours, theirs, s):
    "Warm up, check that both do the same work, then time them in turns: (ours, theirs) of each round, in seconds"
    a, b = ours(), theirs()
    if a != b: raise RuntimeError(f"not the same work: {a} and {b}")
    return [(stopwatch(ours, s.device), stopwatch(theirs, s.device)) for _ in s.rounds()]

def fastest(ways, s):
    "The name of the fastest of `ways`, each tried once: an opponent competes with its best settings"
    took = {k: stopwatch(f, s.device) for k, f in ways.items()}
    return min(took, key=took.get)

@dataclass
class Row:
    "The outcome of one benchmark"
    name: str
    what: str       # ours, in words
    against: str    # the opponent, in words
    pairs: list     # (ours, theirs) of each round, in `unit`
    target: float   # the ratio wanted, at least
    unit: str = 's'
    note: str = ''

    def to_dict(self):
        "Medians of both sides; the median ratio, with the smallest and the largest as `spread`"
        ratios = [theirs/ours for ours, theirs in self.pairs]
        ours, theirs = (statistics.median(o) for o in zip(*self.pairs))
        ratio = statistics.median(ratios)
        return dict(name=self.name, ratio=ratio, target=self.target, spread=[min(ratios), max(ratios)], n=len(ratios),
                    met=ratio >= self.target, what=self.what, against=self.against, ours=ours, theirs=theirs,
                    unit=self.unit, note=self.note)

    def __str__(self):
        d = SimpleNamespace(**self.to_dict())
        return (f"{d.name:11} {d.ratio:8.3g}   ({d.spread[0]:.3g} to {d.spread[1]:.3g}, n {d.n})   target {d.target:g}: "
                f"{'met' if d.met else 'MISSED'}   {d.ours:.3g} {d.unit} against {d.theirs:.3g} {d.unit}\n"
                f"{'':12}{d.what} / {d.against}" + (f"\n{'':12}{d.note}" if d.note else ''))

benches = {}   # name -> function(setting) -> Row

def bench(target, what, against, unit='s', name=None, needs=None):
    "Register `f(setting) -> (pairs, note)` as a benchmark; `needs` is a package that its opponent is"
    def _register(f):
        key = name or f.__name__
        def run(s):
            pairs, note = f(s)
            return Row(key, what, against, pairs, target, unit, note)
        run.about, run.needs = f'{what} / {against}; target {target:g}', needs
        benches[key] = run
        return run
    return _register

# --- loading: a Dataset that opens one file at a time, in a DataLoader with or without workers ---

class FileSet(torch.utils.data.Dataset):
    "Image files, opened with PIL one at a time; grey images stay grey"
    def __init__(self, files, y, channels): self.files, self.y, self.mode = files, y.tolist(), {1: 'L', 3: 'RGB'}[channels]
    def __len__(self): return len(self.files)
    def __getitem__(self, i): return to_tensor(Image.open(self.files[i]).convert(self.mode)), self.y[i]

def file_loader(s, workers):
    "The usual `DataLoader` over files"
    ds = FileSet(s.files, s.train.y, s.train.x.shape[1])
    return torch.utils.data.DataLoader(ds, s.bs, shuffle=True, drop_last=True, num_workers=workers,
                                       persistent_workers=workers > 0, pin_memory=s.device.type == 'cuda')

def fastai_loader(s, workers):
    "fastai's loader over a folder, with batch transforms in the ranges of `Augment()`"
    s.files
    a = Augment()
    tfms = aug_transforms(do_flip=a.flip, max_rotate=a.degrees, min_zoom=1 - a.scale, max_zoom=1 + a.scale, max_warp=0.,
                          max_lighting=a.light, p_affine=1., p_lighting=1.)
    img_cls = PILImageBW if s.train.x.shape[1] == 1 else PILImage
    return ImageDataLoaders.from_folder(s.folder, img_cls=img_cls, batch_tfms=tfms, bs=s.bs, num_workers=workers,
                                        device=s.device).train

def walk(dl, device):
    "Take every batch of an epoch to the device: number of images, shape and type of the last batch"
    n = 0
    for xb, yb in dl:
        xb, yb = xb.to(device, non_blocking=True), yb.to(device, non_blocking=True)
        n += len(yb)
    return n, tuple(xb.shape), xb.dtype

def loading(s, ours, make):
    "Our loader against the faster of theirs with no and with two workers"
    ways = {k: partial(walk, make(s, k), s.device) for k in (0, 2)}
    k = fastest(ways, s)
    return duel(partial(walk, ours, s.device), ways[k], s), f'{s.n:,} images in batches of {s.bs}; num_workers={k}'

@bench(100, 'an epoch of batches from DeviceDL', 'per-file PIL Dataset in a DataLoader')
def loader(s): return loading(s, s.dls().train, file_loader)

@bench(15, 'an augmented epoch from DeviceDL', 'fastai ImageDataLoaders.from_folder with aug_transforms')
def augment(s): return loading(s, s.dls(augment=Augment()).train, fastai_loader)

# --- a classifier's epoch: the fastest bare loop we can write, and what students write ---

class TrainOnly(Callback):
    "Skip validation: the opponent has none"
    def before_validate(self): raise CancelValidException()

def our_cnn(s, arch='poster', cbs=()):
    "Our `Learner`, and a function that trains it for one epoch of whole batches"
    learn = cnn_learner(s.dls(), arch=arch, cbs=[TrainOnly(), *cbs])
    def epoch():
        with learn.no_bar(), learn.no_logging(): learn.fit_recipe(1)
        return s.n
    return learn, epoch

def bare_cnn(s, arch='poster', losses=None):
    "The same net in bare PyTorch, with all images on the device as floats, and a function that trains it for one epoch"
    r = recipes[arch]
    x, y = to_float(s.train.x.to(s.device)), s.train.y.to(s.device)
    with seeded('cnn', 0): net = r.net(x.shape[-1], x.shape[1], s.train.c)
    net = net.to(s.device, memory_format=torch.channels_last)
    opt = torch.optim.AdamW(net.parameters(), lr=r.lr, weight_decay=r.wd, fused=True)
    bf16 = has_bf16(s.device)
    def epoch():
        net.train()
        for i in stream(len(y), 0, s.n).to(s.device).split(s.bs):
            with torch.autocast(s.device.type, torch.bfloat16, enabled=bf16): loss = F.cross_entropy(net(x[i]).float(), y[i])
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
            if losses is not None: losses.append(loss.detach())
        return s.n
    return net, epoch

@bench(.95, 'an epoch of the poster CNN by cnn_learner, loading included', 'bare PyTorch over tensors on the device')
def cnn(s):
    (learn, ours), (net, theirs) = our_cnn(s), bare_cnn(s)
    pairs = duel(ours, theirs, s)
    a, b = (evaluate(m, s.test, flip=False).accuracy for m in (learn.model, net))
    bf16 = 'bf16' if has_bf16(s.device) else 'float32'
    return pairs, (f'{s.n:,} images in batches of {s.bs}, {bf16}; after {1 + s.repeats} epochs {a:.1%} of {len(s.test):,} '
                   f'test images are right with ours, {b:.1%} with theirs')

def study_cnn(s, workers):
    "A function that trains the poster's CNN for one epoch as the source study did: files, Adam, float32, loss.item()"
    net = recipes['poster'].net(s.train.x.shape[-1], s.train.x.shape[1], s.train.c).to(s.device)
    opt, dl = torch.optim.Adam(net.parameters(), lr=1e-3), file_loader(s, workers)
    def epoch():
        n = total = 0
        net.train()
        for xb, yb in dl:
            xb, yb = xb.to(s.device), yb.to(s.device)
            opt.zero_grad()
            loss = F.cross_entropy(net(xb), yb)
            loss.backward()
            opt.step()
            total += loss.item()
            n += len(yb)
        return n
    return epoch

@bench(3, 'an epoch of the poster CNN by cnn_learner, loading included', "the source study's recipe: files, Adam, float32")
def cnn_study(s):
    ways = {k: study_cnn(s, k) for k in (0, 2)}
    k = fastest(ways, s)
    return duel(our_cnn(s)[1], ways[k], s), f'{s.n:,} images in batches of {s.bs}; num_workers={k}'

# --- a GAN's step: each recipe once more as a bare loop, with the same random numbers, so that the weights must agree ---

def our_gan(s, recipe='default', **changes):
    "Our GAN `Learner`, and a function that trains it for some steps; the check at the end of an epoch is left out"
    r = replace(gan_recipe(recipe), nf=s.gan['nf'], bs=s.gan['bs'], **changes)
    learn = gan_learner(s.dls(bs=r.bs, n_steps=s.gan['n_steps']), r)
    learn.remove_cb(learn.stop_on_collapse)
    def steps():
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        return s.gan['n_steps']
    return learn, steps

def bare_parts(s, like):
    "What a bare loop needs for the recipe of the `Learner` `like`: nets, optimizers, loss, augmentation"
    r, dev = like.recipe, s.device
    gan = GAN(**like.model.params).to(dev).train()
    adam = partial(torch.optim.Adam, betas=r.betas, fused=True)
    ada = AdaptiveStrength().to(dev) if r.augment == 'ada' else None
    named = {'diff': DiffAugment(), 'ada': ada and DiffAugment(strength=ada.p), None: lambda x, rng: x}
    return SimpleNamespace(
        r=r, gan=gan, apart=any(isinstance(m, nn.BatchNorm2d) for m in gan.discriminator.modules()),
        G=gan.generator, D=gan.discriminator, loss=adversarial_losses[r.loss], ada=ada,
        opt_g=adam(gan.generator.parameters(), lr=r.lr), opt_d=adam(gan.discriminator.parameters(), lr=r.lr_d or r.lr),
        augment=r.augment if callable(r.augment) else named[r.augment], lecam=LeCam().to(dev) if r.lecam else None,
        nets=partial(torch.autocast, dev.type, torch.bfloat16, enabled=has_bf16(dev) and r.nf % 16 == 0))

def bare_gan(s, like):
    "The same in bare PyTorch: the pair of nets, and a function that trains it for some steps"
    b, r, bs, n_steps, dev = bare_parts(s, like), like.recipe, s.gan['bs'], s.gan['n_steps'], s.device
    x, y = to_float(s.train.x.to(dev))*2 - 1, s.train.y.to(dev)
    trained, average = ([o for o in m.state_dict().values() if o.is_floating_point()] for m in (b.G, b.gan.ema))
    def steps():
        rng = generator('gan', 0, 0, device=dev)
        noise = lambda: torch.randn(bs, r.nz, generator=rng, device=dev)
        order = _balanced_stream(s.train.y, 0, bs*n_steps) if r.balanced else stream(len(y), 0, bs*n_steps)
        for step, i in enumerate(order.to(dev).split(bs)):
            real, yb = x[i], y[i]
            bare_d_step(b, r, real, yb, noise, rng, step, step/n_steps)
            if step % r.n_critic == 0: bare_g_step(b, real, yb, noise, rng)
            keep = .5**(bs/min(r.half_life, max((step + 1)*bs/8, 1))) if r.half_life else 0.
            torch._foreach_lerp_(average, trained, 1 - keep)
        return n_steps
    return b.gan, steps

def bare_d_step(b, r, real, y, noise, rng, step, done):
    "A step of the discriminator in bare PyTorch"
    with torch.no_grad(), b.nets(): fake = b.G(noise(), y).float()
    x = b.augment(torch.cat([real, fake]), rng)
    penalise = r.penalty is not None and r.gamma > 0 and step % r.lazy == 0
    x.requires_grad_(penalise and r.penalty != 'gp')
    with b.nets(): logits = torch.cat([b.D(o, y) for o in x.chunk(2)]) if b.apart else b.D(x, torch.cat([y, y]))
    on_real, on_fake = logits.chunk(2)
    loss = b.loss.d(on_real, on_fake)
    if penalise:
        gamma = r.gamma if r.gamma_end is None else r.gamma_end + (r.gamma - r.gamma_end)*(1 + math.cos(math.pi*done))/2
        if r.penalty == 'gp':
            with b.nets(): slope = interpolated_penalty(b.D, *x.chunk(2), y, rng)
        else: slope = gradient_penalty(dict(r1=on_real, r2=on_fake, r1r2=logits)[r.penalty], x)
        loss = loss + r.lazy*gamma*slope
    if b.lecam: loss = loss + r.lecam*b.lecam(on_real, on_fake)
    b.opt_d.zero_grad(set_to_none=True)
    loss.backward()
    b.opt_d.step()
    if b.ada: b.ada.update(on_real.detach(), on_fake.detach() if r.loss in _relative else None)

def bare_g_step(b, real, y, noise, rng):
    "A step of the generator in bare PyTorch"
    b.D.requires_grad_(False)
    with b.nets():
        on_real = None
        if b.loss.needs_real:
            with torch.no_grad(): on_real = b.D(b.augment(real, rng), y)
        loss = b.loss.g(on_real, b.D(b.augment(b.G(noise(), y).float(), rng), y))
    b.opt_g.zero_grad(set_to_none=True)
    loss.backward()
    b.opt_g.step()
    b.D.requires_grad_(True)

image_gans = [k for k, r in gan_recipes.items() if r.net != 'mlp' and not r.matching]     # others make vectors, or need a classifier

@bench(.95, 'steps of the GAN by gan_learner, the worst of the recipes', 'bare PyTorch with the same nets, loss, penalties, EMA')
def gan(s):
    took, g = {}, s.gan
    for name in image_gans:
        learn, ours = our_gan(s, name)
        took[name] = duel(ours, bare_gan(s, learn)[1], s)
    ratio = {k: statistics.median(b/a for a, b in pairs) for k, pairs in took.items()}
    each = [f"{k} {ratio[k]:.3f} ({1e3*statistics.median(a for a, _ in took[k])/g['n_steps']:.0f} ms a step)" for k in took]
    worst = min(ratio, key=ratio.get)
    return took[worst], f"{', '.join(each)}; {g['n_steps']} steps of {g['bs']} real images, width {g['nf']}"

class OneInput(nn.Module):
    "A net that takes noise or images alone, as `fastai.vision.gan` calls it; the classes come from `side`"
    def __init__(self, net, side):
        super().__init__()
        self.net, self.side = net, side
    def forward(self, x): return self.net(x, self.side.y)

class NoiseToImage(Callback):
    "Turn a batch of images and classes into one of noise and images, as `fastai.vision.gan` expects it"
    order = -5                                                  # before fastai's `GANTrainer` exchanges the two
    def __init__(self, nz, side): self.nz, self.side = nz, side
    def before_batch(self):
        self.side.y = self.y
        self.learn.yb, self.learn.xb = (self.x*2 - 1,), (torch.randn(len(self.y), self.nz, device=self.x.device),)

def fastai_gan(s, like):
    "fastai's `GANLearner` with the nets and loss of `like`: it makes one step a batch, so it needs twice the batches"
    r, side, n_steps = like.recipe, SimpleNamespace(), s.gan['n_steps']
    pair, loss = GAN(**like.model.params), adversarial_losses[r.loss]
    dls = s.dls(bs=s.gan['bs'], n_steps=2*n_steps)
    opt_func = lambda params, lr: OptimWrapper(params, torch.optim.Adam, lr=lr, betas=r.betas, fused=True)
    learn = GANLearner(dls, OneInput(pair.generator, side), OneInput(pair.discriminator, side),
                       lambda fake, *_: loss.g(None, fake), loss.d, switch_eval=False, show_img=False,
                       opt_func=opt_func, lr=r.lr, cbs=[TrainOnly(), NoiseToImage(r.nz, side), Autocast()])
    def steps():
        with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
            warnings.simplefilter('ignore')                     # fastai warns of names in its own callback
            learn.fit(1)
        return n_steps
    return learn, steps

@bench(1, 'steps of a plain GAN by gan_learner', 'fastai.vision.gan with the same nets, loss and optimizer')
def gan_fastai(s):
    learn, ours = our_gan(s, loss='nonsaturating', penalty=None, augment=None, half_life=0, balanced=False)
    return duel(ours, fastai_gan(s, learn)[1], s), f"{s.gan['n_steps']} steps of {s.gan['bs']} images, width {s.gan['nf']}"

# --- FID and KID: torchmetrics on the same features; both must give the same values ---

class Identity(nn.Module):
    "The feature extractor that torchmetrics gets: its input is features already"
    def __init__(self, d):
        super().__init__()
        self.num_features = d
    def forward(self, f): return f

def usual_distances(a, b, bs=512):
    "FID and KID of features (n,d) by torchmetrics, with one subset that holds all"
    n, d = a.shape
    out = []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')                                     # it keeps all features, and warns of it
        both = FrechetInceptionDistance(Identity(d)), KernelInceptionDistance(Identity(d), subsets=1, subset_size=n)
    for m in both:
        m.to(a.device)
        for f, real in ((a, True), (b, False)):
            for fb in f.split(bs): m.update(fb, real=real)
        out.append(m.compute())
    return out[0].item(), out[1][0].item()

@bench(1, 'FID and KID of as many real and other images', 'torchmetrics, on the same features, one subset')
def quality(s):
    n = min(5000, len(s.train)//3)
    order = torch.randperm(len(s.train), generator=generator('quality'))           # FER-2013 is sorted by class
    part = lambda i: Dataset(s.train.x[order[i:3*n:3]], s.train.y[order[i:3*n:3]], s.train.vocab)
    real, holdout, other = map(part, range(3))
    noise = .3*torch.randn(other.x.shape, generator=generator('noise'))
    other.x = to_uint8(to_float(other.x) + noise)
    learn, epoch = our_cnn(s)
    epoch()
    model = learn.model.eval()
    a, b = (features(model, o.x)[0] for o in (real, other))
    ours, usual = (fid(a, b), kid(a, b)), usual_distances(a.double(), b.double())  # in float32 a small KID loses digits
    off = [abs(o/u - 1) for o, u in zip(ours, usual)]
    if max(off) > 1e-3: raise RuntimeError(f'not the same distances: {ours} and {usual}')
    pairs = duel(lambda: len((fid(a, b), kid(a, b))), lambda: len(usual_distances(a, b)), s)
    whole = stopwatch(lambda: evaluate_pool(other, real, holdout, model, progress=False), s.device)
    return pairs, (f'{n:,} + {n:,} vectors of {a.shape[1]}; FID {ours[0]:.4g} and KID {ours[1]:.4g}, off by {off[0]:.1g} and '
                   f'{off[1]:.1g}; evaluate_pool, with features, neighbours and copies: {whole:.1f} s')

# --- memory: a process keeps its peak for life, so each measurement takes a fresh one ---

_PEAK = '''
import json, sys, time
{imports}
def peak():
    try:
        with open('/proc/self/status') as f: return int(next(l for l in f if l.startswith('VmHWM')).split()[1])*1024
    except OSError:
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform == 'darwin' else 1024)
args = json.loads(sys.argv[1])
{first}
before, t = peak(), time.perf_counter()
{work}
print('\\n' + json.dumps(dict(n=n, seconds=time.perf_counter() - t, before=before, peak=peak())))
'''

def measure_peak(imports, work, first='', **args):
    "Run code in a fresh process, with `args` there; `work` sets `n`. Returns `n`, `seconds`, bytes `before` and at the `peak`"
    code = _PEAK.format(imports=imports, first=first, work=work)
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(o or os.getcwd() for o in sys.path)}   # the same synthrob
    out = subprocess.run([sys.executable, '-c', code, json.dumps(args)], env=env, text=True, stdout=subprocess.PIPE, check=True)
    return json.loads(out.stdout.splitlines()[-1])

def measure_prepare(data, path, root):
    "Prepare `data` in a fresh process and a fresh folder"
    with tempfile.TemporaryDirectory(dir=root) as folder:
        return measure_peak('from synthrob.data.core import prepare', 'n = len(prepare(**args))',
                            data=data, path=path and str(path), root=folder)

@bench(1, 'peak memory of prepare', 'the limit of 1.5 GB', unit='GB', name='prepare')
def memory(s):
    runs = [measure_prepare(s.data, s.path, s.folder) for _ in s.rounds(most=3)]
    extra = max(o['peak'] - o['before'] for o in runs)/1e9
    return [(o['peak']/1e9, 1.5) for o in runs], (
        f"{s.data}, {runs[0]['n']:,} images, {statistics.median(o['seconds'] for o in runs):.1f} s; "
        f"{extra:.2f} GB beyond what the imports take")

# --- more images than memory: noise, ten times the budget ---

def large_file(s):
    "A `.npy` of noise, made once, and the memory budget in bytes, a tenth of it"
    file, budget, shape = s.folder/'large.npy', 4_000_000 if s.quick else 256_000_000, (3, 64, 64)
    rng, todo = np.random.default_rng(0), 10*budget//math.prod(shape)
    if not file.exists():
        x = np.lib.format.open_memmap(file, 'w+', np.uint8, (todo, *shape))
        for a in range(0, todo, 1000): x[a:a+1000] = rng.integers(0, 256, x[a:a+1000].shape, dtype=np.uint8)
    return file, budget

def large_learner(x, y, device, n_steps, valid=None):
    "A function that trains the poster CNN for an epoch of `n_steps` batches of 32 and returns the number of images"
    vocab = [str(k) for k in range(5)]
    train = Dataset(x, y, vocab)
    few = Dataset(take(x, slice(0, 64)), y[:64], vocab) if valid is None else valid
    learn = cnn_learner(device_dls(train, few, bs=32, n_steps=n_steps, device=device), arch='poster')
    def epoch():
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        return n_steps*32
    return epoch

@bench(.7, 'an epoch of the poster CNN over a set of ten times the memory budget', 'the same with all images in memory')
def large(s):
    file, budget = large_file(s)
    x, steps = read_images(file, budget), 5 if s.quick else 200
    y = torch.arange(len(x)) % 5
    ours, theirs = (large_learner(o, y, s.device, steps) for o in (x, torch.from_numpy(np.load(file))))
    size = f'{len(x):,} images, {x.nbytes/1e6:,.0f} MB with a budget of {budget/1e6:.0f} MB'
    return duel(ours, theirs, s), f'{size}; {steps} batches of 32'

def train_large(file, budget, n_steps, device):
    "What a split experiment does with its data, and one epoch of training; returns the number of images trained on"
    x = read_images(file, budget)
    if not isinstance(x, DiskImages): raise RuntimeError('the set is not above the budget')
    images = Dataset(x, torch.arange(len(x)) % 5, [str(k) for k in range(5)])
    s = splits(images)
    check_no_leak(images, s)
    part = lambda k: images.subset(getattr(s, k))
    train = mix(part('train'), None, .3, treatment='oversample')
    check_held_out(train.x, torch.cat([part('valid').x, part('test').x]))
    return large_learner(train.x, train.y, device, n_steps, part('valid').subset(slice(0, 640)))()

@bench(1/1.3, 'memory beyond imports to split, mix and train on a set of ten times the budget', 'the budget', unit='GB')
def large_peak(s):
    file, budget = large_file(s)
    args = dict(file=str(file), budget=budget, n_steps=5 if s.quick else 200, device=str(s.device))
    runs = [measure_peak('from bench import train_large', 'n = train_large(**args)', **args) for _ in s.rounds(most=3)]
    return [((o['peak'] - o['before'])/1e9, budget/1e9) for o in runs], (
        f"{10*budget/1e6:,.0f} MB of images; {runs[0]['n']:,} trained on; imports take {runs[0]['before']/1e9:.2f} GB; "
        f"{statistics.median(o['seconds'] for o in runs):.0f} s")

# --- corruptions: the package imagecorruptions, image by image ---

def usual_corruptions():
    "`corrupt` of the package imagecorruptions, and the `names` of the common corruptions that still run there"
    if find_spec('imagecorruptions') is None:
        raise BadInput("imagecorruptions, the opponent, is not installed: pip install imagecorruptions.")
    stand_in = find_spec('pkg_resources') is None                          # setuptools no longer has what it imports
    if stand_in:
        folder = Path(find_spec('imagecorruptions').origin).parent
        sys.modules['pkg_resources'] = SimpleNamespace(resource_filename=lambda _, name: str(folder/name))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')                                # it imports from places that scipy has left
            package = importlib.import_module('imagecorruptions')
    finally:
        if stand_in: del sys.modules['pkg_resources']
    def runs(name):
        try: return package.corrupt(np.zeros((48, 48), np.uint8), 1, name) is not None
        except (AttributeError, TypeError): return False                   # gone from numpy, or from scikit-image
    return SimpleNamespace(corrupt=package.corrupt, names=[o for o in common if runs(o)])

def measure_corrupted(x, folder):
    "Corrupt the images `x` in 15 ways and five severities in a fresh process"
    file = Path(folder)/'clean.npy'
    np.save(file, x.cpu().numpy())
    return measure_peak('import numpy, torch\nfrom synthrob.cnn.corruptions import corrupted', 'n = sum(len(b.x) for b in corrupted(x))',
                        "x = torch.from_numpy(numpy.load(args['file']))", file=str(file))

@bench(20, 'an image corrupted by corrupted(), 5 severities', 'imagecorruptions, those of the 15 that run', unit='ms',
       name='corrupt', needs='imagecorruptions')
def corruption(s):
    usual, x = usual_corruptions(), s.test.x.to(s.device)
    few = [np.asarray(im.permute(1, 2, 0)).squeeze() for im in s.test.x[:20]]
    def ours(name): return 1e3/len(x)*stopwatch(lambda: [None for _ in corrupted(x, name)], s.device)
    def theirs(name):
        return 1e3/len(few)*stopwatch(lambda: [usual.corrupt(im, i, name) for i in range(1, 6) for im in few], s.device)
    def both(names): return [(ours(o), theirs(o)) for o in names]
    both(usual.names)                                                      # a warm-up
    took = np.array([both(usual.names) for _ in s.rounds()])               # round, corruption, side
    ratios = np.median(took[..., 1]/took[..., 0], 0)
    rest = took[:, [o != 'frost' for o in usual.names]].sum(1)             # its frost reads a photograph for each image
    peak = measure_corrupted(s.test.x, s.folder)
    return took.sum(1).tolist(), (
        f"{len(usual.names)} of 15 run there, {len(x):,} images here; without frost {np.median(rest[:, 1]/rest[:, 0]):.3g}; "
        f"from {ratios.min():.2g} ({usual.names[ratios.argmin()]}) to {ratios.max():.3g} ({usual.names[ratios.argmax()]}); "
        f"all 15 x 5: {peak['n']:,} images in {peak['seconds']:.1f} s, peak {peak['peak']/1e9:.2f} GB, "
        f"{(peak['peak'] - peak['before'])/1e9:.2f} beyond imports and clean images")

# --- the command ---

def run_benches(names=(), show=print, **kwargs):
    "Run benchmarks by name, or all whose opponents are installed; `show` gets each `Row`, `setting` the rest"
    for k in names: check_name(k, benches, f"There is no benchmark {k!r}")
    needs = {k: f.needs for k, f in benches.items() if f.needs and find_spec(f.needs) is None}
    for k in set(names) & set(needs): raise BadInput(f"The benchmark {k!r} needs {needs[k]}: pip install {needs[k]}.")
    for k in needs if not names else (): print(f"{k} is left out: {needs[k]} is not installed.")
    rows = []
    with setting(**kwargs) as s:
        for k in names or [k for k in benches if k not in needs]:
            rows.append(benches[k](s))
            show(rows[-1])
    return rows

def parser():
    "The arguments of the command"
    names = '\n'.join(f'  {k:11}{f.about}' for k, f in benches.items())
    p = argparse.ArgumentParser(description=f"{__doc__}\nOn cores that other programs use as well, set OMP_WAIT_POLICY=passive.",
                                epilog=f'NAME is one of\n{names}', formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', metavar='NAME', help='what to measure; nothing: all')
    p.add_argument('--json', action='store_true',
                   help='one JSON object a line: name, ratio, target, spread, n, and more, with device and versions')
    p.add_argument('--data', choices=['fer2013', 'faces'],
                   help='images; if left out, FER-2013 if it is found, else the embedded faces')
    p.add_argument('--path',
                   help='FER-2013: zip, folder or CSV; if left out, $SYNTHROB_FER2013 or ../shared/data/fer2013.zip')
    p.add_argument('--repeats', type=int, metavar='N', help='rounds (5; with --quick 2)')
    p.add_argument('--bigger-than-memory', action='store_true',
                   help="in place of 'loader', 'large' and 'large_peak': a set of ten times the memory budget")
    p.add_argument('--quick', action='store_true',
                   help='a few hundred images and tiny nets: does it run? The ratios say little')
    p.add_argument('--device', help="'cpu' or 'cuda'; if left out, CUDA if there is one")
    return p

def main(args=None):
    "Run the command with a list of arguments; returns 2 for bad input, else 0"
    a, out = parser().parse_args(args), sys.stdout
    def show(row): print(json.dumps({**row.to_dict(), **about}) if a.json else row, file=out, flush=True)
    try:
        about = dict(device=device_name(a.device), versions=versions())
        with redirect_stdout(sys.stderr):                                  # progress is no result
            names = a.names or (['loader'] if a.bigger_than_memory else [])
            instead = dict(loader=['large', 'large_peak']) if a.bigger_than_memory else {}
            names = [o for k in names for o in instead.get(k, [k])]
            run_benches(names, show, data=a.data, path=a.path, repeats=a.repeats, quick=a.quick, device=a.device)
        if not a.json: print(f"{about['device']}; {', '.join(f'{k} {v}' for k, v in about['versions'].items())}", file=out)
    except BadInput as e:
        print(f'bench: {e}', file=sys.stderr)
        return 2
    return 0

if __name__ == '__main__': sys.exit(main())
