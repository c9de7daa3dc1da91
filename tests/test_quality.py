"Metrics of synthetic images: invariants, equality with torchmetrics, planted copies, and the best weights of a killed training"
from __future__ import annotations
import io, json, math, shutil, warnings
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fastai.callback.core import Callback
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchvision.models import inception_v3
import synthrob.gan.metrics as metrics
from conftest import drawn_faces
from synthrob.cnn.models import PosterNet, StrongNet, Torchvision
from synthrob.core.basics import BadInput, seeded, write_tensors
from synthrob.data.faces import draw_faces, emotions
from synthrob.gan.learner import gan_learner
from synthrob.data.dataset import Dataset
from synthrob.data.loaders import device_dls
from synthrob.gan.memorization import CopyReport, _some, evaluate_pool, find_copies
from synthrob.gan.metrics import (SaveBestGAN, cas, features, fid, gan_test, intra_class, kid, prdc, score)
from synthrob.gan.pools import sample_pool
from synthrob.split.features import pretrained

def faces(n, seed, size=32, channels=1):
    y = torch.arange(n) % 5
    return Dataset(draw_faces(y, size=size, channels=channels, seed=seed, progress=False), y, emotions)

def cloud(n, d, seed, rank=None, shift=0.):
    "Correlated features of `rank` without negative ones, as a ReLU leaves them; a tenth of the units is dead"
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(rank or d, d, generator=torch.Generator().manual_seed(99))
    f = (torch.randn(n, rank or d, generator=g) @ mix/math.sqrt(rank or d) + shift).relu()
    f[:, :d//10] = 0
    return f

class Given(nn.Module):
    "Passes given features to torchmetrics in place of Inception's"
    def __init__(self, d): super().__init__(); self.num_features = d
    def forward(self, x): return x.flatten(1).float()

def theirs(metric, a, b, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        m = metric(Given(a.shape[1]), normalize=True, **kwargs)
    for o, real in ((a, True), (b, False)): m.update(o[:, None, None], real=real)
    return m.compute()

@pytest.mark.parametrize('n, m, d, rank', [(500, 500, 64, None), (400, 700, 200, 20), (60, 90, 128, None), (1500, 1500, 256, 40)])
def test_equals_torchmetrics(n, m, d, rank):
    "Also without full rank, and with fewer images than features"
    a, b = cloud(n, d, 1, rank), cloud(m, d, 2, rank, shift=.2)
    assert fid(a, b) == pytest.approx(theirs(FrechetInceptionDistance, a, b, input_img_size=(1, 1, d)).item(), rel=1e-3)
    k = min(n, m)
    assert kid(a[:k], b[:k]) == pytest.approx(theirs(KernelInceptionDistance, a[:k], b[:k], subsets=1, subset_size=k)[0].item(), rel=1e-3)

@pytest.mark.parametrize('n, d', [(500, 64), (40, 300)])
def test_distances_keep_their_laws(n, d):
    a, b = cloud(n, d, 1), cloud(n, d, 2, shift=.2)
    scale = a.double().T.cov().trace().item()
    assert abs(fid(a, a)) < 1e-6*scale and fid(a, b) == pytest.approx(fid(b, a), rel=1e-6)
    assert fid(3*a, 3*b) == pytest.approx(9*fid(a, b), rel=1e-6)
    turn = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(3)).double()).Q
    assert fid(a.double() @ turn, b.double() @ turn) == pytest.approx(fid(a, b), rel=1e-6)
    assert kid(a, b) == pytest.approx(kid(b, a)) and kid(a, a) < 0 < kid(a, b)
    p = prdc(a, a)
    assert p['precision'] == p['recall'] == p['coverage'] == 1

def test_blocks_change_nothing(monkeypatch):
    a, b = cloud(230, 32, 1), cloud(170, 32, 2, shift=.1)
    compute = lambda: (kid(a, b), prdc(a, b))
    whole, blocks = compute(), metrics._blocks
    monkeypatch.setattr(metrics, '_blocks', lambda n, m: blocks(n, m, 7*m))
    assert len(metrics._blocks(230, 170)) == 33
    small = compute()
    assert small[0] == pytest.approx(whole[0], rel=1e-9) and small[1] == pytest.approx(whole[1])

def test_memory_is_bounded():
    "No block is larger than 2**22 numbers, unless one row is"
    for n, m in ((25_000, 25_000), (5_000, 10**7), (3, 2)):
        sizes = [s.stop - s.start for s in metrics._blocks(n, m)]
        assert sum(sizes) == n and max(sizes)*m <= max(2**22, m)

@pytest.mark.parametrize('net, d', [(PosterNet(32), 128), (StrongNet(32, nf=8), 32), (Torchvision('resnet18')(32, 1, 5), 512),
                                    (Torchvision('efficientnet_b0')(32, 1, 5), 1280)])
def test_features_of_any_net(net, d):
    "The input of the last layer, in eval mode; the mode and the random numbers of the caller stay as they are"
    x, state = faces(30, 1).x, torch.get_rng_state()
    net.train()
    f, z = features(net, x, bs=7)
    assert net.training and torch.equal(state, torch.get_rng_state()) and f.shape == (30, d) and z.shape == (30, 5)
    assert not any(m._forward_hooks for m in net.modules())
    again = features(net, x, bs=30)
    for u, v in zip((f, z), again): torch.testing.assert_close(u, v, rtol=1e-4, atol=1e-4)
    with torch.no_grad(): torch.testing.assert_close(z, net.eval()(x/255), rtol=1e-4, atol=1e-4)

def test_no_features():
    with pytest.raises(BadInput, match='does not end in an nn.Linear'): features(Torchvision('squeezenet1_0')(64, 1, 5), faces(2, 1, 64).x)
    x = faces(2, 1).x
    with pytest.raises(BadInput, match='n at least 1'): features(PosterNet(32), x[:0])
    floats = x/255
    with pytest.raises(BadInput, match='uint8'): features(PosterNet(32), floats)
    assert torch.equal(floats, x/255)                                         # not divided by 255 again, in place

@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_every_metric_refuses_what_is_not_finite(bad):
    f, net, images = cloud(60, 8, 1), PosterNet(32), faces(60, 1)
    spoilt, y = f.clone(), torch.arange(60) % 5
    spoilt[7, 3] = bad
    net[-1].weight.data[2, 5] = bad
    train = lambda images: net
    for metric in (fid, kid, lambda a, b: prdc(a, b, 3), lambda a, b: intra_class(kid, a, y, b, y), lambda a, b: score(b, images),
                   lambda a, b: score(a, images), lambda a, b: features(net, images.x), lambda a, b: gan_test(net, images),
                   lambda a, b: cas(train, images, images), lambda a, b: evaluate_pool(images, images, images, net, progress=False)):
        for pair in (f, spoilt), (spoilt, f), (spoilt, spoilt):
            if metric.__code__.co_names[0] == 'score': pair = spoilt, spoilt
            with pytest.raises(BadInput, match='^Some features are NaN or infinite: check the classifier and the images.$'): metric(*pair)

def jpeg(im):
    f = io.BytesIO()
    Image.fromarray(im.permute(1, 2, 0).squeeze().numpy()).save(f, 'JPEG', quality=30)
    return torch.tensor(np.array(Image.open(f))).reshape(*im.shape[1:], -1).permute(2, 0, 1)

def zoomed(x):
    big = nn.functional.interpolate(x.float(), scale_factor=1.08, mode='bicubic', antialias=True).round().clamp(0, 255).byte()
    a = (big.shape[-1] - x.shape[-1])//2
    return big[..., a:a+x.shape[-2], a:a+x.shape[-1]]

change = dict(shifted=lambda x: nn.functional.pad(x, (0, 0, 1, 0), mode='replicate')[..., :-1, :], zoomed=zoomed,
              mirrored=lambda x: x.flip(-1), compressed=lambda x: torch.stack([jpeg(im) for im in x]), darker=lambda x: x//2,
              noisy=lambda x: (x + 10*torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255).byte())

@pytest.mark.parametrize('size, channels', [(48, 1), pytest.param(64, 3, marks=pytest.mark.slow)])
def test_planted_copies(size, channels):
    "Changed copies are found and fresh faces pass; no sentence reassures where one image in ten is a copy"
    train, holdout, fresh = (faces(n, s, size, channels) for n, s in ((150, 1), (100, 2), (100, 3)))
    x = torch.cat([f(train.x[20*i:20*i+20]) for i, f in enumerate(change.values())])
    m = find_copies(Dataset(torch.cat([x, fresh.x]), torch.cat([train.y[:120], fresh.y]), emotions), train, holdout)
    found = m.pairs[m.pairs.near & (m.pairs.a < 120)]
    assert (found.a == found.b).sum() >= 114 and m.memorises and 'The generator memorises' in m.sentence
    few = Dataset(torch.cat([change['shifted'](train.x[:10]), fresh.x[10:]]), fresh.y, emotions)
    assert 'No sign' not in find_copies(few, train, holdout).sentence
    m = find_copies(fresh, train, holdout)
    assert not m.memorises and m.share < m.expected + .05, m.sentence

def test_copies_in_the_holdout_part_do_not_set_the_level():
    "Holdout images that show a training image are left out, though they are moved"
    train, holdout = faces(150, 1, 48), faces(100, 2, 48)
    leaked = Dataset(torch.cat([change['shifted'](train.x[:30]), holdout.x[30:]]), holdout.y, emotions)
    pool = Dataset(change['shifted'](train.x[100:140]), train.y[100:140], emotions)
    assert find_copies(pool, train, leaked).share > .9
    with pytest.raises(BadInput, match='split without leaks'): find_copies(pool, train, train.subset(range(50)))
    with pytest.raises(BadInput, match='has no images'): find_copies(pool.subset([]), train, holdout)

def test_a_class_that_the_sample_lacks():
    "Each class has a row, though no image of it was compared"
    train, holdout, pool = (faces(n, s, 48) for n, s in ((50, 1), (50, 2), (60, 3)))
    few = find_copies(pool.subset(pool.y < 4), train, holdout, n=10).by_class
    assert list(few.index) == emotions and few.n_pool.tolist()[-1] == 0 and few.n_pool.sum() == 10
    assert few.iloc[-1][['score', 'c_t', 'near_copies']].isna().all()

def test_words_never_reassure_about_copies():
    "Neither a strongly negative C_T nor a few sure copies are called no sign"
    same = dict(share=.01, expected=.01, p=.5, c_t=0., by_class=None, pairs=None, sure=0, n=1000)
    words = lambda **kw: CopyReport(**same | kw).sentence
    assert words().startswith('No sign of copies: 1.0% of 1,000 synthetic images')
    assert words(c_t=-3.1).startswith('Nearer to the training images') and 'but check the nearest pairs' in words(sure=1)
    assert words(sure=11).startswith('Some images may be copies') and words(p=1e-5).startswith('Some images may be copies')
    assert words(p=1e-5, share=.06, c_t=9.).startswith('The generator memorises')
    assert words(p=1e-5, share=.24, sure=220, left_out=.2).startswith('Some images may be copies')     # as holdout images

@pytest.fixture(scope='module')
def net():
    with seeded('judge'): return PosterNet(32).eval()

def test_pool_report(net):
    train, holdout, pool = faces(300, 1), faces(100, 2), faces(150, 3)
    q = evaluate_pool(pool, train, holdout, net, fit=lambda images: net, progress=False)
    s = q.summary
    f, fh = features(net, pool.x)[0], features(net, holdout.x)[0]
    assert s['fid'] == fid(fh, f) and s['kid'] == kid(fh, f) and s['intra_fid'] == intra_class(fid, fh, holdout.y, f, pool.y)[0]
    assert s['cas'] == s['accuracy_real'] and s['gan_test'] == gan_test(net, pool).accuracy and s['n_real'] == 150
    assert json.loads(json.dumps(q.to_dict())) == q.to_dict() and list(q.by_class.index) == emotions
    assert q.by_class.fid.mean() == pytest.approx(s['intra_fid'])
    again = evaluate_pool(pool, train, holdout, net, bs=33, progress=False).summary
    for k in s:
        if k != 'cas': assert again[k] == pytest.approx(s[k], rel=1e-3, abs=1e-6), k
    mixed = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    shuffled = evaluate_pool(Dataset(pool.x[mixed], pool.y[mixed], emotions), train, holdout, net, progress=False).summary
    assert shuffled['intra_fid'] == pytest.approx(s['intra_fid'], rel=1e-4) and shuffled['near_copies'] == s['near_copies']

def test_a_perfect_pool_has_the_figures_of_real_images(net, monkeypatch):
    "Though the pool has as many images of each class, more than the data, where one class is rare"
    def uneven(n, seed): return faces(n, seed).subset(((torch.arange(n) % 5 > 0) | (torch.arange(n) < n//8)).nonzero()[:, 0])
    monkeypatch.setattr('synthrob.gan.memorization.find_copies', lambda *_, **__: CopyReport(0., 0., 1., 0., pd.DataFrame(index=emotions), None, 0, 0))
    train, holdout = uneven(1200, 1), uneven(600, 2)
    q = evaluate_pool(faces(2400, 3), train, holdout, net, progress=False).summary
    assert (q['n_pool'], q['n_real']) == (2400, len(train))
    for k in 'fid', 'intra_fid': assert q[k] == pytest.approx(q[f'{k}_real'], rel=.1), k
    assert abs(q['gan_test'] - q['accuracy_real']) < .05

def test_pool_report_refuses(net):
    train, holdout, pool = faces(50, 1), faces(50, 2), faces(50, 3)
    part = lambda o, i: Dataset(o.x[i], o.y[i], o.vocab)
    with pytest.raises(BadInput, match="holdout has no image of class 'sad'"): evaluate_pool(pool, train, part(holdout, holdout.y != 3), net)
    with pytest.raises(BadInput, match='give two of each'): evaluate_pool(part(pool, slice(0, 9)), train, holdout, net, progress=False)
    with pytest.raises(BadInput, match='prepare them alike'): evaluate_pool(faces(50, 3, 48), train, holdout, net)
    with pytest.raises(BadInput, match='give the same classes'): cas(lambda o: net, Dataset(pool.x, pool.y, 'abcde'), holdout)

# the best weights of a GAN in training

def gan(net, real, epochs, path=None, cbs=(), every=1, keep=True, **kwargs):
    dls = device_dls(faces(100, 1), bs=20, n_steps=2, device='cpu')
    keep = SaveBestGAN(net, real, every, n=10, path=path and path/'best.safetensors', **kwargs) if keep else None
    learn = gan_learner(dls, nf=16, seed=1, cbs=keep)
    with learn.no_bar(), learn.no_logging():
        learn.fit_gan(epochs*40, path and path/'gan.safetensors', every=0, cbs=list(cbs))
    learn.model.steps = len(learn.recorder.losses)                       # of this call, without those before it was resumed
    return learn.model, keep

def test_it_does_not_disturb(net):
    "With and without: the same weights. The best weights are those of the lowest point of the curve"
    real = faces(50, 2)
    without, _ = gan(net, real, 4, keep=False)
    model, keep = gan(net, real, 4)
    for part in ('generator', 'discriminator'):
        for u, v in zip(*(getattr(m, part).state_dict().values() for m in (without, model))): assert torch.equal(u, v)
    assert keep.curve.images.tolist() == [40, 80, 120, 160] and keep.best[1] == keep.curve.intra_fid.min()
    model, keep = gan(net, real, 4, every=3)
    assert keep.curve.epoch.tolist() == [3, 4]
    made = sample_pool(model, 10, progress=False)
    x, y = made.x, made.y
    assert intra_class(fid, features(net, real.x)[0], real.y, features(net, x)[0], y)[0] == pytest.approx(keep.best[1], rel=1e-4)

class Killed(BaseException): pass

class Dies(Callback):
    "Keep a copy of the checkpoint of epoch `kept`, and die in epoch `at`"
    order = 72
    def __init__(self, path, kept, at): self.file, self.kept, self.at = path/'gan.safetensors', kept, at
    def after_epoch(self):
        if self.epoch + 1 == self.kept: shutil.copy(self.file, self.file.with_suffix('.copy'))
        if self.epoch + 1 == self.at: raise Killed

@pytest.mark.slow
@pytest.mark.parametrize('kept, at', [(1, 1), (1, 5), (3, 4), (5, 5)])
def test_killed_and_resumed(net, tmp_path, kept, at):
    "Curve, best and weights of an undisturbed training, also if the last checkpoint is epochs behind the curve"
    real = faces(50, 2)
    model, keep = gan(net, real, 6)
    with pytest.raises(Killed): gan(net, real, 6, tmp_path, [Dies(tmp_path, kept, at)])
    shutil.move(tmp_path/'gan.copy', tmp_path/'gan.safetensors')
    again, resumed = gan(net, real, 6, tmp_path)
    assert resumed.rows == keep.rows and resumed.best == keep.best and again.steps == 2*(6 - kept)
    for u, v in zip(model.state_dict().values(), again.state_dict().values()): assert torch.equal(u, v)
    finished, loaded = gan(net, real, 6, tmp_path)                       # nothing left to train
    assert loaded.rows == keep.rows and not finished.steps
    for u, v in zip(model.ema.state_dict().values(), finished.ema.state_dict().values()): assert torch.equal(u, v)
    with pytest.raises(BadInput, match='belongs to another training'): gan(net, faces(50, 3), 6, tmp_path)
    (tmp_path/'gan.safetensors').unlink()                                # a new training starts a new curve
    assert gan(net, real, 2, tmp_path)[1].curve.epoch.tolist() == [1, 2]

def test_best_refuses(net):
    with pytest.raises(BadInput, match='prepare them alike'): gan(net, faces(50, 2, 48), 1)
    with pytest.raises(BadInput, match='give two of each'): gan(net, Dataset(faces(9, 2).x, faces(9, 2).y, emotions), 1)

def test_a_classifier_of_other_classes_measures_distances_only():
    "Inception, for example, knows a thousand classes: FID and copies are measured, labels are not judged"
    with seeded('other classes', 0): other = PosterNet(32, 1, 9)
    pool, train, holdout = (faces(60, k) for k in (1, 2, 3))
    q = evaluate_pool(pool, train, holdout, other, progress=False)
    assert math.isnan(q.summary['gan_test']) and q.summary['fid'] > 0 and 'agrees' not in q.sentence and 'nan' not in q.sentence
    with pytest.raises(BadInput, match='has 9 classes and the images 5'): gan_test(other, pool)

def test_best_of_a_recipe_with_a_function_as_augmentation(net, tmp_path):
    best = SaveBestGAN(net, faces(50, 2), n=10, path=tmp_path/'best.safetensors')
    learn = gan_learner(device_dls(faces(100, 1), bs=20, n_steps=2, device='cpu'), nf=16, augment=lambda x, rng: x, cbs=best)
    with learn.no_bar(), learn.no_logging(): learn.fit_gan(40, tmp_path/'gan.safetensors')
    assert len(best.rows) == 1

def test_inception(tmp_path):
    "torchvision's weights, as safetensors or saved by torch; grey images of any size; no pickles"
    own = inception_v3(weights=None, aux_logits=False, init_weights=False)
    write_tensors(tmp_path/'i.safetensors', own.state_dict())
    torch.save(own.state_dict(), tmp_path/'i.pth')
    x = faces(2, 1).x
    a, b = (features(pretrained('inception_v3', tmp_path/o, px=299), x) for o in ('i.safetensors', 'i.pth'))
    assert a[0].shape == (2, 2048) and a[1].shape == (2, 1000) and torch.equal(a[0], b[0])
    torch.save(dict(fc=Killed()), tmp_path/'bad.pth')
    with pytest.raises(BadInput, match='no weights that can be read safely'): pretrained('inception_v3', tmp_path/'bad.pth')

def test_a_class_without_holdout_is_named():
    "It is neither cleared nor counted"
    train, pool, holdout = (drawn_faces(n, seed) for n, seed in ((100, 1), (50, 2), (100, 3)))
    rest = holdout.subset(holdout.y > 0)
    r = find_copies(pool, train, rest, progress=False)
    assert r.untested == (pool.vocab[0],) and f'not tested for want of holdout images: {pool.vocab[0]}' in r.sentence
    assert r.share == r.by_class.near_copies[1:].mean() and not find_copies(pool, train, holdout, progress=False).untested
    with pytest.raises(BadInput, match='No class of the pool has a new holdout image'): find_copies(pool.subset(pool.y == 0), train, rest, progress=False)

def test_rare_classes_are_among_the_holdout_images():
    holdout = SimpleNamespace(y=torch.tensor([0]*3000 + [1]*3))
    assert holdout.y[_some(holdout, 100, even=True)].bincount().tolist() == [97, 3]

def test_real_accuracy_is_for_the_pools_classes():
    "A pool of equal classes beside uneven validation"
    train, pool, holdout = (drawn_faces(n, seed) for n, seed in ((50, 1), (50, 2), (100, 3)))
    uneven = holdout.subset((holdout.y == 0) | (torch.arange(100) < 20))
    with seeded('net'): net = PosterNet(32, 1, 5)
    r = evaluate_pool(pool, train, uneven, net, progress=False)
    assert r.summary['accuracy_real'] == pytest.approx(r.by_class.accuracy_real.mean())
