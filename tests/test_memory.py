"Sets larger than the memory budget: the same experiment bit by bit, within the budget"
from __future__ import annotations
import numpy as np, pytest, torch
from bench import measure_peak
from synthrob.data.splits import check_no_leak, splits
from synthrob.data.core import prepare
from synthrob.data.faces import draw_faces
from synthrob.data.dataset import Dataset
from synthrob.data.loaders import Augment, device_dls
from synthrob.data.rows import DiskImages, read_images
from synthrob.data.splits import check_held_out
from synthrob.split.core import run_split
from synthrob.split.mixture import mix

@pytest.fixture
def small_budget(monkeypatch): monkeypatch.setenv('SYNTHROB_MEMORY', '20kB')

@pytest.fixture(scope='module')
def both(tmp_path_factory):
    "The same 300 images in memory and in a file"
    x, y = draw_faces(torch.arange(300) % 5, size=32, progress=False), torch.arange(300) % 5
    file = tmp_path_factory.mktemp('rows')/'images.npy'
    np.save(file, x.numpy())
    vocab = list('abcde')
    return Dataset(x, y, vocab), Dataset(read_images(file, 1000), y, vocab)

def test_batches_are_the_same(both):
    for how in (dict(), dict(augment=Augment(erase=.5)), dict(balanced=True, n_steps=7), dict(bs=1000)):
        a, b = (device_dls(o, o.subset(slice(0, 50)), **{'bs': 32, 'seed': 3, 'device': 'cpu', **how}) for o in both)
        for which in ('train', 'valid', 'train'):                                      # twice: the second epoch, too
            for (xa, ya), (xb, yb) in zip(getattr(a, which), getattr(b, which), strict=True):
                assert torch.equal(xa, xb) and torch.equal(ya, yb)
        assert isinstance(b.train.dataset.x, DiskImages)

@pytest.mark.parametrize('how, treatment', [('replace', 'synthetic'), ('add', 'synthetic'), ('replace', 'oversample'), ('add', 'class_weights')])
def test_mixtures_are_the_same(both, how, treatment):
    pool = Dataset(draw_faces(torch.arange(400) % 5, size=32, seed=9, progress=False), torch.arange(400) % 5, list('abcde'), dict(origin=['synthetic']*400))
    a, b = (mix(o, pool, .4, how, 'balance' if treatment == 'class_weights' else 'prior', treatment) for o in both)
    assert isinstance(b.x, DiskImages), 'nothing is copied into memory'
    assert torch.equal(a.x, b.x[:]) and torch.equal(a.y, b.y) and torch.equal(a.is_synthetic, b.is_synthetic)
    check_held_out(b.x.subset(~b.is_synthetic), pool.x)
    with pytest.raises(RuntimeError, match='the split leaks'): check_held_out(b.x, torch.cat([pool.x[:3], b.x.subset([0])]))

@pytest.mark.slow
def test_the_same_record(faces, tmp_path, monkeypatch):
    "GAN kept at its best, images refused, judged, corrupted and attacked: every number is that of an experiment in memory"
    params = dict(data='folder', path=faces, size=32, gan_images=1280, gan_width=8, cnn='poster', cnn_epochs=2, ratio=.3, gan_pick='best',
                  reject=.1, quality='fast', robustness='fast')
    whole = run_split(**params, out=str(tmp_path/'whole'))
    monkeypatch.setenv('SYNTHROB_MEMORY', '20kB')
    lazy = run_split(**params, out=str(tmp_path/'lazy'))
    assert all(isinstance(o.x, DiskImages) for o in (lazy.images, lazy.part('train'), lazy.mixture))
    assert {k: s.hash for k, s in lazy.stages.items()} == {k: s.hash for k, s in whole.stages.items()} and lazy.pool.hash == whole.pool.hash
    for k in ('history', 'valid', 'test', 'counts', 'splits'): assert lazy.record[k] == whole.record[k], k
    assert lazy.stages['gan'].record['history'] == whole.stages['gan'].record['history']
    for k in ('robustness', 'quality'): assert lazy.record[k]['summary'] == whole.record[k]['summary'], k

def test_fresh_images(faces, tmp_path, monkeypatch):
    "Refreshed synthetic images replace rows that stay on the disk"
    params = dict(data='folder', path=faces, size=32, gan_images=640, gan_width=8, cnn='poster', cnn_epochs=3, ratio=.3, refresh_every=1, robustness='none')
    whole = run_split(**params, out=str(tmp_path/'whole'))
    monkeypatch.setenv('SYNTHROB_MEMORY', '20kB')
    assert run_split(**params, out=str(tmp_path/'lazy')).record['history'] == whole.record['history']

def test_a_pool_from_elsewhere(faces, tmp_path, small_budget):
    "Real images that stay on the disk are held against those of a pool"
    from test_sources import TOY, refused
    refused('are copies of real ones', run_split, data='folder', path=faces, pool=faces, ratio=.2, out=str(tmp_path), **TOY)

def test_a_folder_above_the_budget(faces, tmp_path, small_budget):
    images = prepare('folder', faces, size=32, root=tmp_path)
    assert isinstance(images.x, DiskImages) and repr(images).startswith('Dataset(100 of 32x32x1')
    check_no_leak(images, splits(images))
    assert images.show(2).images[0].get_array().shape[0] == 5*33 - 1

IMPORTS = """from synthrob.data.dataset import Dataset
from synthrob.data.splits import check_held_out, check_no_leak, splits
from synthrob.data.loaders import device_dls
from synthrob.data.rows import read_images
from synthrob.split.mixture import mix
import torch"""
WORK = """x = read_images(args['file'], args['budget'])
images = Dataset(x, torch.arange(len(x)) % 5, list('abcde'))
s = splits(images)
check_no_leak(images, s)
train = mix(images.subset(s.train), None, .3, treatment='oversample')
check_held_out(train.x, torch.cat([images.subset(o).x for o in (s.valid, s.test)]))
assert len(images.hash) == 16
n = sum(len(yb) for _, yb in device_dls(train, bs=64, device='cpu').train)"""

@pytest.mark.slow
def test_memory_stays_within_the_budget(tmp_path):
    "Ten times the budget: looked through for copies, split, checked, mixed, hashed and walked through in batches"
    budget, rng, shape = 48_000_000, np.random.default_rng(0), (3, 64, 64)
    x = np.lib.format.open_memmap(tmp_path/'x.npy', 'w+', np.uint8, (39_000, *shape))
    for a in range(0, len(x), 1000): x[a:a+1000] = rng.integers(0, 256, (1000, *shape), dtype=np.uint8)
    x.flush()
    args = dict(file=str(tmp_path/'x.npy'), budget=budget)
    assert (tmp_path/'x.npy').stat().st_size > 9.9*budget
    for _ in range(2):                                                                    # busy machines add to it
        m = measure_peak(IMPORTS, WORK, **args)
        if m['peak'] - m['before'] < 1.3*budget: break
    assert m['n'] > 25_000 and m['peak'] - m['before'] < 1.3*budget, m
