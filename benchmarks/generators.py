"""GANs on FER-2013 at equal processor time: `python benchmarks/generators.py OUT.parquet default:15 matched:15 --seeds 1 2 3`.

A trial is a recipe (with changes: `default,bs=128:15`), its minutes of processor time and a seed: trained on the training part without
exact and near copies (five classes, 32 pixels). A classifier that a recipe needs is trained within its minutes. The pool has as many
images of each class as the training part. It is judged on the validation part: by the small CNN and the strong CNN trained on it alone
(CAS), and by a strong CNN of another seed (FID within classes, precision, recall, coverage). `authentic:0` trains the two CNNs on
authentic images instead. Trials that OUT already holds are skipped. nbs/results/02_gans.ipynb reads nbs/results/records/generators.parquet.
"""
from __future__ import annotations
import time
from ast import literal_eval

import torch

from synthrob.cnn.learner import cnn_learner, evaluate, recipe
from synthrob.gan.learner import gan_learner
from synthrob.gan.memorization import evaluate_pool
from synthrob.gan.pools import sample_pool
from synthrob.gan.trainer import gan_recipe
from trials import run_trials

GUIDE, JUDGE, CAS = 101, 202, 303                                 # seeds of three classifiers that share nothing
EPOCHS = dict(poster=20, strong=12)
measures = 'intra_fid', 'precision', 'recall', 'coverage', 'gan_test', 'near_copies', 'copies', 'memorises'

def classifier(name, data, seed, device=None):
    learn = cnn_learner(data, arch=recipe(name, epochs=EPOCHS[name], min_steps=0), seed=seed, device=device)
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe()
    return learn

def train_gan(r, minutes, seed, train, device):
    "A GAN trained for so many minutes of processor time, and its cost"
    start = time.process_time()
    guide = classifier('strong', train, GUIDE, device).model.eval() if r.matching else None
    learner = lambda: gan_learner(train, r, seed=seed, device=device, classifier=guide)
    def fit(n):
        learn, at = learner(), time.process_time()
        with learn.no_bar(), learn.no_logging(): learn.fit_gan(n)
        return learn, time.process_time() - at
    fit(r.bs*20)                                                  # what is slow only once
    n = r.bs*100                                                  # a short training tells how long an image takes
    per_image = fit(n)[1]/n
    n_images = round((60*minutes - (time.process_time() - start))/per_image)
    learn, seconds = fit(n_images)
    return learn, dict(gan_images=n_images, gan_seconds=seconds, cpu_seconds=time.process_time() - start)

_judges = []                                                      # one a run of this script

def judge(train, device):
    if not _judges: _judges.append(classifier('strong', train, JUDGE, device).model.eval())
    return _judges[0]

def trial(name, minutes, seed, parts, device=None):
    "A row of plain values"
    train, valid = parts['train'], parts['valid']
    row, pool = {}, train
    if name != 'authentic':
        name, *changes = name.split(',')
        r = gan_recipe(name, **{k: literal_eval(v) for k, v in (o.split('=') for o in changes)})
        learn, row = train_gan(r, minutes, seed, train, device)
        pool = sample_pool(learn.model, train.y.bincount(minlength=train.c).tolist(), seed=seed, progress=False, vocab=train.vocab)
        summary = evaluate_pool(pool, train, valid, judge(train, device), progress=False).summary
        row |= {k: summary[k] for k in measures} | dict(failure=str(learn.failure and learn.failure['kind']))
    cas = {f'cas_{o}': evaluate(classifier(o, pool, CAS + seed, device), valid).accuracy for o in EPOCHS}
    return row | cas | dict(n_train=len(train), n_valid=len(valid), threads=torch.get_num_threads())

if __name__ == '__main__': run_trials(__doc__, ('name', 'minutes', 'seed'), trial)
