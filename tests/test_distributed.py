"One process or two, the same training: loss curves with the same whole batch, and a split run in two processes."
import json, os, shutil
import pytest, torch
from safetensors import safe_open
from synthrob.core.basics import BadInput, read_tensors, write_json
from synthrob.core.distributed import launch
from synthrob.split.params import check_params
from synthrob.split.run import SplitRun

pytestmark = pytest.mark.e2e
pytest.importorskip('accelerate', reason="accelerate is not installed: pip install 'synthrob[distributed]'")

# What each process runs: it is imported by them, from a file, as a library is.
TASKS = '''
import atexit, os
from synthrob.cnn.learner import cnn_learner, recipe
from synthrob.core.distributed import distributed
from synthrob.data.splits import splits
from synthrob.data.core import prepare
from synthrob.gan.learner import gan_learner
from synthrob.data.loaders import device_dls

def _parts():
    images = prepare('faces', size=32, n=100, n_test=20, root='runs')
    s = splits(images)
    return images.subset(s.train), images.subset(s.valid)

def cnn(path, net, bs=64):
    train, valid = _parts()
    learn = cnn_learner(device_dls(train, valid, bs=bs, device='cpu'), arch=net, seed=0)
    with distributed(learn), learn.no_bar(): learn.fit_recipe(3, path=path)

def gan(path, **changes):
    train, _ = _parts()
    learn = gan_learner(device_dls(train, bs=32, n_steps=8, device='cpu'), nf=8, nz=16, **changes)
    with distributed(learn), learn.no_bar(): learn.fit_gan(32*8*3, path)

def both(cnn_path, gan_path):
    "Then abort while the interpreter shuts down, as gloo's threads can make it"
    atexit.register(os.abort)
    cnn(cnn_path, 'poster')
    cnn('two_mix.safetensors', recipe('poster', mix='mixup'))
    gan(gan_path, arch='r3gan', augment=None)
'''

@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
    "The module of tasks, importable here and in the processes, in a folder of its own"
    import importlib, sys
    folder, was, at = tmp_path_factory.mktemp('together'), os.environ.get('PYTHONPATH'), os.getcwd()
    (folder/'together_tasks.py').write_text(TASKS)
    os.environ['PYTHONPATH'] = os.pathsep.join([str(folder), *([was] if was else [])])
    sys.path.insert(0, str(folder)); os.chdir(folder)
    yield importlib.import_module('together_tasks')
    os.chdir(at); sys.path.remove(str(folder))
    if was is None: del os.environ['PYTHONPATH']
    else: os.environ['PYTHONPATH'] = was

@pytest.fixture(scope='module')
def two(tasks):
    "Checkpoints of a classifier and of a GAN, both trained by the same two processes, which then abort: their work is done"
    paths = dict(cnn_path='two_cnn.safetensors', gan_path='two_gan.safetensors')
    launch('together_tasks:both', paths, 2)
    return paths

def trained(path):
    "Logged rows of a training, and the weights it ends with"
    with safe_open(path, 'pt') as f: rows = torch.tensor([list(h.values()) for h in json.loads(f.metadata()['state'])['history']], dtype=torch.float64)
    return rows, {k: v.float() for k, v in read_tensors(path).items() if k.startswith('model.')}

def alone(run, path, **params):
    run(path=path, **params)
    return trained(path)

def test_classifier(tasks, two):
    "The same curve, to what bfloat16 rounds; half the batch in one process has another"
    one, both = alone(tasks.cnn, 'one_cnn.safetensors', net='poster')[0], trained(two['cnn_path'])[0]
    assert one[0, 0] - one[-1, 0] > .01                              # it does learn
    torch.testing.assert_close(both[:, :2], one[:, :2], rtol=0, atol=2e-3)
    half = alone(tasks.cnn, 'half.safetensors', net='poster', bs=32)[0]
    assert (half[:, 0] - one[:, 0]).abs().max() > 5e-3

def test_mixed_images(tasks, two):
    "Each process mixes within its part of a batch"
    curve = trained('two_mix.safetensors')[0]
    assert len(curve) == 3 and curve.isfinite().all()

def test_gan(tasks, two):
    "Both nets, penalised by gradients of gradients: losses and logits in two processes are those of one"
    (one, w1), (both, w2) = alone(tasks.gan, 'one_gan.safetensors', arch='r3gan', augment=None), trained(two['gan_path'])
    torch.testing.assert_close(both, one, rtol=0, atol=5e-3)
    for k in w1: torch.testing.assert_close(w2[k], w1[k], rtol=0, atol=.02, msg=lambda m: f'{k}: {m}')

def test_one_goes_on_where_two_have_ended(tasks, two):
    "The checkpoint of two processes is one that a single process finds finished: it trains nothing and has their weights"
    path = shutil.copy(two['gan_path'], 'found.safetensors')
    before, after = trained(path), alone(tasks.gan, path, arch='r3gan', augment=None)
    assert torch.equal(before[0], after[0]) and all(torch.equal(before[1][k], after[1][k]) for k in before[1])

def test_bad_batch(tasks):
    with pytest.raises(BadInput, match='Batches of 63 images cannot be shared by 2 processes'):
        launch('together_tasks:cnn', dict(path='none.safetensors', net='poster', bs=63), 2)
    assert not os.path.exists('none.safetensors')

def test_a_gan_that_failed_in_several_processes_is_not_trained_on(faces, tmp_path):
    from conftest import TOY
    run = SplitRun(check_params(dict(TOY, path=faces, ratio=.5, device='cpu', processes=2, out=str(tmp_path))))
    gan = run.stages['gan']
    write_json(gan.file('failure.json'), dict(sentence="The GAN's training collapsed by image 320."))
    with pytest.raises(BadInput, match='collapsed by image 320. Try another gan_seed'): gan.make()
    assert not gan.file('checkpoint.safetensors').exists()

def test_split_run_in_two_processes(faces, tmp_path, monkeypatch):
    "The GAN and the classifier of an experiment, each trained by two processes; another experiment than that of one process"
    from conftest import TOY
    from synthrob.split.core import run_split
    monkeypatch.chdir(tmp_path)
    params = dict(TOY, path=faces, ratio=.5, device='cpu')
    run = run_split(**params, processes=2)
    record = run.record
    assert record['params']['processes'] == 2 and record['test']['n'] == len(run.part('test')) and len(record['history']) == run.p.cnn_epochs
    gan = run.stages['gan']
    assert gan.record['history'] and gan.file('samples').is_dir() and not list(run.stages['split'].path.glob('checkpoint*'))
    assert run_split(**params, processes=2).record['finished'] == record['finished']       # found, not made anew
    alone = SplitRun(check_params(params))
    assert all(alone.stages[k].hash != run.stages[k].hash for k in ('gan', 'split')) and 'processes' not in alone.stages['split'].params
    for bad, why in ((dict(processes=7), 'does not divide'), (dict(processes=2, space='feature'), 'heads train in seconds'),
                     (dict(processes=2, gan_arch='study'), 'nets per class'), (dict(processes=2, gan_arch='matched'), 'compares all images')):
        with pytest.raises(BadInput, match=why): check_params(dict(params, **bad))
