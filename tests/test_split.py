"The main job from end to end: through papermill as people start it, killed and started again, on the faces and on FER-2013"
from __future__ import annotations
import json, shutil, signal, subprocess, sys, time
from pathlib import Path
from dataclasses import replace
import nbformat, numpy as np, pandas as pd, pytest, torch
from PIL import Image
from conftest import papermill, records
from synthrob.core.basics import BadInput
from synthrob.data.duplicates import duplicate_groups, near_duplicates
from synthrob.data.faces import draw_faces, emotions
from synthrob.gan.learner import gan_learner
from synthrob.split.core import run_split
from synthrob.split.params import check_params
from synthrob.split.run import SplitRun, _gan_recipe

SMALL = dict(data='folder', size=32, gan_images=1280, gan_width=16, cnn_epochs=3, robustness='none', copies='exact')

@pytest.fixture(scope='session')
def face_folder(tmp_path_factory) -> Path:
    "Train and test faces as files, ten of the test faces planted as copies in the training part, one of them mislabelled"
    top = tmp_path_factory.mktemp('faces')
    y = torch.arange(400) % 5
    x = draw_faces(y, size=32, seed=9, progress=False)
    for i in range(400):
        place(top/('test' if i >= 300 else 'train'), x[i], emotions[y[i]], f'{i}')
    for i in range(300, 310): place(top/'train', x[i], emotions[(y[i] + (i == 309)) % 5], f'copy_{i}')
    return top

def place(top, x, label, name):
    (top/label).mkdir(parents=True, exist_ok=True)
    Image.fromarray(x[0].numpy()).save(top/label/f'{name}.png')

def library(repo): return {p: p.read_bytes() for p in (repo/'synthrob').rglob('*.py')}

@pytest.mark.e2e
def test_papermill_from_the_root(repo, face_folder, tmp_path):
    before = library(repo)
    out = tmp_path/'runs'
    r = papermill(repo, tmp_path/'out.ipynb', ratio=.3, path=face_folder, out=out, **SMALL | dict(robustness='fast', copies='near'))
    assert r.returncode == 0, r.stderr[-3000:]
    record, = records(out)
    counts = pd.DataFrame(record['counts']).T
    assert abs(counts.added.sum()/counts.values.sum() - .3) < .01
    assert record['test']['n'] == 100 and np.sum(record['test']['confusion']) == 100
    nb = nbformat.read(tmp_path/'out.ipynb', 4)
    kinds = [k for c in nb.cells for o in c.get('outputs', []) for k in o.get('data', {})]
    text = str(nb)
    assert kinds.count('image/png') >= 3 and 'fastprogress' in text, 'the executed notebook shows figures and the training'
    assert library(repo) == before, 'a batch run must not rewrite the library'

@pytest.mark.e2e
def test_papermill_elsewhere(repo, face_folder, tmp_path):
    "From nbs/, and as a lone copy in a folder that knows nothing of the project"
    copy = shutil.copy(repo/'nbs'/'03_split.ipynb', tmp_path)
    for cwd, nb in ((repo/'nbs', '03_split.ipynb'), (tmp_path, Path(copy).name)):
        r = papermill(repo, tmp_path/'out.ipynb', cwd, nb, ratio=.5, path=face_folder, out=tmp_path/'runs', **SMALL)
        assert r.returncode == 0, r.stderr[-3000:]
    assert len(records(tmp_path/'runs')) == 1, 'the second run found the first'

@pytest.mark.e2e
@pytest.mark.parametrize('params, sentence', [
    (dict(raito=.3), "There is no parameter 'raito': did you mean 'ratio'?"),
    (dict(ratio=1.3), 'ratio=1.3 is out of range: choose a number from 0 to 1.')])
def test_papermill_refuses(repo, tmp_path, params, sentence):
    r = papermill(repo, tmp_path/'out.ipynb', out=tmp_path/'runs', **params)
    assert r.returncode != 0 and sentence in r.stderr
    assert not (tmp_path/'runs').exists(), 'refused before anything was made'

@pytest.mark.parametrize('params, sentence', [
    (dict(how='add', ratio=1), "ratio=1 does not go with how='add'"), (dict(vocab='happy,bored'), "no class 'bored'"),
    (dict(data='fer2013', path='missing.zip'), 'missing.zip'), (dict(data='martians'), "'martians'"),
    (dict(cnn='resnet999'), "'resnet999'"), (dict(gan_images='many'), "gan_images='many'"), (dict(ratio=True), 'ratio=True'),
    (dict(size=33), 'size=33')])
def test_bad_input_before_training(tmp_path, params, sentence):
    with pytest.raises(BadInput, match='.') as e: run_split(out=str(tmp_path/'runs'), **params)
    assert sentence in str(e.value) and '\n' not in str(e.value)
    assert not [k for k in ('gan', 'pool', 'split') if list(tmp_path.glob(f'runs/{k}/*/params.json'))], 'nothing was trained'

def test_nothing_held_out_is_trained_on(face_folder, tmp_path):
    "Ten test images are in the training folder too: neither GAN nor CNN is trained on them"
    run = SplitRun(check_params(SMALL | dict(path=face_folder, ratio=.5, out=str(tmp_path), copies='near'))).fit()
    assert run.splits.report['removed']['leak'] == 10
    n, real = len(run.holdout), run.part('train')
    g = duplicate_groups(torch.cat([run.holdout, real.x, run.mixture.x]))
    assert not torch.isin(g[n:], g[:n]).any()
    assert run.stages['gan'].record['n_train'] == len(real) == len(run.mixture)

def test_study_reports_what_the_leak_is_worth(face_folder, tmp_path):
    run = run_split(path=str(face_folder), preset='study', out=str(tmp_path), ratio=.3, **(SMALL | dict(copies='none')))
    leak = run.record['leak']
    assert 1 <= leak['copies'] <= 10 and leak['worth'] == pytest.approx(run.record['test']['accuracy'] - leak['accuracy_rest'])
    assert run.stages['gan'].record['n_train'] == len(run.splits.train) + len(run.splits.test), "the study's GAN saw the test images"
    kept = torch.isin(run.images.group[run.splits.test], run.images.group[run.train_idx]).sum()
    assert leak['copies'] <= kept == run.splits.table.leaked.sum(), 'copies of images that the mixture left out do not leak'
    alone = run_split(path=str(face_folder), preset='study', out=str(tmp_path), ratio=1, **(SMALL | dict(copies='none')))
    assert alone.record['leak']['copies'] == 0, 'no real image was trained on'

@pytest.mark.slow
def test_other_arms(face_folder, tmp_path):
    "Every way to mix trains for the same number of steps and is tested on the same images"
    base = dict(path=str(face_folder), out=str(tmp_path), **SMALL)
    arms = [dict(ratio=0), dict(ratio=.6, how='add'), dict(ratio=.6, how='add', classes='balance'), dict(ratio=1.),
            dict(ratio=.4, treatment='oversample'), dict(ratio=.4, treatment='class_weights', classes='balance')]
    runs = [run_split(**base, **a) for a in arms]
    assert len({r.record['steps'] for r in runs}) == 1 and len({r.stages['parts'].hash for r in runs}) == 1
    assert len(records(tmp_path)) == len(arms) and len(records(tmp_path, 'gan')) == 1 and len(records(tmp_path, 'data')) == 1

@pytest.mark.e2e
def test_a_pool_from_elsewhere(repo, face_folder, tmp_path):
    "Images of another generator go the whole way: refused where they are not sure of their class, judged, mixed, recorded"
    y = torch.arange(200) % 5
    for i, x in enumerate(draw_faces(y, size=32, seed=77, progress=False)): place(tmp_path/'theirs', x, emotions[y[i]], f'{i}')
    r = papermill(repo, tmp_path/'out.ipynb', ratio=.3, path=face_folder, out=tmp_path/'runs', pool=tmp_path/'theirs',
                  reject=.2, quality='fast', **SMALL | dict(copies='near'))
    assert r.returncode == 0, r.stderr[-3000:]
    assert not list(tmp_path.glob('runs/gan/*')), 'no GAN was needed'
    arm, = [o for o in records(tmp_path/'runs') if o['given']['ratio']]
    assert arm['pool']['made_by'] == 'made elsewhere: theirs' and sum(arm['pool']['n'].values()) < 200
    judged, = records(tmp_path/'runs', 'quality')
    assert judged['summary']['n_pool'] == sum(arm['pool']['n'].values()) and not judged['summary']['memorises']
    assert judged['sentence'] in str(nbformat.read(tmp_path/'out.ipynb', 4))

@pytest.mark.parametrize('spoil, sentence', [
    (lambda top: shutil.rmtree(top/'happy'), "no class 'happy'"),
    (lambda top: shutil.copy(next((top.parent/'real'/'train'/'sad').iterdir()), top/'sad'/'copy.png'), 'are copies of real ones'),
    (lambda top: [f.unlink() for f in list((top/'fear').iterdir())[3:]], 'has 3 items')])
def test_a_bad_pool(face_folder, tmp_path, spoil, sentence):
    shutil.copytree(face_folder, tmp_path/'real')
    y = torch.arange(100) % 5
    for i, x in enumerate(draw_faces(y, size=32, seed=78, progress=False)): place(tmp_path/'theirs', x, emotions[y[i]], f'{i}')
    spoil(tmp_path/'theirs')
    with pytest.raises(BadInput) as e: run_split(path=str(tmp_path/'real'), ratio=.2, pool=str(tmp_path/'theirs'), out=str(tmp_path/'runs'), **SMALL)
    assert sentence in str(e.value) and not list(tmp_path.glob('runs/split/*/record.json')), e.value

@pytest.mark.e2e
def test_killed_and_started_again(face_folder, tmp_path):
    "SIGKILL after a checkpoint of the GAN, and after one of the CNN; the record is that of an undisturbed run"
    code = """import sys, json, synthrob.gan.learner, synthrob.cnn.learner
from synthrob.core.training import Checkpoint
class Noted(Checkpoint):
    def before_fit(self):
        super().before_fit()
        with open(sys.argv[2], 'a') as f: print(self.path.parent.parent.name, self.start, file=f)
synthrob.gan.learner.Checkpoint = synthrob.cnn.learner.Checkpoint = lambda path, every, tag: Noted(path, 0, tag)   # after every epoch
from synthrob.split.core import run_split
run_split(**json.loads(sys.argv[1]))"""
    params = {**SMALL, 'path': str(face_folder), 'ratio': .3, 'gan_images': 3840, 'cnn_epochs': 20}
    def start(out): return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code, json.dumps({**params, 'out': str(out)}), str(tmp_path/'starts')],
                                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    out = tmp_path/'killed'
    for kind in 'gan', 'split':
        p = start(out)
        kill_when(p, lambda: list(out.glob(f'{kind}/*/checkpoint.safetensors')))
        assert not records(out, kind), 'it was killed in time'
    p = start(out)
    _, err = p.communicate(timeout=600)
    assert p.returncode == 0, err.decode()[-2000:]
    starts = [o.split() for o in (tmp_path/'starts').read_text().splitlines()]
    assert {k for k, n in starts if int(n)} == {'gan', 'split'}, 'both went on from a checkpoint'
    again, whole = (run_split(**{**params, 'out': str(o)}) for o in (out, tmp_path/'whole'))
    gans = [r.stages['gan'].record for r in (again, whole)]
    assert again.stages['split'].reused and again.record['resumed'] and gans[0]['resumed'] and not whole.record['resumed']
    assert gans[0]['history'] == gans[1]['history'] and again.record['history'] == whole.record['history']
    assert torch.equal(again.evaluation().probs, whole.evaluation().probs)

def kill_when(p, begun):
    "SIGKILL `p` as soon as `begun()`"
    end = time.monotonic() + 300
    while not begun() and p.poll() is None and time.monotonic() < end: time.sleep(.01)
    assert p.poll() is None, f'it ended before it could be killed: {p.stderr.read().decode()[-2000:]}'
    p.send_signal(signal.SIGKILL); p.wait()

@pytest.mark.slow
def test_fer2013(fer2013_zip, prepared):
    "The real files, five classes, with little training; near copies are looked for among a thousand of the images"
    run = run_split(data='fer2013', path=str(fer2013_zip), ratio=.3, size=48, gan_images=640, gan_width=16, cnn='poster', robustness='none',
                    cnn_epochs=3, real_share=.2, copies='exact', out=str(prepared))
    assert run.images.vocab == 'fear angry happy sad neutral'.split()
    assert len(run.splits.test) == 3118 and run.splits.report['test_with_copy_outside'] == 150
    assert run.record['leak']['copies'] == 0
    assert run.record['test']['n'] == 3118 and run.record['test']['accuracy'] > .2
    x = run.part('test').x[:1000]
    planted = torch.cat([x[:20].flip(-1), x[20:40].roll(2, -2), (x[40:60]*.6 + 30).byte()])
    pairs = near_duplicates(torch.cat([x, planted]))
    assert len(set(zip(pairs.a, pairs.b)) & {(i, 1000 + i) for i in range(60)}) >= 57

def test_a_study_gan_is_no_other_gan(face_folder, tmp_path):
    "It is trained on test images, so an experiment with equal parameters that must not be does not find it; nor on more than its share"
    given = dict(data='folder', path=str(face_folder), size=32, gan_arch='study', gan_images=640, gan_bs=32, gan_width=8, gan_pick='last', cnn='poster',
                 cnn_epochs=1, robustness='none', copies='none', out=str(tmp_path))
    study, other = (SplitRun(check_params(given | more)).stages for more in (dict(preset='study'), {}))
    assert study['parts'].hash == other['parts'].hash and study['gan'].hash != other['gan'].hash
    run = SplitRun(check_params(given | dict(preset='study', real_share=.1)))
    n = run.make('gan').record['n_train']
    assert n == len(run.train_idx) + len(run.splits.test) < 200

def test_class_weights_take_as_many_steps_as_the_mixture(face_folder, tmp_path):
    "With equal epochs of real images, too; and noise images are made of images on disk"
    given = SMALL | dict(path=str(face_folder), out=str(tmp_path), ratio=.5, how='add', equal='epochs')
    steps = {o: run_split(**given, treatment=o).record['steps'] for o in ('class_weights', 'oversample')}
    assert steps['class_weights'] == steps['oversample'] > run_split(**given | dict(ratio=0, equal='steps')).record['steps']

def test_letters_are_never_mirrored(tmp_path):
    "Mirrored, a b is a d: neither classifier nor GAN may see that, nor a prediction average over it; other hashes stay"
    x = torch.zeros(400, 1, 32, 32, dtype=torch.uint8)
    x[:, :, 4:28, 10:13], x[0::2, :, 18:28, 10:20], x[1::2, :, 18:28, 3:13] = 255, 255, 255
    for i, o in enumerate(x): place(tmp_path/'letters', (o*torch.rand(o.shape)).byte(), 'bd'[i % 2], f'{i}')
    given = SMALL | dict(path=str(tmp_path/'letters'), out=str(tmp_path), cnn='strong', min_steps=40, ratio=.5, folds=1)
    run, other = (SplitRun(check_params(given | more)) for more in (dict(mirror='never'), {}))
    assert other.recipe.flip and other.recipe.augment.flip and not (run.recipe.flip or run.recipe.augment.flip)
    differ = {k for k in run.stages if run.stages[k].hash != other.stages[k].hash}
    assert differ == {'gan', 'pool', 'split'} and run.guide.p.mirror == 'never'
    learn = gan_learner(run.part('train') if run.make('parts') else None, replace(_gan_recipe(run.p), bs=16), device='cpu')
    with learn.no_bar(): learn.fit_gan(32)
    assert learn.gan_trainer.augment.flip is False
    assert run_split(**given | dict(ratio=0), mirror='never').evaluation().accuracy > .95
