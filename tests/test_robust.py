"Robustness: falls with severity, resumes after a kill, does not depend on channels; comparison of classifiers"
from __future__ import annotations
import json, signal, subprocess, sys, time
from functools import partial
import numpy as np, pandas as pd, pytest, torch
from conftest import drawn_faces as faces
from synthrob.cnn.attacks import attack
from synthrob.cnn.learner import Evaluation, cnn_learner, evaluate, recipe
from synthrob.core.basics import BadInput, seeded, write_tensors
from synthrob.cnn.models import StrongNet
from synthrob.data.faces import emotions
from synthrob.data.loaders import device_dls
from synthrob.cnn.corruptions import common, extra
from synthrob.cnn.robustness import Robustness, RobustnessLevel, compare, evaluate_robustness, robustness_level

@pytest.fixture(scope='module')
def learn():
    "A net trained with augmentation"
    r = recipe('strong', epochs=25, net=partial(StrongNet, nf=8))    # batch norm: it learns however a chip rounds
    learn = cnn_learner(device_dls(faces(2000, 1), faces(200, 2), bs=50, device='cpu'), arch=r, seed=1)
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe()
    return learn

@pytest.mark.slow
def test_severity_hurts(learn):
    "Accuracy at severity 5 is at most that at severity 1, to within two standard errors of the paired difference"
    r = evaluate_robustness(learn, faces(1000, 3), RobustnessLevel(common + extra, (1, 5), None, 100), progress=False)
    assert r.clean['accuracy'] > .4
    for c in common + extra:
        mild, severe = (np.asarray(r.predictions[f'{c} {s}'] == r.predictions.true, float) for s in (1, 5))
        d = severe - mild
        assert d.mean() <= 2*d.std()/len(d)**.5, f'{c}: {mild.mean():.3f} at severity 1, {severe.mean():.3f} at 5'
    for _, t in r.attacks.groupby(['attack', 'norm']): assert t.accuracy.is_monotonic_decreasing
    assert set(r.corruptions.group) == {'common', 'extra'} and r.summary['mca_extra'] > 0

CODE = """import json, sys, torch
from synthrob.cnn.models import StrongNet
from synthrob.core.basics import read_tensors
from synthrob.data.faces import draw_faces, emotions
from synthrob.data.dataset import Dataset
from synthrob.cnn.robustness import RobustnessLevel, evaluate_robustness
y = torch.arange(60) % 5
images = Dataset(draw_faces(y, size=32, seed=3, progress=False), y, emotions)
net = StrongNet(32, nf=8)
net.load_state_dict(read_tensors(sys.argv[1]))
level = RobustnessLevel(('gaussian_noise', 'fog', 'pixelate'), (1, 5), None, 40, (('pgd', 'inf', 60, (1/255, 2/255)),))
evaluate_robustness(net, images, level, images, path=sys.argv[2], flip=True, every=0, progress=False)"""

@pytest.mark.e2e
def test_killed_and_started_again(tmp_path):
    "A run resumed after SIGKILL gives the tables of an uninterrupted one"
    with seeded('test'): net = StrongNet(32, nf=8)
    write_tensors(tmp_path/'net.safetensors', net.state_dict())
    start = lambda out: subprocess.Popen([sys.executable, '-W', 'ignore', '-c', CODE, str(tmp_path/'net.safetensors'), str(tmp_path/out)],
                                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    p, end = start('killed'), time.monotonic() + 300
    while not (tmp_path/'killed'/'partial.safetensors').exists() and p.poll() is None and time.monotonic() < end: time.sleep(.005)
    assert p.poll() is None, p.stderr.read().decode()[-2000:]
    p.send_signal(signal.SIGKILL); p.wait()
    assert not (tmp_path/'killed'/'robust.json').exists(), 'it was killed in time'
    for out in 'killed', 'whole':
        p = start(out)
        _, err = p.communicate(timeout=600)
        assert p.returncode == 0, err.decode()[-2000:]
    again, whole = (Robustness.load(tmp_path/o) for o in ('killed', 'whole'))
    for k in 'corruptions', 'attacks', 'predictions': pd.testing.assert_frame_equal(getattr(again, k), getattr(whole, k))
    assert json.dumps(again.to_dict()) == json.dumps(whole.to_dict())
    assert not (tmp_path/'killed'/'partial.safetensors').exists()
    changed = {k: v*1.01 for k, v in net.state_dict().items() if v.is_floating_point()}
    net.load_state_dict({**net.state_dict(), **changed})
    level = RobustnessLevel(('gaussian_noise', 'fog', 'pixelate'), (1, 5), None, 40, (('pgd', 'inf', 60, (1/255, 2/255)),))
    with pytest.raises(BadInput, match='another model'):
        evaluate_robustness(net, faces(60, 3), level, faces(60, 3), path=tmp_path/'whole', flip=True, progress=False)

def test_three_channels(toy_cnn):
    "Grey images stored with three channels get the same noise and the same predictions"
    class Grey(torch.nn.Module):
        def __init__(self): super().__init__(); self.net = toy_cnn.model
        def forward(self, x): return self.net(x[:, :1])
    level = RobustnessLevel(common + extra, (3,), None, 60, (('fgsm', 'inf', 1, (1/255,)),))
    one, three = (evaluate_robustness(m, faces(100, 4, c), level, progress=False) for m, c in ((toy_cnn.model, 1), (Grey(), 3)))
    pd.testing.assert_frame_equal(one.predictions, three.predictions)
    pd.testing.assert_frame_equal(one.attacks, three.attacks)

def test_compare(toy_cnn):
    "A classifier compared with itself has mCE 1; robustness at another level is refused"
    images, level = faces(300, 5), RobustnessLevel(('fog', 'contrast'), (3,), 100, 20, (('fgsm', 'inf', 1, (1/255,)),))
    ev, rob = evaluate(toy_cnn, images), evaluate_robustness(toy_cnn, images, level, seed=0, progress=False)
    t = compare(dict(one=(ev, rob), bare=(ev, None), same=(ev, rob)))
    assert list(t.index) == ['one', 'bare', 'same'] and t.loc['bare', ['mca', 'mce', 'fgsm inf 1/255']].isna().all()
    assert t.mce.dropna().tolist() == pytest.approx([1, 1])
    assert (t.low < t.accuracy).all() and (t.accuracy < t.high).all() and (t.n == 300).all()
    other = evaluate_robustness(toy_cnn, images, RobustnessLevel(('fog',), (3,), 100), seed=0, progress=False)
    with pytest.raises(BadInput, match='other was evaluated on other images or at another level'):
        compare(dict(bare=(ev, None), one=(ev, rob), other=(ev, other)))      # of two others, though the reference has none

def test_compare_what_cannot_be_compared(toy_cnn):
    "A net that diverged has no accuracy; a class without an image counts as 0 in macro F1"
    images = faces(100, 5)
    ev = evaluate(toy_cnn, images.subset(images.y < 4))
    assert compare(dict(one=(ev, None))).macro_f1.item() == pytest.approx(ev.per_class.f1[:4].sum()/5)
    diverged = Evaluation(torch.full((100, 5), torch.nan), images.y, emotions)
    with pytest.raises(BadInput, match='gone has .* its training diverged'):
        compare(dict(one=(evaluate(toy_cnn, images), None), gone=(diverged, None)))

def test_the_norm_of_an_attack_is_text():
    with pytest.raises(BadInput, match="norm 2: give 'inf' or '2', as text"):
        robustness_level(RobustnessLevel(('fog',), (3,), attacks=(('pgd', 2, 5, (.1,)),)))

def test_a_sure_net_is_attacked_as_well(toy_cnn):
    "Logits twenty times as large predict the same, and hide no gradient"
    class Sure(torch.nn.Module):
        def __init__(self): super().__init__(); self.net = toy_cnn.model.eval()
        def forward(self, x): return 20*self.net(x)
    images = faces(100, 3)
    plain, sure = (attack(m.eval(), images.x, images.y, 'fgsm', 2/255).accuracy for m in (toy_cnn.model, Sure()))
    assert sure == pytest.approx(plain, abs=.03)

def test_no_corruption_at_all(toy_cnn):
    with pytest.raises(BadInput, match='corruptions is empty'): evaluate_robustness(toy_cnn, faces(20, 3), RobustnessLevel(()), progress=False)
