"Experiments on vectors from end to end: through papermill, found again, bad input refused, and beside experiments on images"
from __future__ import annotations
import nbformat, numpy as np, pytest, torch
from torchvision import models
from conftest import TOY, papermill, records
from fastai.callback.core import Callback
from synthrob.cnn.learner import evaluate
from synthrob.core.basics import BadInput, write_tensors
from synthrob.core.stages import Stage
from synthrob.data.dataset import Dataset
from synthrob.gan.learner import gan_learner
from synthrob.split.core import run_split
from synthrob.split.params import check_params
from synthrob.split.run import SplitRun
from synthrob.split.features import Extractor, extract
from synthrob.sweep.results import results

TINY = dict(TOY, space='feature', gan_images=2560, head_epochs=3)

@pytest.fixture(scope='module')
def out(tmp_path_factory): return tmp_path_factory.mktemp('features')/'runs'

def test_vectors_of_nets_that_were_normalised_wrongly_are_made_again(tmp_path):
    (tmp_path/'w.pth').write_bytes(b'weights')
    for net, version in dict(googlenet=2, resnet18=1).items():
        p = check_params(dict(data='faces', space='feature', ratio=.5, extractor=f'torchvision:{net}', weights=str(tmp_path/'w.pth')))
        s = SplitRun(p).stages['features']
        assert s.hash == Stage('features', s.params, None, s.inputs, version).hash

def test_an_extractor_is_checked_at_its_own_size(tmp_path):
    "Images are resized for it: 48 pixels are no multiple of its patches of 32"
    (tmp_path/'w.pth').write_bytes(b'weights')
    given = dict(data='faces', space='feature', ratio=.5, size=48, extractor='torchvision:vit_b_32', weights=str(tmp_path/'w.pth'))
    assert check_params(given).size == 48
    with pytest.raises(BadInput, match="layer='nowhere' is not in the net"): check_params(given | dict(layer='nowhere'))

def test_epochs_of_a_head_are_not_those_of_its_extractor():
    "The extractor keeps its least number of steps, so it is the same net for heads of any length"
    runs = [SplitRun(check_params(dict(data='faces', space='feature', ratio=.5, **more))) for more in ({}, dict(head_epochs=3))]
    assert [o.p.min_steps for o in runs] == [600, 0] and [o.judge.p.min_steps for o in runs] == [600, 600]
    assert len({o.judge.stages['split'].hash for o in runs}) == 1
    own = SplitRun(check_params(dict(data='faces', space='feature', ratio=.5, cnn_epochs=3, head_epochs=3)))
    assert (own.judge.p.cnn_epochs, own.judge.p.min_steps) == (3, 0)
    on_vectors, on_images = (SplitRun(check_params(dict(data='faces', cnn_epochs=3, **o))) for o in (dict(space='feature', ratio=.5), dict(ratio=0)))
    assert on_vectors.judge.stages['split'].hash == on_images.stages['split'].hash        # trained once for both

@pytest.mark.e2e
def test_papermill(repo, faces, out, tmp_path):
    "The command of the how-to leaves the records of an experiment, and figures"
    r = papermill(repo, tmp_path/'out.ipynb', ratio=.5, path=faces, out=out, **TINY)
    assert r.returncode == 0, r.stderr[-3000:]
    arm, = [o for o in records(out, 'split') if o['given']['space'] == 'feature']
    base, = [o for o in records(out, 'split') if o['given']['space'] == 'pixel']
    features, = records(out, 'features')
    assert arm['inputs']['train'] == features['hash'] and base['given']['ratio'] == 0
    assert features['inputs']['extractor'] == base['hash'], 'our own classifier of ratio 0 is the extractor'
    counts = np.array([[o['real'], o['added']] for o in arm['counts'].values()])
    assert counts[:, 1].sum() == round(.5*counts.sum())
    assert set(arm) - {'problem'} == set(base) - {'problem'} and set(arm['test']) == set(base['test']) and np.sum(arm['test']['confusion']) == arm['test']['n']
    nb = nbformat.read(tmp_path/'out.ipynb', 4)
    assert [k for c in nb.cells for o in c.get('outputs', []) for k in o.get('data', {})].count('image/png') >= 3

def test_made_once_and_shared(faces, out):
    "Another ratio, arm, treatment or seed finds extractor, vectors, GAN and pool; a second call does nothing"
    arms = [dict(ratio=0), dict(ratio=1.), dict(ratio=.3, how='add', classes='balance'), dict(ratio=.5, treatment='oversample'),
            dict(ratio=.5, treatment='class_weights', classes='balance'), dict(ratio=.5, cnn_seed=1), dict(ratio=.5)]
    runs = [run_split(path=faces, out=str(out), **TINY, **a) for a in arms]
    assert len({r.record['steps'] for r in runs}) == 1 and not any(r.mixture.is_images for r in runs)
    assert [len(records(out, k)) for k in ('data', 'features', 'gan')] == [1]*3
    assert len({r.stages['split'].hash for r in runs}) == len(runs)
    again = run_split(path=faces, out=str(out), **TINY, ratio=1.)
    assert again.stages['split'].reused and torch.equal(again.evaluation().probs, runs[1].evaluation().probs)
    idle = run_split(**{**TINY, 'gan_images': 77}, path=faces, out=str(out), ratio=0, how='add')
    assert idle.stages['split'].hash == runs[0].stages['split'].hash

def test_the_classifier_takes_images(faces, out):
    "Extractor, scale and head in a row agree with the head on vectors; layers and heads can be chosen"
    hashes = set()
    for more in (dict(), dict(head='mlp'), dict(cnn='strong', layer='stages.3')):
        run = run_split(path=faces, out=str(out), **TINY, ratio=.5, **more)
        whole, head = evaluate(run.classifier(), run.part('valid')), run.evaluation('valid')
        assert torch.allclose(whole.probs, head.probs, atol=.03)
        hashes.add(run.stages['split'].hash)
    assert len(hashes) == 3 and run.items('train').x.shape[1] == 128 and not run.classifier().training

def test_robustness(faces, out):
    run = run_split(**{**TINY, 'robustness': 'fast'}, path=faces, out=str(out), ratio=.5)
    assert len(run.robustness.by_corruption) == 15

def test_same_seed_same_record(faces, out, tmp_path):
    a, b = (run_split(path=faces, out=str(o), **TINY, ratio=.5) for o in (out, tmp_path))
    differs = {k for k in a.record if a.record[k] != b.record[k]}
    assert differs <= {'started', 'finished', 'seconds', 'given', 'resumed', 'pool', 'checksum'}, differs

def test_nothing_held_out(faces, out):
    "GAN and head are trained on vectors of training images only, and no others set the scale"
    run = run_split(**TINY, path=faces, out=str(out), ratio=.5)
    assert set(run.train_idx.tolist()).isdisjoint([*run.splits.valid.tolist(), *run.splits.test.tolist()])
    train = run.items('train')
    assert run.stages['gan'].record['n_train'] == len(run.train_idx) == len(train)
    assert torch.allclose(train.x.mean(0), torch.zeros(train.x.shape[1]), atol=1e-3)

def test_a_net_of_torchvision(faces, tmp_path):
    "A net with weights from a file is the extractor; then no classifier of ours is trained"
    torch.manual_seed(0)
    write_tensors(tmp_path/'w.safetensors', models.squeezenet1_1(weights=None, num_classes=6).state_dict())
    theirs = dict(extractor='torchvision:squeezenet1_1', weights=str(tmp_path/'w.safetensors'), layer='1.features')
    run = run_split(path=faces, out=str(tmp_path/'runs'), **TINY, **theirs, ratio=.5)
    assert run.items('train').x.shape[1] == 512 and len(records(tmp_path/'runs', 'split')) == 1 and run.p.cnn is None
    assert len(set(results(tmp_path/'runs').cnn)) == 1
    (tmp_path/'moved').mkdir()
    theirs['weights'] = str((tmp_path/'w.safetensors').rename(tmp_path/'moved'/'w.safetensors'))
    again = run_split(path=faces, out=str(tmp_path/'runs'), **TINY, **theirs, ratio=.5)
    assert again.stages['split'].hash == run.stages['split'].hash

@pytest.mark.parametrize('more, sentence', [
    (dict(layer='8.conv'), 'is not in the net'), (dict(cnn='strong', layer='stages.9'), "did you mean 'stages."),
    (dict(extractor='torchvision:resnet18'), 'needs weights'), (dict(extractor='torchvision:resnet18', weights='none.pth'), 'none.pth'),
    (dict(extractor='torchvision:resnet', weights='none.pth'), 'none.pth'), (dict(weights='w.pth'), 'weights needs extractor'),
    (dict(extractor='clip'), "'torchvision:NAME'"), (dict(head='tree'), "'linear' or 'mlp'"), (dict(pool='elsewhere'), 'not vectors'),
    (dict(refresh_every=2), 'not vectors'), (dict(reject=.1), 'not vectors'), (dict(quality='fast'), 'not vectors'),
    (dict(preset='study'), "preset='study'"), (dict(gan_arch='r3gan'), 'for vectors'), (dict(gan_pick='best'), "choose 'last'"),
    (dict(space='features'), "'pixel' or 'feature'")])
def test_refused(faces, tmp_path, more, sentence):
    with pytest.raises(BadInput) as e: run_split(**{**TINY, **more}, path=faces, out=str(tmp_path/'runs'))
    assert sentence in str(e.value) and '\n' not in str(e.value)
    assert not (tmp_path/'runs').exists(), 'refused before anything was made'

def test_weights_that_are_none(faces, tmp_path):
    (tmp_path/'w.pth').write_bytes(b'cposix\nsystem\n(S"touch here"\ntR.')
    with pytest.raises(BadInput, match='no weights that can be read safely'):
        run_split(path=faces, out=str(tmp_path/'runs'), **TINY, extractor='torchvision:resnet18', weights=str(tmp_path/'w.pth'))

def test_a_gan_on_vectors_resumes(tmp_path):
    g = torch.Generator().manual_seed(0)
    ds = Dataset(torch.randn(256, 8, generator=g), torch.arange(256) % 2, ['a', 'b'])
    class Stop(Callback):
        order = 99
        def after_epoch(self):
            if self.epoch == 1: raise KeyboardInterrupt
    def fit(path, cbs=None):
        learn = gan_learner(ds, 'mlp', nz=4, nf=16, bs=32, device='cpu')
        with learn.no_bar(), learn.no_logging(): learn.fit_gan(1600, path, every=0, cbs=cbs)
        return torch.cat([p.flatten() for p in learn.model.state_dict().values()]), len(learn.recorder.losses)
    whole, steps = fit(tmp_path/'whole.safetensors')
    with pytest.raises(KeyboardInterrupt): fit(tmp_path/'cut.safetensors', [Stop()])
    rest, more = fit(tmp_path/'cut.safetensors')
    assert torch.equal(rest, whole) and 0 < more < steps

def test_extractors_leave_the_net_alone():
    "Extraction changes nothing in the net, and does not depend on the batch size"
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(inplace=True), torch.nn.Flatten(), torch.nn.Linear(4*36, 3))
    before, x = {k: v.clone() for k, v in net.state_dict().items()}, torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8)
    for layer in (None, '0', '1'):
        ex = Extractor(net, layer)
        assert torch.allclose(extract(ex, x, bs=7, progress=False), extract(ex, x, progress=False), atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and not list(net[0]._forward_hooks)
    assert (extract(Extractor(net, '1'), x, progress=False) < 0).any(), 'the ReLU behind it works in place, after the copy'
