"What the tests share"
from __future__ import annotations
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')     # before torch is imported: two files run at a time, and start processes of their own
import gc, json, signal, subprocess, sys
from functools import partial
from pathlib import Path
import pytest, torch
from PIL import Image
from synthrob.cnn.learner import cnn_learner, recipe
from synthrob.cnn.models import StrongNet
from synthrob.core.basics import BadInput
from synthrob.data.core import fer2013_path
from synthrob.data.faces import draw_faces, emotions
from synthrob.data.dataset import Dataset
from synthrob.data.loaders import device_dls
from synthrob.gan.learner import gan_learner

ROOT = Path(__file__).resolve().parent.parent

gc.freeze()        # statsmodels collects garbage in every call of `multipletests`: what was imported is not looked through again

# a script's background jobs ignore SIGINT; processes that the tests start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

LONG = ('sweep', 'howto', 'split', 'slurm', 'uses', 'report', 'bench', 'fuzz', 'features', 'cases', 'learning', 'robust', 'memory',
        'explore', 'sources', 'quality', 'stats', 'faults', 'distributed', 'near')

def pytest_collection_modifyitems(items):
    "The longest files first, so that two workers end together"
    rank = {f'test_{o}': i for i, o in enumerate(LONG)}
    items.sort(key=lambda o: rank.get(o.path.stem, len(LONG)))

# parameters of the smallest split experiment
TOY = dict(data='folder', folds=1, copies='exact', size=32, gan_images=640, gan_width=16, cnn_epochs=1, robustness='none')

@pytest.fixture(scope='session')
def faces(tmp_path_factory) -> str:
    "A folder of twenty faces of each expression"
    top = tmp_path_factory.mktemp('faces')
    y = torch.arange(100) % 5
    for i, (x, c) in enumerate(zip(draw_faces(y, size=32, seed=5, progress=False), y)):
        (top/emotions[c]).mkdir(exist_ok=True)
        Image.fromarray(x[0].numpy()).save(top/emotions[c]/f'{i}.png')
    return str(top)

def drawn_faces(n, seed, channels=1) -> Dataset:
    "`n` faces of 32 pixels, as many of each expression"
    y = torch.arange(n) % 5
    return Dataset(draw_faces(y, size=32, seed=seed, progress=False).expand(-1, channels, -1, -1), y, emotions)

@pytest.fixture(scope='session')
def toy_cnn():
    "A `Learner` with a tiny classifier, trained for seconds: for tests that need a trained net and not a good one"
    dls = device_dls(drawn_faces(500, 1), drawn_faces(100, 2), bs=50, device='cpu')
    learn = cnn_learner(dls, arch=recipe('strong', epochs=4, net=partial(StrongNet, nf=8)), seed=1)
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe()
    return learn

@pytest.fixture(scope='session')
def toy_gan():
    "A `Learner` with a tiny GAN, trained for seconds: for tests that need a trained generator and not a good one"
    learn = gan_learner(device_dls(drawn_faces(200, 1), bs=32, n_steps=5, device='cpu'), nf=8, nz=16, seed=1)
    with learn.no_bar(), learn.no_logging(): learn.fit_gan(640)
    return learn

def refused(say, f, *args, **kw):
    "`f` raises `BadInput` with one line that contains `say`; the line"
    with pytest.raises(BadInput) as e: f(*args, **kw)
    message = str(e.value)
    assert say in message and '\n' not in message and len(message) < 500, message
    return message

def papermill(repo, to, cwd=None, nb=None, **params):
    "Start papermill as the README does; the finished process"
    args = [sys.executable, '-m', 'papermill', '--no-progress-bar', str(nb or repo/'nbs'/'03_split.ipynb'), str(to)]
    for k, v in params.items(): args += ['-p', k, str(v)]
    return subprocess.run(args, cwd=cwd or repo, capture_output=True, text=True, timeout=900)

def records(out, kind='split'): return [json.loads(p.read_text()) for p in Path(out).glob(f'{kind}/*/record.json')]

@pytest.fixture(scope='session')
def repo() -> Path:
    "The root of the repository"
    return ROOT

@pytest.fixture(scope='session')
def prepared(tmp_path_factory) -> Path:
    "A folder of stages for FER-2013, which all workers of pytest-xdist share: it is decoded once"
    top = tmp_path_factory.getbasetemp()
    return (top.parent if 'PYTEST_XDIST_WORKER' in os.environ else top)/'prepared'

@pytest.fixture(scope='session')
def fer2013_zip() -> Path:
    "The zip of FER-2013, see `fer2013_path`; skips the test if there is none"
    if not (path := fer2013_path()): pytest.skip('FER-2013 is not here: set SYNTHROB_FER2013 to its zip to run this test')
    return Path(path).resolve()
