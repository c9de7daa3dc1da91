"Damage, leftovers, full and read-only disks: noticed by name, or without effect; nothing gives a traceback"
import os, resource, shutil, subprocess
from pathlib import Path

import numpy as np, pytest, torch
from fastai.callback.core import Callback
from conftest import drawn_faces
from faults import draw_images, faults, stop_in, toy
from synthrob.core import stages
from synthrob.core.basics import BadInput, write_array, write_tensors
from synthrob.core.stages import Stage
from synthrob.data import core
from synthrob.data.faces import draw_faces
from synthrob.data.dataset import Dataset
from synthrob.gan.learner import SampleSheet, gan_learner
from synthrob.split.params import check_params
from synthrob.split.run import SplitRun

def test_flips_and_truncations(tmp_path):
    "Few of those that `python tests/faults.py 200` tries"
    found, log = faults(12, seed=1, root=tmp_path)
    assert sum(found.values()) == 12 and not log, log

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    d = tmp_path_factory.mktemp('toy')
    draw_images(d/'images')
    for seed in 0, 1: run(d, seed).fit()
    return d

def run(d, seed=0): return SplitRun(check_params(toy | dict(out=str(d/'runs'), path=str(d/'images'), cnn_seed=seed)))

@pytest.fixture
def toy_runs(made, tmp_path):
    shutil.copytree(made, tmp_path/'d')
    stages._sums.clear()
    return tmp_path/'d'

@pytest.mark.parametrize('name', ['cnn.safetensors', 'predictions.parquet', 'record.json'])
def test_swapped_between_runs(toy_runs, name):
    a, b = (run(toy_runs, s).stages['split'].file(name) for s in (0, 1))
    shutil.copyfile(a, b)
    with pytest.raises(BadInput, match=f'{name} is '): run(toy_runs, 1).fit()
    run(toy_runs, 0).fit()                                         # costs only itself

def test_deleted_weights_are_not_done_and_made_again(toy_runs, capsys):
    before = run(toy_runs).evaluation().probs
    for name in 'cnn.safetensors', 'predictions.parquet': run(toy_runs).stages['split'].file(name).unlink()
    with pytest.raises(BadInput, match='is missing: --repair'): run(toy_runs).fit()
    with pytest.raises(BadInput, match='is missing: --repair'): run(toy_runs).evaluation()
    again = run(toy_runs).fit(repair=True)
    assert (again.evaluation().probs == before).all() and [k for k, s in again.stages.items() if not s.reused] == ['split']

def test_read_only_disk(toy_runs):
    "Read by another user, as root may write everywhere"
    run(toy_runs).stages['split'].file(stages.CHECKPOINT).touch()
    for f in [toy_runs, *toy_runs.rglob('*')]: f.chmod(0o555 if f.is_dir() else 0o444)
    real = Path.unlink
    def refuse(self, missing_ok=False): raise PermissionError(13, 'Permission denied')
    try:
        Path.unlink = refuse
        assert len(run(toy_runs).fit().evaluation().y)
    finally:
        Path.unlink = real
        for f in [toy_runs, *toy_runs.rglob('*')]: f.chmod(0o755 if f.is_dir() else 0o644)

@pytest.mark.parametrize('write', [lambda f: write_array(f, np.zeros(10**6)),
                                   lambda f: write_tensors(f, dict(a=torch.zeros(10**6)))], ids=['npy', 'safetensors'])
def test_limit_of_file_size_is_one_sentence(tmp_path, write):
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))
        try: write(tmp_path/'a')
        except BadInput as e: os._exit(0 if 'a cannot be written, no space left' in str(e) else 2)
        except BaseException: os._exit(3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    assert not (tmp_path/'a').exists() and not list(tmp_path.glob('.*.tmp'))

@pytest.fixture
def small_disk(tmp_path):
    "A file system of 16 MB"
    (d := tmp_path/'small').mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', str(d)], capture_output=True).returncode:
        pytest.skip('mounting needs root')
    yield d
    subprocess.run(['umount', '-l', str(d)], check=True)

def test_full_disk(made, small_disk):
    "Nothing is lost at any amount of free space, and the run goes on once there is more"
    shutil.copytree(made/'images', small_disk/'images')
    ballast, said = small_disk/'ballast', set()
    for free in 0, 30_000, 100_000, 250_000, 700_000, 1_700_000, 2_500_000:
        with open(ballast, 'wb') as f:
            left = shutil.disk_usage(small_disk).free - free
            os.posix_fallocate(f.fileno(), 0, max(1, left))
        with pytest.raises(BadInput, match='no space left') as e: run(small_disk).fit()
        said.add(Path(str(e.value).split(' cannot')[0]).name)
        ballast.unlink()
    assert len(said) > 3, said
    assert (run(small_disk).fit().evaluation().probs == run(made).evaluation().probs).all()

def test_read_only_file_system(made, small_disk):
    for o in 'images', 'runs': shutil.copytree(made/o, small_disk/o)
    subprocess.run(['mount', '-o', 'remount,ro', str(small_disk)], check=True)
    assert len(run(small_disk).fit().evaluation().y)
    with pytest.raises(BadInput, match='Read-only file system: choose another folder'): run(small_disk, 2).fit()

def test_full_disk_in_a_command(small_disk, capsys):
    (small_disk/'ballast').write_bytes(bytes(shutil.disk_usage(small_disk).free))
    assert core.main(['faces', '--out', str(small_disk/'runs')]) == 2
    assert 'no space left' in capsys.readouterr().err

def test_sample_sheets_and_temporary_files_after_a_kill(tmp_path):
    class Kill(Callback):
        order = 72                                                 # just after the checkpoint
        def after_epoch(self):
            if self.epoch == 1: raise KeyboardInterrupt
    y = torch.arange(32) % 2
    data = Dataset(draw_faces(y + 2, size=32, progress=False), y, ['happy', 'sad'])
    def train(d, *cbs):
        learn = gan_learner(data, bs=8, nf=8, device='cpu')
        learn.dls.train.n_steps = 2
        with learn.no_bar(), learn.no_logging(): learn.fit_gan(64, d/'c.safetensors', 0, [SampleSheet(d/'samples', n=2), *cbs])
        return {f.name: f.read_bytes() for f in (d/'samples').iterdir()}
    with pytest.raises(KeyboardInterrupt): train(tmp_path/'b', Kill())
    assert (sheets := train(tmp_path/'a')) == train(tmp_path/'b') and len(sheets) == 4

def test_stopped_stage_is_tidied(made, tmp_path):
    shutil.copytree(made/'images', tmp_path/'images')
    toy['path'] = str(tmp_path/'images')
    stop_in('gan', tmp_path/'runs')
    assert len([*tmp_path.rglob('.*.tmp')]) == 2
    run(tmp_path).fit()
    assert not [*tmp_path.rglob('.*.tmp')]

def test_no_path_of_this_machine_in_a_stage(made):
    "`content.json` remembers hashes of the data by their paths, for this machine only"
    assert [f.name for f in made.rglob('*') if f.is_file() and str(made).encode() in f.read_bytes()] == ['content.json']

def test_files_of_the_system_are_not_in_a_record(tmp_path):
    "They come and go; a record that names one is as whole without it"
    def work(stage):
        for k in ('made.txt', '.nfs000000000abc', '.DS_Store'): stage.file(k).write_text(k)
    s = Stage('data', dict(n=1), work, out=tmp_path).make()
    assert list(s.record['files']) == ['made.txt', 'params.json']
    s.file('.DS_Store').unlink()
    assert s.check()

def test_an_error_of_the_disk_is_no_damage(tmp_path, monkeypatch):
    "Nothing is deleted because a record could not be read once"
    s = Stage('data', dict(n=1), lambda s: s.file('a.txt').write_text('a') and None, out=tmp_path).make()
    def stale(path): raise OSError(116, 'Stale file handle')
    monkeypatch.setattr(stages, 'read_json', stale)
    with pytest.raises(BadInput, match='cannot be read .Stale file handle.'): stages.discard_damaged([s])
    monkeypatch.undo()
    assert s.check()

def test_what_another_process_has_repaired_stays(tmp_path, monkeypatch):
    "Two sweeps repair: the second waits for the lock, and finds the stage made again"
    work = lambda s: s.file('a.txt').write_text('a') and None
    s = Stage('data', dict(n=1), work, out=tmp_path).make()
    s.file('a.txt').write_text('b')
    locked = stages._locked
    def other_first(stage):
        monkeypatch.setattr(stages, '_locked', locked)
        shutil.rmtree(stage.path); Stage('data', dict(n=1), work, out=tmp_path).make()
        return locked(stage)
    monkeypatch.setattr(stages, '_locked', other_first)
    stages.discard_damaged([s])
    assert s.check() and s.file('a.txt').read_text() == 'a'

def test_relative_out_survives_chdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    s = Stage('data', {}, lambda s: {}, out='runs')
    monkeypatch.chdir('/')
    assert s.make().path.parent.parent == tmp_path/'runs'

def test_file_system_without_locks(tmp_path, monkeypatch):
    def no_locks(self, **kw): raise NotImplementedError
    monkeypatch.setattr(stages.FileLock, 'acquire', no_locks)
    assert Stage('data', {}, lambda s: {}, out=tmp_path).make().done and not list(tmp_path.glob('data/*.softlock'))

def test_weights_are_readable_by_others(toy_runs):
    modes = {f.name: f.stat().st_mode & 0o777 for f in run(toy_runs).stages['split'].path.iterdir()}
    assert len(set(modes.values())) == 1, modes

def test_a_record_is_whole_from_its_first_moment(tmp_path, monkeypatch):
    "Another process may read it as soon as it is there: it was written twice, first without its checksum"
    seen, write = [], stages.write_json
    def watched(f, obj):
        write(f, obj)
        if Path(f).name == 'record.json': seen.append(stages.read_record(Path(f).parent))
    monkeypatch.setattr(stages, 'write_json', watched)
    assert Stage('data', {}, lambda s: dict(n=np.int64(3)), out=tmp_path).make().done and [r['n'] for r in seen] == [3]

def test_a_checkpoint_of_another_seed(tmp_path):
    "Or of other data: it is refused, not taken for the end of this training"
    def fit(n, seed):
        learn = gan_learner(drawn_faces(n, 1), nf=8, nz=16, bs=10, seed=seed, device='cpu')
        learn.fit_gan(200, tmp_path/'g.safetensors')
        return len(learn.recorder.losses)
    assert fit(40, 1) and not fit(40, 1)                                             # its own is found
    for n, seed in ((40, 2), (60, 1)):
        with pytest.raises(BadInput, match=f'seed {seed}, {n} items'): fit(n, seed)
