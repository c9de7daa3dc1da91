"Experiments on vectors from end to end: through papermill, found again, refused where they cannot be, and beside those on images"
from __future__ import annotations
import json, subprocess, sys
from pathlib import Path
import nbformat, numpy as np, pytest, torch
from torchvision import models
from conftest import TOY
from synthrob.cnn.learner import evaluate
from synthrob.sweep.results import results
from synthrob.core.basics import BadInput, read_json, write_tensors
from synthrob.split.features import Extractor, extract
from synthrob.split.core import FeatureRun, SplitRun, check_params, run_split
from synthrob.sweep.grid import sweep
from synthrob.gan.vectors import VectorSet, vector_dls, vector_gan_learner

TINY = dict(TOY, space='feature', gan_images=2560, head_epochs=3)

@pytest.fixture(scope='module')
def out(tmp_path_factory): return tmp_path_factory.mktemp('features')/'runs'

def papermill(repo, nb, **params):
    args = [sys.executable, '-W', 'ignore', '-m', 'papermill', '--no-progress-bar', str(repo/'nbs'/'03_split.ipynb'), str(nb)]
    for k, v in params.items(): args += ['-p', k, str(v)]
    return subprocess.run(args, cwd=repo, capture_output=True, text=True, timeout=900)

def records(out, kind): return [json.loads(p.read_text()) for p in Path(out).glob(f'{kind}/*/record.json')]

@pytest.mark.e2e
def test_papermill(repo, faces, out, tmp_path):
    "The command of the how-to leaves the records of an experiment, and figures"
    r = papermill(repo, tmp_path/'out.ipynb', ratio=.5, path=faces, out=out, **TINY)
    assert r.returncode == 0, r.stderr[-3000:]
    arm, = [o for o in records(out, 'split') if o['given']['space'] == 'feature']
    base, = [o for o in records(out, 'split') if o['given']['space'] == 'pixel']
    assert arm['params']['features'] == records(out, 'features')[0]['hash'] and base['given']['ratio'] == 0
    assert records(out, 'features')[0]['params']['split'] == base['hash'], 'our own classifier of ratio 0 has made the vectors'
    counts = {c: (o['real'], o['filled']) for c, o in arm['counts'].items()}
    assert sum(f for _, f in counts.values()) == round(.5*sum(map(sum, counts.values())))
    assert set(arm) == set(base) and set(arm['test']) == set(base['test']) and np.sum(arm['test']['confusion']) == arm['test']['n']
    nb = nbformat.read(tmp_path/'out.ipynb', 4)
    assert [k for c in nb.cells for o in c.get('outputs', []) for k in o.get('data', {})].count('image/png') >= 3

def test_made_once_and_shared(faces, out):
    "Another ratio, arm, filler or seed finds extractor, vectors, GAN and pool; asked again, nothing is done"
    arms = [dict(ratio=0), dict(ratio=1.), dict(ratio=.3, how='add', classes='balance'), dict(ratio=.5, filler='repeat'),
            dict(ratio=.5, filler='none', classes='balance'), dict(ratio=.5, cnn_seed=1), dict(ratio=.5)]
    runs = [run_split(path=faces, out=str(out), **TINY, **a) for a in arms]
    assert all(isinstance(r, FeatureRun) for r in runs) and len({r.record['steps'] for r in runs}) == 1
    assert [len(records(out, k)) for k in ('data', 'features', 'gan', 'pool')] == [1]*4
    assert len({r.artefact.hash for r in runs}) == len(runs)
    again = run_split(path=faces, out=str(out), **TINY, ratio=1.)
    assert again.artefact.reused and torch.equal(again.evaluation().probs, runs[1].evaluation().probs)
    assert run_split(**{**TINY, 'gan_images': 77}, path=faces, out=str(out), ratio=0, how='add').artefact.hash == runs[0].artefact.hash

def test_the_classifier_takes_images(faces, out):
    "Extractor, scale and head in a row say about images what the head says about their vectors; layers and heads can be chosen"
    hashes = set()
    for more in (dict(), dict(head='mlp'), dict(cnn='strong', layer='stages.1')):
        run = run_split(path=faces, out=str(out), **TINY, ratio=.5, **more)
        whole, held = evaluate(run.classifier(), run.part('valid')), run.evaluation('valid')
        assert torch.allclose(whole.probs, held.probs, atol=.03)
        hashes.add(run.artefact.hash)
    assert len(hashes) == 3 and run.vectors.x.shape[1] == 128 and not run.classifier().training

def test_robust(faces, out):
    run = run_split(**{**TINY, 'robust': 'fast'}, path=faces, out=str(out), ratio=.5)
    assert len(run.robustness.by_corruption) == 15

def test_same_seed_same_record(faces, out, tmp_path):
    a, b = (run_split(path=faces, out=str(o), **TINY, ratio=.5) for o in (out, tmp_path))
    differs = {k for k in a.record if a.record[k] != b.record[k]}
    assert differs <= {'started', 'finished', 'seconds', 'given', 'resumed'}, differs

def test_nothing_held_out(faces, out):
    "GAN and head see vectors of training images only, and none of the held-out ones sets the scale"
    run = SplitRun(check_params(dict(TINY, path=faces, out=str(out), ratio=.5)))
    assert set(run.used.tolist()).isdisjoint([*run.splits.valid.tolist(), *run.splits.test.tolist()])
    assert run.gan.record['n_train'] == len(run.used) and torch.allclose(run.real_vectors.x.mean(0), torch.zeros(run.vectors.x.shape[1]), atol=1e-3)
    assert torch.equal(run.real_vectors.x, run.vectors.x[run.used])

def test_a_net_of_torchvision(faces, tmp_path):
    "A net with weights from a file extracts; then no classifier of ours is trained"
    torch.manual_seed(0)
    write_tensors(tmp_path/'w.safetensors', models.squeezenet1_1(weights=None, num_classes=6).state_dict())
    theirs = dict(extractor='torchvision:squeezenet1_1', weights=str(tmp_path/'w.safetensors'), layer='1.features')
    run = run_split(path=faces, out=str(tmp_path/'runs'), **TINY, **theirs, ratio=.5)
    assert run.vectors.x.shape[1] == 512 and len(records(tmp_path/'runs', 'split')) == 1 and run.p.cnn is None
    assert len(set(results(tmp_path/'runs').cnn)) == 1
    (tmp_path/'moved').mkdir()
    theirs['weights'] = str((tmp_path/'w.safetensors').rename(tmp_path/'moved'/'w.safetensors'))
    assert run_split(path=faces, out=str(tmp_path/'runs'), **TINY, **theirs, ratio=.5).artefact.hash == run.artefact.hash

@pytest.mark.parametrize('more, sentence', [
    (dict(layer='8.conv'), 'is no layer of the net'), (dict(cnn='strong', layer='stages.9'), "did you mean 'stages."),
    (dict(extractor='torchvision:resnet18'), 'needs weights'), (dict(extractor='torchvision:resnet18', weights='none.pth'), 'none.pth'),
    (dict(extractor='torchvision:resnet', weights='none.pth'), 'none.pth'), (dict(weights='w.pth'), 'weights without extractor'),
    (dict(extractor='clip'), "'torchvision:NAME'"), (dict(head='tree'), "'linear' or 'mlp'"), (dict(pool='elsewhere'), 'there are only vectors'),
    (dict(fresh=2), 'there are only vectors'), (dict(reject=.1), 'there are only vectors'), (dict(quality='fast'), 'there are only vectors'),
    (dict(preset='source'), 'the study knew no vectors'), (dict(gan_arch='dcgan'), 'for vectors'), (dict(gan_pick='best'), "choose 'last'"),
    (dict(space='features'), "'pixel' or 'feature'")])
def test_refused(faces, tmp_path, more, sentence):
    with pytest.raises(BadInput) as e: run_split(**{**TINY, **more}, path=faces, out=str(tmp_path/'runs'))
    assert sentence in str(e.value) and '\n' not in str(e.value)
    assert not (tmp_path/'runs').exists(), 'refused before anything was made'

def test_weights_that_are_none(faces, tmp_path):
    (tmp_path/'w.pth').write_bytes(b'cposix\nsystem\n(S"touch here"\ntR.')
    with pytest.raises(BadInput, match='no weights that can be read safely'):
        run_split(path=faces, out=str(tmp_path/'runs'), **TINY, extractor='torchvision:resnet18', weights=str(tmp_path/'w.pth'))

@pytest.mark.e2e
def test_sweep_and_report(faces, tmp_path):
    "Cells on images and on vectors lie side by side, and are not taken for each other"
    grid = dict(TOY, path=faces, ratio=[0, .5], cnn_seed=2)
    s = sweep([grid, dict(grid, space='feature', gan_images=2560, head_epochs=3)], out=str(tmp_path/'runs'), slots=1)
    assert (s.table.state == 'done').all(), s.table.error.tolist()
    assert len(s) == 8 and 'space' in s.varying
    frame = results(tmp_path/'runs')
    per = frame.drop_duplicates('run').groupby('cnn', observed=True).size().to_dict()
    assert per == {'poster': 4, 'linear head on poster (1 epochs)': 4}, per

def test_hashes_of_images_stay(faces, tmp_path):
    "What was made before there were vectors is found: nothing of them is in the parameters of an experiment on images"
    run_split(path=faces, out=str(tmp_path), ratio=.5, **TOY)
    new = {'space', 'extractor', 'weights', 'layer', 'head', 'head_epochs', 'features'}
    for kind in ('gan', 'pool', 'split'):
        for f in Path(tmp_path).glob(f'{kind}/*/params.json'): assert not new & set(read_json(f)), f

def test_pieces_resume(tmp_path):
    "A GAN on vectors that is stopped goes on to the same weights"
    g = torch.Generator().manual_seed(0)
    ds = VectorSet(torch.randn(256, 8, generator=g), torch.arange(256) % 2, ['a', 'b'])
    def learner(): return vector_gan_learner(vector_dls(ds, bs=32, n_steps=5, device='cpu'), nz=4, nf=16)
    def fit(learn, path, cbs=None):
        with learn.no_bar(), learn.no_logging(): learn.fit_gan(1600, path, every=0, cbs=cbs)
        return torch.cat([p.flatten() for p in learn.model.state_dict().values()])
    from fastai.callback.core import Callback
    class Stop(Callback):
        order = 99
        def after_epoch(self):
            if self.epoch == 3: raise KeyboardInterrupt
    whole = fit(learner(), tmp_path/'whole.safetensors')
    with pytest.raises(KeyboardInterrupt): fit(learner(), tmp_path/'cut.safetensors', [Stop()])
    assert torch.equal(fit(learner(), tmp_path/'cut.safetensors'), whole)

def test_extractors_leave_the_net_alone():
    "Extraction changes nothing in the net, and does not depend on how many images are asked for at a time"
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(inplace=True), torch.nn.Flatten(), torch.nn.Linear(4*36, 3))
    before, x = {k: v.clone() for k, v in net.state_dict().items()}, torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8)
    for layer in (None, '0', '1'):
        ex = Extractor(net, layer)
        assert torch.allclose(extract(ex, x, bs=7, progress=False), extract(ex, x, progress=False), atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and not list(net[0]._forward_hooks)
    assert (extract(Extractor(net, '1'), x, progress=False) < 0).any(), 'the rectifier behind it writes into what it is given, after us'
