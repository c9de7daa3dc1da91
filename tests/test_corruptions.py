"Compare corruptions with the package imagecorruptions and other instruction sets; reproduce FER-2013-C"
from __future__ import annotations
import importlib, importlib.util, json, math, os, subprocess, sys
from types import SimpleNamespace
import numpy as np, pytest, torch
from PIL import Image
from synthrob.cnn import corruptions as C
from synthrob.core.basics import BadInput
from synthrob.data.faces import draw_faces

@pytest.fixture(scope='module')
def theirs():
    "The functions of imagecorruptions"
    from bench import usual_corruptions
    try: usual_corruptions()
    except BadInput: pytest.skip('imagecorruptions is not installed: pip install -e ".[dev]" to compare with it')
    return importlib.import_module('imagecorruptions.corruptions')

@pytest.fixture(scope='module')
def faces(): return draw_faces(torch.arange(10) % 5, seed=3, progress=False)

@pytest.fixture(scope='module')
def colour(): return draw_faces(torch.arange(10) % 5, channels=3, seed=3, progress=False)

def draws(n): return C._Draw(C._keys(0, 'test', 1, torch.arange(n)))
def ours(name, x, **constants): return C._corruptions[name].f(x, SimpleNamespace(**constants), draws(len(x)))
def picture(im): return Image.fromarray(im.permute(1, 2, 0).numpy() if len(im) == 3 else im[0].numpy())

def each(f, x, severity):
    "Apply their `f` to each of the images `x`; return float (n,c,h,w)"
    out = torch.tensor(np.stack([np.asarray(f(picture(im), severity), dtype=float) for im in x]))
    return out[:, None] if out.ndim == 3 else out.permute(0, 3, 1, 2)

def most(a, b): return (a.double() - b.double()).abs().max().item()

@pytest.mark.parametrize('name,severity,constants,levels', [
    ('brightness', 3, dict(amount=.3), .51), ('contrast', 2, dict(factor=.3), .51), ('saturate', 4, dict(factor=5, offset=.1), .51),
    ('saturate', 1, dict(factor=.3, offset=0), .51), ('pixelate', 1, dict(cells=.6), 0), ('jpeg_compression', 3, dict(quality=15), 0),
    ('defocus_blur', 1, dict(radius=3, edge=.1, window=1), .6), ('defocus_blur', 2, dict(radius=4, edge=.5, window=1), .6)])
def test_without_chance(theirs, colour, name, severity, constants, levels):
    assert most(ours(name, colour, **constants), each(getattr(theirs, name), colour, severity)) <= levels

@pytest.mark.parametrize('angle', [-45, -30, -1, 0, 17, 45, -90, -135])
def test_motion(theirs, faces, angle):
    out = C._streak(faces.float(), 10, 3, torch.full((len(faces),), angle))
    for im, o in zip(faces, out):
        assert most(o[0], torch.tensor(theirs._motion_blur(im[0].numpy(), 10, 3, angle))) < .3

@pytest.mark.parametrize('name,severity,constants', [
    ('gaussian_noise', 2, dict(sd=.12)), ('shot_noise', 1, dict(photons=60)), ('speckle_noise', 2, dict(relative=.2)),
    ('impulse_noise', 2, dict(share=.06))])
def test_noise(theirs, name, severity, constants):
    np.random.seed(0)
    for level in 20, 128, 240:
        x = torch.full((40, 1, 64, 64), level, dtype=torch.uint8)
        a, b = ours(name, x, **constants).double(), each(getattr(theirs, name), x, severity)
        error = b.std()/math.sqrt(b.numel())
        assert abs(a.mean() - b.mean()) < 6*error, (a.mean(), b.mean())
        assert abs(a.std()/b.std() - 1) < .03

def test_fog(theirs, monkeypatch):
    monkeypatch.setattr(np, 'float_', np.float64, raising=False)   # numpy 2 lacks the name it uses
    d, steps = draws(1), []
    for k in 1, 2, 4, 8, 16, 32: steps += list(d(3, k, k)[0].double()/32768 - 1)
    def uniform(low, high, shape):
        step = steps.pop(0).numpy()
        assert step.shape == shape
        return step*high
    monkeypatch.setattr(np.random, 'uniform', uniform)
    assert most(C._plasma(draws(1), 48, 1.7)[0, 0], torch.tensor(theirs.plasma_fractal(64, 1.7))) < 1e-5

def test_elastic(theirs, faces, monkeypatch):
    x = faces[:1]
    d = draws(1)
    C._affine(d, 48, 0.)                                          # skip the draws of the affine map
    fields = list(C._centred(d, 2, 48, 48)[0]/65535)
    monkeypatch.setattr(np.random, 'uniform', lambda low, high, size: fields.pop(0).numpy()*high)
    b = each(theirs.elastic_transform, x, 5)
    a = ours('elastic_transform', x, alpha=250*.12, sigma=.48, noise=.24, shift=0.)
    steepest = max((x.float().diff(dim=k)).abs().max().item() for k in (2, 3))
    assert most(x, b) > 20                                         # the image has changed
    assert most(a, b) < 1 + steepest/32                             # half of 1/32 px in both directions

def test_glass(theirs, faces, monkeypatch):
    x, delta, rounds = faces[:1], 2, 3                             # their third severity, on one channel
    blur = theirs.gaussian
    monkeypatch.setattr(theirs, 'gaussian', lambda im, sigma, multichannel: np.round(blur(im, sigma)*255)/255)
    moves = list(draws(1).below(2*delta, rounds, (48 - 2*delta)**2, 2)[0].flatten(0, 1).flip(1))
    monkeypatch.setattr(np.random, 'randint', lambda low, high, size: moves.pop(0).numpy() - delta)
    b = each(theirs.glass_blur, x, 3)
    assert not moves and most(ours('glass_blur', x, sigma=1., delta=delta, rounds=rounds), b) <= 2   # they truncate

def test_snow(theirs):
    np.random.seed(0)
    x = torch.full((200, 3, 32, 32), 100, dtype=torch.uint8)
    b = each(theirs.snow, x, 1)
    a = ours('snow', x[:, :1], mean=.1, sd=.3, zoom=3, least=.5, radius=10, sigma=4, keep=.8).double()
    spread = b.mean((1, 2, 3)).std()
    assert abs(a.mean() - b.mean()) < spread and abs(a.mean((1, 2, 3)).std()/spread - 1) < .3

def test_spatter(theirs):
    np.random.seed(0)
    x = torch.full((200, 3, 48, 48), 60, dtype=torch.uint8)
    for severity, constants in (3, dict(mean=.65, sd=.3, sigma=2, least=.68, shine=.5, blur=0)), \
                               (4, dict(mean=.65, sd=.3, sigma=1, least=.65, shine=0, blur=1.5)):
        b, a = each(theirs.spatter, x, severity), torch.cat([ours('spatter', x[i:i+50], **constants) for i in (0, 50)])
        changed = [((o.double() - 60).abs() > 2).any(1).double().mean() for o in (a, b)]
        assert abs(changed[0]/changed[1] - 1) < .15, changed

def test_equal_constants_are_not_equal_strength():
    "As the page says: on a larger face noise, JPEG and pixelate change as much a pixel, and are milder in the same size"
    x, change = draw_faces(torch.arange(60) % 5, seed=3, progress=False), lambda a, b: (a.float() - b.float()).square().mean((1, 2, 3)).sqrt().mean().item()
    shrink = lambda x: torch.tensor(np.stack([np.array(picture(im).resize((32, 32), Image.BOX)) for im in x]))[:, None]
    small = shrink(x)
    def ratios(name, severity):
        out, at_32 = C.corrupt(x, name, severity), change(C.corrupt(small, name, severity), small)
        return change(out, x)/at_32, change(shrink(out), small)/at_32
    for s in 1, 3, 5:
        for name, own, seen in (('gaussian_noise', (.95, 1.05), (.7, .8)), ('jpeg_compression', (.75, 1.2), (.5, .8)),
                                ('pixelate', (.7, 1.2), (.4, .95)), ('fog', (.95, 1.05), (.95, 1.05))):
            (a, b), (lo, hi) = ratios(name, s), own
            assert lo < a < hi and seen[0] < b < seen[1], (name, s, a, b)
    assert C._corruptions['jpeg_compression'].at(5, 48).quality == 40 and C._corruptions['pixelate'].at(5, 48).cells == .65

PROBE = '''
import json, sys, torch
from synthrob.cnn import corruptions as C
torch.set_num_threads(int(sys.argv[1]))
bits = C._Draw(C._keys(0, 'test', 1, torch.arange(24)))(3, 40, 40).bitwise_right_shift_(8).to(torch.uint8)
smooth = torch.nn.functional.interpolate(bits[:, :1, ::8, ::8].float(), scale_factor=8).to(torch.uint8)
print(json.dumps([C.hash_table(x).values.tolist() for x in (bits, smooth)]))
'''

def probe(threads, **env):
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(o or os.getcwd() for o in sys.path), 'OMP_WAIT_POLICY': 'passive', **env}
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', PROBE, str(threads)], env=env, check=True, text=True,
                         stdout=subprocess.PIPE).stdout
    return json.loads(out.splitlines()[-1])

@pytest.mark.slow
def test_same_bits_with_other_instructions_and_threads():
    "Use the kernels of torch, MKL and oneDNN for old processors, which sum in another order"
    old = dict(ATEN_CPU_CAPABILITY='default', MKL_ENABLE_INSTRUCTIONS='SSE4_2', MKL_CBWR='COMPATIBLE', ONEDNN_MAX_CPU_ISA='SSE41')
    assert probe(1) == probe(2, OMP_NUM_THREADS='2', **old)

@pytest.mark.slow
def test_fer2013_c(fer2013_zip, prepared):
    from synthrob.data.core import prepare
    images = prepare('fer2013', fer2013_zip, root=prepared)
    test = images.subset(torch.tensor(images.part == 'test'))
    assert len(test) == 3118
    assert C.benchmark_hash(test.x) == C.FER2013_C
