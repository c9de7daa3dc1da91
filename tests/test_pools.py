"Pools: drawn alike whatever the batch, filtered, renewed during a training that is killed, and brought from elsewhere"
from __future__ import annotations
import copy, shutil
import pytest, torch
from torch import nn
from fastai.callback.core import Callback
from synthrob.cnn.learner import Recipe, cnn_learner
from synthrob.core.basics import BadInput, hash_array, hash_of
from synthrob.data.core import prepare
from synthrob.data.faces import draw_faces, emotions
from synthrob.gan.learner import class_noise, synthesize
from synthrob.data.dataset import Dataset
from synthrob.data.loaders import device_dls
from synthrob.gan.nets import GAN
from synthrob.gan.pools import (BLOCK, Fresh, acceptance, draw, load_pool, own_confidence, pool_from_folder, refine,
                            save_pool, thresholds)
from synthrob.split.core import mix

class Net(nn.Sequential):
    "A classifier that is made in no time; its BatchNorm would tell if it were asked in train mode"
    def __init__(self, size, channels, n_classes):
        super().__init__(nn.Conv2d(channels, 8, 5, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(n_classes))

class Stripes(nn.Module):
    "A generator whose images tell their class and noise: a grey for the class, off by 0, 1 or 2 classes as the noise says"
    params = dict(size=32, channels=1, n_classes=5, nz=4, nf=16)
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

def drawn(n, seed):
    y = torch.arange(n) % 5
    return Dataset(draw_faces(y, size=32, seed=seed, progress=False), y, emotions)

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
    pool = draw(Stripes(), n, Reader(), least, vocab=emotions, progress=False)
    for c in range(5):
        z = class_noise(4*BLOCK, 4, c)
        right = (z[:, 0].abs() <= .7).nonzero()[:n[c], 0]            # what shows its class, in the order of the candidates
        want = ((Stripes()(z[right], torch.full((len(right),), c)) + 1)*127.5).round().to(torch.uint8)
        assert torch.equal(pool.x[pool.y == c], want)
        assert acceptance(pool).looked.iloc[c] == (int(right[-1]) + 1 if n[c] else 0)
    assert acceptance(pool).kept.tolist() == n

@pytest.fixture(scope='module')
def t(gan, judge): return thresholds(judge, draw(gan, 200, seed=99, progress=False), .8)       # what four in five reach

def test_draws_begin_alike(gan, judge, t):
    long = draw(gan, 300, judge, t, seed=1, progress=False)
    for n in (1, 5, 256):
        short = draw(gan, n, judge, t, seed=1, progress=False)
        assert all(torch.equal(short.x[short.y == c], long.x[long.y == c][:n]) for c in range(5))
    assert draw(gan, 5, judge, t, seed=2, progress=False).hash != draw(gan, 5, judge, t, seed=1, progress=False).hash

def test_draw_without_a_filter_is_synthesize(gan):
    for spread in (1., 1.7):
        x, y = synthesize(gan, 20, 4, progress=False, spread=spread)
        pool = draw(gan, 20, spread=spread, seed=4, progress=False)
        assert (pool.x.int() - x.int()).abs().max() <= 1 and torch.equal(pool.y, y)

def test_colour(judge):
    pool = draw(GAN(size=32, channels=3, nf=16, nz=8), 3, progress=False)
    assert pool.x.shape == (15, 3, 32, 32) and pool.x.is_contiguous()

def test_nothing_global_is_touched(gan, judge):
    "Neither the state of random numbers nor the mode of the nets"
    net, state = trained_net(2).train(), torch.get_rng_state()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    gan.train()
    draw(gan, 4, net, 0., progress=False)
    own_confidence(net, drawn(50, 1))
    assert torch.equal(state, torch.get_rng_state()) and net.training and gan.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()), 'a judge in train mode would move its batch statistics'
    gan.eval()

def test_provenance_tells_pools_apart(gan, judge, t):
    "Whatever changes the images changes what a record says of them; and it can be hashed"
    kw, twin = dict(model=judge, threshold=t*.5, progress=False), trained_net(1)
    with torch.no_grad(): next(twin.parameters()).mul_(1.001)
    pools = [draw(gan, 4, **kw), draw(gan, 4, **{**kw, 'threshold': t*.4}), draw(gan, 4, **kw, spread=1.2), draw(gan, 4, **kw, seed=1),
             draw(gan, 4, progress=False), draw(gan, 4, **{**kw, 'model': twin})]
    other = copy.deepcopy(gan)
    with torch.no_grad(): next(other.ema.parameters()).mul_(1.001)
    pools.append(draw(other, 4, **kw))
    assert len({hash_of(p.provenance) for p in pools}) == len(pools)
    assert draw(gan, 4, **kw).to_dict() == pools[0].to_dict()

def test_unfillable_class_is_one_sentence():
    with pytest.raises(BadInput, match="drawn as 'fear' only 0 reach the threshold 1.00, and 3 are wanted") as e:
        draw(Stripes(), 3, Reader(), 1., vocab=emotions, progress=False)
    assert '\n' not in str(e.value)

def test_hopeless_classes_are_given_up_soon_and_hard_ones_are_not():
    looked = []
    class Counting(Reader):
        def forward(self, x):
            looked.append(len(x))
            return super().forward(x)
    with pytest.raises(BadInput, match='Of 2,560 images'): draw(Stripes(), 5000, Counting(), 1., progress=False)
    assert sum(looked) == 2560
    share = (class_noise(30_000, 4, 0)[:, 0].abs() > 1.8).double().mean()
    assert .06 < share < .08                                                             # of the images of the next generator
    class Rare(Stripes):
        def forward(self, z, y): return super().forward(torch.where(z[:, :1].abs() > 1.8, 0., 2.)*torch.ones_like(z), y)
    assert len(draw(Rare(), 700, Reader(), .6, progress=False)) == 3500

@pytest.mark.parametrize('share', [.1, .25, .5, .9, 1.])
def test_thresholds_pass_the_share(judge, share):
    "At least `share` of the real images of each class, and no more than ties demand"
    valid = drawn(203, 2)
    conf, t = own_confidence(judge, valid), thresholds(judge, valid, share)
    for c in range(5):
        own = conf[valid.y == c]
        assert (own >= t[c]).double().mean() >= share - 1e-12 and (own > t[c]).double().mean() < share

def test_pool_on_disk_goes_into_a_mixture(gan, judge, t, tmp_path):
    pool = draw(gan, 30, judge, t, vocab=emotions, progress=False)
    save_pool(pool, tmp_path/'pool')
    real, back = drawn(100, 3), load_pool(tmp_path/'pool')
    assert torch.equal(mix(real, back, .4).x, mix(real, pool, .4).x) and back.to_dict() == pool.to_dict()
    (tmp_path/'pool'/'pool.json').unlink()
    with pytest.raises(BadInput, match='holds no pool'): load_pool(tmp_path/'pool')

# Fresh

class Stop(Callback):
    order = 80
    def __init__(self, at): self.at = at
    def after_epoch(self):
        if self.epoch == self.at: raise KeyboardInterrupt

class Watch(Callback):
    "Hash of the training images in each epoch that was trained"
    order = 90
    def __init__(self): self.seen = {}
    def before_batch(self):
        if self.training: self.seen.setdefault(self.epoch, hash_array(self.dls.train.dataset.x))

def train(mixed, fresh, path=None, more=(), dls=None, epochs=7):
    watch = Watch()
    dls = dls or device_dls(mixed, drawn(10, 8), bs=20, device='cpu')
    recipe = Recipe(Dense, lr=1e-3, epochs=epochs)
    learn = cnn_learner(dls, arch=recipe, cbs=[*([fresh] if fresh else []), watch, *more])
    with learn.no_bar(), learn.no_logging():
        try: learn.fit_recipe(path=path, every=0)
        except KeyboardInterrupt: pass
    return {k: v.clone() for k, v in learn.model.state_dict().items()}, watch.seen

class Dense(nn.Sequential):
    def __init__(self, size, channels, n_classes): super().__init__(nn.Flatten(), nn.Linear(channels*size**2, n_classes))

@pytest.fixture(scope='module')
def mixed(gan): return mix(drawn(60, 4), draw(gan, 20, vocab=emotions, progress=False), .5)

@pytest.mark.parametrize('stop', range(6))
def test_fresh_resumes_exactly(gan, mixed, tmp_path, stop):
    "Killed after any epoch, in the middle of a round or at its end"
    whole, seen = train(mixed, Fresh(gan, mixed.filled, 3))
    _, first = train(mixed, Fresh(gan, mixed.filled, 3), tmp_path/'c.safetensors', [Stop(stop)])
    resumed, second = train(mixed, Fresh(gan, mixed.filled, 3), tmp_path/'c.safetensors')
    assert min(second) == stop + 1 and {**first, **second} == seen
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)
    assert [len({seen[i] for i in r}) for r in (range(3), range(3, 6))] == [1, 1] and len(set(seen.values())) == 3

def test_fresh_leaves_what_it_was_given(gan, mixed):
    "After a training, and also when one was broken off and another begins with the same loaders"
    before, dls = mixed.x.clone(), device_dls(mixed, drawn(10, 8), bs=20, device='cpu')
    whole, seen = train(mixed, Fresh(gan, mixed.filled), dls=dls)
    assert torch.equal(dls.train.dataset.x, before) and torch.equal(mixed.x, before)
    train(mixed, Fresh(gan, mixed.filled), more=[Stop(3)], dls=dls)
    again, seen_again = train(mixed, Fresh(gan, mixed.filled), dls=dls)
    assert seen_again == seen and all(torch.equal(again[k], whole[k]) for k in whole)

def test_fresh_changes_synthetic_rows_only(gan, mixed):
    fresh = Fresh(gan, mixed.filled, 2, seed=5)
    train(mixed, fresh, epochs=1)
    one, two = fresh.redrawn(1), fresh.redrawn(2)
    assert torch.equal(one[~mixed.filled], mixed.x[~mixed.filled]) and not torch.equal(one, two)
    assert torch.equal(one, fresh.redrawn(1)), 'a round is what its number says'
    n = mixed.y[mixed.filled].bincount(minlength=5).tolist()
    again = draw(gan, n, seed='5, round 1', progress=False)
    for c in range(5): assert torch.equal(one[mixed.filled & (mixed.y == c)], again.x[again.y == c])

def test_fresh_from_a_larger_pool(gan, mixed):
    "Each round takes images of the pool, none twice, each with its own label"
    pool = draw(gan, 20, vocab=emotions, seed=7, progress=False)
    fresh = Fresh(pool, mixed.filled)
    train(mixed, fresh, epochs=1)
    x, rows = fresh.redrawn(1), {hash_array(x): int(c) for x, c in zip(pool.x, pool.y)}
    got = [(hash_array(x[i]), int(mixed.y[i])) for i in mixed.filled.nonzero()[:, 0]]
    assert len(set(got)) == len(got) == 30 and all(rows[h] == c for h, c in got)
    assert not torch.equal(x, fresh.redrawn(2))

def test_fresh_refuses(gan, mixed, judge):
    for make, sentence in [(lambda: Fresh(gan, torch.zeros(60, dtype=torch.bool)), 'No training image is synthetic'),
                           (lambda: Fresh(gan, mixed.filled[:-1]), 'filled marks 59'),
                           (lambda: Fresh(draw(gan, 3, progress=False), mixed.filled), 'The pool has 3 images of class'),
                           (lambda: Fresh(gan, mixed.filled, model=judge), 'give both or neither')]:
        with pytest.raises(BadInput, match=sentence): train(mixed, make())
    learn = cnn_learner(device_dls(mixed, bs=20, device='cpu'), Recipe(Dense, lr=1e-3, epochs=1))
    with pytest.raises(BadInput, match='is no judge'): learn.fit(1, cbs=Fresh(gan, mixed.filled, model=learn.model, threshold=0.))

def test_fresh_params_tell_trainings_apart(gan, mixed, judge):
    kw = [dict(), dict(every=2), dict(seed=1), dict(spread=2.), dict(model=judge, threshold=.1), dict(model=judge, threshold=[.1]*4 + [.2])]
    assert len({hash_of(Fresh(gan, mixed.filled, **k).params) for k in kw}) == len(kw)

# refine

def test_refine_asks_validation_and_nothing_else(gan):
    "What `fit` is given, which judge filters, and where it stops"
    real, valid, seen = drawn(50, 1), drawn(60, 2), []
    nets = [trained_net(i) for i in range(5)]
    def fit(images):
        seen.append(images)
        return nets[len(seen) - 1]
    scores = iter([.3, .4, .4])
    found = refine(gan, fit, real, valid, 4, rounds=4, share=.9, progress=False, score=lambda m, im: next(scores) if im is valid else 1/0)
    assert (found.best, found.helps, len(found.history)) == (1, True, 3) and found.model is nets[1]
    assert torch.equal(seen[0].x, real.x[:50]) and [len(o) for o in seen] == [50, 70, 70]
    for r in (1, 2):
        pool = draw(gan, 4, nets[r-1], thresholds(nets[r-1], valid, .9), seed=f'0, refinement {r}', vocab=emotions, progress=False)
        assert torch.equal(seen[r].x[50:], pool.x) and torch.equal(seen[r].x[:50], real.x)
    assert found.pool.provenance['refined'] == 1

def test_refine_survives_a_judge_that_is_too_strict():
    "In a later round it ends the search; in the first there is nothing to fall back on"
    real = draw(Stripes(), 20, Reader(), .6, vocab=emotions, progress=False)
    valid = real.subset(slice(None))
    valid.x = real.x.clone()
    valid.x[:, :, 0, 0] = 255                                       # so sure of these that nothing the generator makes will do
    def run(*nets):
        nets, scores = iter(nets), iter([.1, .2, .3])
        return refine(Stripes(), lambda _: next(nets), real, valid, 4, rounds=2, share=1., progress=False, score=lambda *_: next(scores))
    found = run(Reader(), Corner())
    assert (found.best, found.helps, len(found.history), len(found.pool)) == (1, True, 2, 20)
    with pytest.raises(BadInput, match='only 0 reach'): run(Corner())

# pools from elsewhere

def test_folder_becomes_a_pool(faces, tmp_path):
    "The twenty faces of each expression that the tests share play a vendor's images"
    own = prepare('folder', faces, None, 32, 1, tmp_path).select(emotions)
    pool = pool_from_folder(faces, emotions, 32, made_by='a vendor', out=tmp_path)
    assert pool.counts.tolist() == [20]*5 and torch.equal(pool.x, own.x) and torch.equal(pool.y, own.y)
    assert len(mix(own, pool, .5)) == 100

def test_folder_with_copies_of_test_images_is_refused(faces, tmp_path):
    own = prepare('folder', faces, None, 32, 1, tmp_path)
    get = lambda against: pool_from_folder(faces, emotions, 32, made_by='a vendor', against=against, out=tmp_path)
    with pytest.raises(BadInput, match='3 of the 100 images .* are copies of real ones') as e: get([own.x[:0], own.x[10:13]])
    assert own.names[10].split('/')[-1] in str(e.value) and '\n' not in str(e.value)
    assert len(get(255 - own.x)) == 100

def test_folder_without_a_class(faces, tmp_path):
    shutil.copytree(faces, tmp_path/'f')
    shutil.rmtree(tmp_path/'f'/'sad')
    get = lambda: pool_from_folder(tmp_path/'f', emotions, 32, made_by='a vendor', out=tmp_path)
    with pytest.raises(BadInput, match="no class 'sad'"): get()
    (tmp_path/'f'/'sad').mkdir()
    with pytest.raises(BadInput, match='sad'): get()
