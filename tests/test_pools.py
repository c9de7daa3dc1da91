"Pools: sampled alike whatever the batch, filtered, refreshed during a training that is killed, and made elsewhere"
from __future__ import annotations
import copy, shutil
import pytest, torch
from torch import nn
from fastai.callback.core import Callback
from synthrob.cnn.learner import Recipe, cnn_learner, recipe
from synthrob.cnn.uses import soft_labels
from conftest import drawn_faces
from synthrob.core.basics import BadInput, hash_array, hash_of
from synthrob.data.core import prepare
from synthrob.data.dataset import Dataset
from synthrob.data.faces import emotions
from synthrob.data.loaders import device_dls
from synthrob.gan.learner import class_noise, generate, load_gan, save_gan, shape_noise
from synthrob.gan.nets import GAN
from synthrob.gan.pools import (_block, RefreshSynthetic, confidence_thresholds, label_confidence,
                                pool_from_folder, sample_pool)
from synthrob.split.mixture import mix

class Net(nn.Sequential):
    "A classifier that is made in no time; its BatchNorm would tell if it were asked in train mode"
    def __init__(self, size, channels, n_classes):
        super().__init__(nn.Conv2d(channels, 8, 5, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(n_classes))

class Stripes(nn.Module):
    "A generator whose images tell their class and noise: a grey for the class, off by 0, 1 or 2 classes as the noise says"
    params, shape, vocab = dict(size=32, channels=1, n_classes=5, nz=4, nf=16), (1, 32, 32), None
    def __init__(self):
        super().__init__()
        self.ema = nn.Linear(1, 1)
    def forward(self, z, y):
        shown = (y + (z[:, 0].abs() > .7).long() + (z[:, 0].abs() > 1.4).long()) % 5
        x = (shown*50 + 5)[:, None].expand(-1, 32*32) + torch.linspace(0, 9, 32*32)*z[:, 1:2].sigmoid()
        return x.view(-1, 1, 32, 32)/127.5 - 1

class Reader(nn.Module):
    "The classifier that reads such images; the further a grey is from a class, the less it believes in that class"
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(.2))
    def forward(self, x): return -self.scale*(x.mean((1, 2, 3))[:, None]*255 - torch.arange(5)*50 - 7).abs()

class Corner(Reader):
    "The same, but it believes in nothing where the first pixel is not white"
    def forward(self, x): return super().forward(x)*(x[:, :1, 0, 0] > .99)

@pytest.fixture(scope='module')
def gan(): return GAN(size=32, nf=16, nz=8, seed=3)

@pytest.fixture(scope='module')
def judge(): return trained_net(1)

def trained_net(seed):
    net = Net(32, 1, 5)
    net(torch.zeros(2, 1, 32, 32))
    with torch.no_grad():
        for i, p in enumerate(net.parameters()): p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(9*seed + i))*.3)
    return net.eval()

def test_rejection_takes_exactly_what_it_should():
    "Against a loop that looks at one candidate after another"
    n, least = [7, 40, 3, 0, 300], .6
    pool = sample_pool(Stripes(), n, Reader(), least, vocab=emotions, progress=False)
    for c in range(5):
        z = class_noise(4*_block, 4, c)
        right = (z[:, 0].abs() <= .7).nonzero()[:n[c], 0]            # what shows its class, in the order of the candidates
        want = ((Stripes()(z[right], torch.full((len(right),), c)) + 1)*127.5).round().to(torch.uint8)
        assert torch.equal(pool.x[pool.y == c], want)
        assert pool.about['filters'][-1]['candidates'][c] == (int(right[-1]) + 1 if n[c] else 0)
    assert pool.about['filters'][-1]['kept'] == n

@pytest.fixture(scope='module')
def t(gan, judge): return confidence_thresholds(judge, sample_pool(gan, 200, seed=99, progress=False), .8)       # what four in five reach

def test_draws_begin_alike(gan, judge, t):
    long = sample_pool(gan, 300, judge, t, seed=1, progress=False)
    for n in (1, 5, 256):
        short = sample_pool(gan, n, judge, t, seed=1, progress=False)
        assert all(torch.equal(short.x[short.y == c], long.x[long.y == c][:n]) for c in range(5))
    assert sample_pool(gan, 5, judge, t, seed=2, progress=False).hash != sample_pool(gan, 5, judge, t, seed=1, progress=False).hash

def test_draw_without_a_filter_is_the_generators_output(gan):
    y = torch.arange(5).repeat_interleave(20)
    z = torch.cat([class_noise(20, gan.params['nz'], c, 4) for c in range(5)])
    for noise_std in (1., 1.7):
        pool = sample_pool(gan, 20, noise_std=noise_std, seed=4, progress=False)
        made = generate(gan, shape_noise(z, noise_std), y)
        assert (pool.x.int() - made.int()).abs().max() <= 1 and torch.equal(pool.y, y)

def test_colour(judge):
    pool = sample_pool(GAN(size=32, channels=3, nf=16, nz=8), 3, progress=False)
    assert pool.x.shape == (15, 3, 32, 32) and pool.x.is_contiguous()

def test_nothing_global_is_touched(gan, judge):
    "Neither the state of random numbers nor the mode of the nets"
    net, state = trained_net(2).train(), torch.get_rng_state()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    gan.train()
    sample_pool(gan, 4, net, 0., progress=False)
    label_confidence(net, drawn_faces(50, 1))
    assert torch.equal(state, torch.get_rng_state()) and net.training and gan.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()), 'a judge in train mode would move its batch statistics'
    gan.eval()

def test_provenance_tells_pools_apart(gan, judge, t):
    "Whatever changes the images changes what a record says of them; and it can be hashed"
    kw, twin = dict(model=judge, threshold=t*.5, progress=False), trained_net(1)
    with torch.no_grad(): next(twin.parameters()).mul_(1.001)
    pools = [sample_pool(gan, 4, **kw), sample_pool(gan, 4, **{**kw, 'threshold': t*.4}), sample_pool(gan, 4, **kw, noise_std=1.2), sample_pool(gan, 4, **kw, seed=1),
             sample_pool(gan, 4, progress=False), sample_pool(gan, 4, **{**kw, 'model': twin})]
    other = copy.deepcopy(gan)
    with torch.no_grad(): next(other.ema.parameters()).mul_(1.001)
    pools.append(sample_pool(other, 4, **kw))
    assert len({hash_of(p.about) for p in pools}) == len(pools)
    assert sample_pool(gan, 4, **kw).about == pools[0].about

def test_unfillable_class_is_one_sentence():
    with pytest.raises(BadInput, match="Only 0 of .* candidates for 'fear' reach the threshold 1.00, but 3 are wanted") as e:
        sample_pool(Stripes(), 3, Reader(), 1., vocab=emotions, progress=False)
    assert '\n' not in str(e.value)

def test_hopeless_classes_are_given_up_soon_and_hard_ones_are_not():
    n_seen = []
    class Counting(Reader):
        def forward(self, x):
            n_seen.append(len(x))
            return super().forward(x)
    with pytest.raises(BadInput, match='of 2,560 candidates'): sample_pool(Stripes(), 5000, Counting(), 1., progress=False)
    assert sum(n_seen[1:]) == 2560                       # the first two show that it takes such images
    share = (class_noise(30_000, 4, 0)[:, 0].abs() > 1.8).double().mean()
    assert .06 < share < .08                                                             # of the images of the next generator
    class Rare(Stripes):
        def forward(self, z, y): return super().forward(torch.where(z[:, :1].abs() > 1.8, 0., 2.)*torch.ones_like(z), y)
    assert len(sample_pool(Rare(), 700, Reader(), .6, progress=False)) == 3500

@pytest.mark.parametrize('share', [.1, .25, .5, .9, 1.])
def test_thresholds_pass_the_share(judge, share):
    "At least `share` of the real images of each class, and no more than ties demand"
    valid = drawn_faces(203, 2)
    conf, t = label_confidence(judge, valid), confidence_thresholds(judge, valid, share)
    for c in range(5):
        own = conf[valid.y == c]
        assert (own >= t[c]).double().mean() >= share - 1e-12 and (own > t[c]).double().mean() < share

def test_pool_on_disk_goes_into_a_mixture(gan, judge, t, tmp_path):
    pool = sample_pool(gan, 30, judge, t, vocab=emotions, progress=False)
    pool.save(tmp_path/'pool')
    real, back = drawn_faces(100, 3), Dataset.load(tmp_path/'pool')
    assert torch.equal(mix(real, back, .4).x, mix(real, pool, .4).x) and back.about == pool.about and back.hash == pool.hash

# refreshed during training

class Stop(Callback):
    order = 80
    def __init__(self, at): self.at = at
    def after_epoch(self):
        if self.epoch == self.at: raise KeyboardInterrupt

class Hashes(Callback):
    "The hash of the training images in each epoch"
    order = 90
    def __init__(self): self.found = {}
    def before_batch(self):
        if self.training: self.found.setdefault(self.epoch, hash_array(self.dls.train.dataset.x))

class Dense(nn.Sequential):
    def __init__(self, size, channels, n_classes): super().__init__(nn.Flatten(), nn.Linear(channels*size**2, n_classes))

def train(mixed, refresh, path=None, more=(), dls=None, epochs=7):
    hashes, dls = Hashes(), dls or device_dls(mixed, drawn_faces(10, 8), bs=20, device='cpu')
    learn = cnn_learner(dls, arch=Recipe(Dense, lr=1e-3, epochs=epochs, min_steps=0), cbs=[refresh, hashes, *more])
    with learn.no_bar(), learn.no_logging():
        try: learn.fit_recipe(path=path, every=0)
        except KeyboardInterrupt: pass
    return {k: v.clone() for k, v in learn.model.state_dict().items()}, hashes.found

@pytest.fixture(scope='module')
def mixed(gan): return mix(drawn_faces(60, 4), sample_pool(gan, 20, vocab=emotions, progress=False), .5)

@pytest.mark.parametrize('stop', range(6))
def test_refresh_resumes_exactly(gan, mixed, tmp_path, stop):
    "Killed after any epoch, in the middle of a round or at its end"
    whole, found = train(mixed, RefreshSynthetic(gan, 3))
    _, first = train(mixed, RefreshSynthetic(gan, 3), tmp_path/'c.safetensors', [Stop(stop)])
    resumed, second = train(mixed, RefreshSynthetic(gan, 3), tmp_path/'c.safetensors')
    assert min(second) == stop + 1 and {**first, **second} == found
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)
    assert [len({found[i] for i in r}) for r in (range(3), range(3, 6))] == [1, 1] and len(set(found.values())) == 3

def test_refresh_restores_the_training_set(gan, mixed):
    "After a training, and after one that was interrupted and restarted with the same loaders"
    before, dls = mixed.x.clone(), device_dls(mixed, drawn_faces(10, 8), bs=20, device='cpu')
    whole, found = train(mixed, RefreshSynthetic(gan), dls=dls)
    assert torch.equal(dls.train.dataset.x, before) and torch.equal(mixed.x, before)
    train(mixed, RefreshSynthetic(gan), more=[Stop(3)], dls=dls)
    again, found_again = train(mixed, RefreshSynthetic(gan), dls=dls)
    assert found_again == found and all(torch.equal(again[k], whole[k]) for k in whole)

def test_refresh_changes_synthetic_items_only(gan, mixed):
    dls, cb, new = device_dls(mixed, bs=20, device='cpu'), RefreshSynthetic(gan, 2, seed=5), mixed.is_synthetic
    train(mixed, cb, dls=dls, epochs=1)
    one, two = cb._redrawn(1), cb._redrawn(2)
    assert torch.equal(one[~new], mixed.x[~new]) and not torch.equal(one, two)
    assert torch.equal(one, cb._redrawn(1)), 'a round depends on its number only'
    again = sample_pool(gan, mixed.y[new].bincount(minlength=5).tolist(), seed='5, round 1', progress=False)
    for c in range(5): assert torch.equal(one[new & (mixed.y == c)], again.x[again.y == c])

def test_refresh_refuses(gan, mixed, judge):
    with pytest.raises(BadInput, match='No training item is synthetic'): train(drawn_faces(60, 4), RefreshSynthetic(gan))
    with pytest.raises(BadInput, match='give both or neither'): RefreshSynthetic(gan, model=judge)
    learn = cnn_learner(device_dls(mixed, bs=20, device='cpu'), arch=Recipe(Dense, lr=1e-3, epochs=1))
    with pytest.raises(BadInput, match='no soft labels'): train(soft_labels(mixed, learn.model), RefreshSynthetic(gan))
    with pytest.raises(BadInput, match='cannot filter its own training data'): learn.fit(1, cbs=RefreshSynthetic(gan, model=learn.model, threshold=0.))

# made elsewhere

def test_folder_becomes_a_pool(faces, tmp_path):
    "The faces that the tests share act as a vendor's images"
    own = prepare('folder', faces, size=32, channels=1, root=tmp_path).select(emotions)
    pool = pool_from_folder(faces, emotions, 32, made_by='a vendor', out=tmp_path)
    assert pool.y.bincount().tolist() == [20]*5 and torch.equal(pool.x, own.x) and torch.equal(pool.y, own.y)
    assert len(mix(own, pool, .5)) == 100

def test_folder_with_copies_of_test_images_is_refused(faces, tmp_path):
    own = prepare('folder', faces, size=32, channels=1, root=tmp_path)
    get = lambda against: pool_from_folder(faces, emotions, 32, made_by='a vendor', against=against, out=tmp_path)
    with pytest.raises(BadInput, match='3 of the 100 images of the pool are copies of real ones') as e: get([own.x[:0], own.x[10:13]])
    assert own.names[10].split('/')[-1] in str(e.value) and '\n' not in str(e.value)
    assert len(get(255 - own.x)) == 100

def test_folder_without_a_class(faces, tmp_path):
    shutil.copytree(faces, tmp_path/'f')
    shutil.rmtree(tmp_path/'f'/'sad')
    get = lambda: pool_from_folder(tmp_path/'f', emotions, 32, made_by='a vendor', out=tmp_path)
    with pytest.raises(BadInput, match="no class 'sad'"): get()
    (tmp_path/'f'/'sad').mkdir()
    with pytest.raises(BadInput, match='sad'): get()

def test_a_number_of_any_kind():
    import numpy as np
    from synthrob.gan.learner import per_class
    assert per_class(np.int64(5), 3) == per_class(5, 3) == [5, 5, 5]

def test_a_gan_keeps_the_names_of_its_classes(toy_gan, toy_cnn, tmp_path):
    "Without them, a mixture with a set whose classes have another order would go through, with wrong labels"
    save_gan(toy_gan.model, tmp_path/'gan.safetensors')
    gan = load_gan(tmp_path/'gan.safetensors')
    assert sample_pool(gan, 1, progress=False).vocab == emotions
    turned, differ = drawn_faces(50, 3).select(sorted(emotions)), pytest.raises(BadInput, match='in one order')
    with differ: mix(turned, sample_pool(gan, 10, progress=False), .5)
    named = sample_pool(gan, 10, vocab=turned.vocab, progress=False)                   # the caller insists
    learn = cnn_learner(mix(turned, named, .5), turned, arch=recipe('poster', epochs=1, bs=16), device='cpu')
    with differ, learn.no_bar(), learn.no_logging(): learn.fit_recipe(1, cbs=[RefreshSynthetic(gan)])
    other = cnn_learner(turned, turned, arch=recipe('poster', epochs=1, bs=16), device='cpu')
    with differ: sample_pool(gan, 1, other, 0., progress=False)
    with differ: RefreshSynthetic(gan, model=other, threshold=0.)
    assert len(sample_pool(gan, 1, toy_cnn, 0., progress=False)) == 5
