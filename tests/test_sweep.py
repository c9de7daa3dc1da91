"Sweeps from end to end: killed at random moments, two at once, stopped, with cells that fail, and found again when they are finished"
from __future__ import annotations
import json, os, random, re, signal, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import nbformat, pandas as pd, psutil, pytest, torch
import synthrob.sweep.cells
from conftest import TOY
from synthrob.core.basics import read_tensors
from synthrob.sweep.grid import Sweep, main, sweep

# `SYNTHROB_SLOW=1 pytest tests/test_sweep.py -k killed` kills a sweep of 72 cells and their 6 baselines twenty times: some ten minutes
SLOW = bool(os.environ.get('SYNTHROB_SLOW'))
GRID, KILLS = (dict(ratio='0,.1,.2,.4,.6,.8,.9', how='replace,add', cnn_seed=6), 20) if SLOW else (dict(ratio='0,.4', cnn_seed=3), 3)
N = 78 if SLOW else 6             # ratio 0 is the same cell both ways

def flags(**grid): return [o for k, v in grid.items() for o in (f'--{k}', str(v))]

def start(faces, out, *more, before='pass'):
    "The command `synthrob_sweep`, started; its children have sessions of their own, as those of a terminal's job"
    code = f'import signal, sys; from synthrob.sweep.grid import main; {before}; sys.exit(main())'
    args = [*flags(**TOY, path=faces, out=out, slots=2), *more]
    return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code, *args], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

def finish(p):
    out, _ = p.communicate(timeout=7200 if SLOW else 600)
    return p.returncode, out

def records(out): return {f: f.read_bytes() for f in Path(out).glob('*/*/record.json')}

def kill(processes):
    for p in processes:
        try: p.kill()
        except psutil.NoSuchProcess: pass

def gone(processes):
    "All of `processes` end by themselves within half a minute"
    left = psutil.wait_procs(processes, timeout=30)[1]
    assert not left, f'still running: {[p.cmdline() for p in left]}'

@pytest.fixture(scope='module')
def undisturbed(faces, tmp_path_factory):
    "The folder of a sweep that ran from its beginning to its end"
    out = tmp_path_factory.mktemp('undisturbed')/'runs'
    code, said = finish(start(faces, out, *flags(**GRID)))
    assert code == 0 and f'{N} of {N} cells are done, {N} of them made now; 0 failed' in said, said
    return out

@pytest.mark.e2e
def test_stopped_in_the_background(faces, tmp_path):
    "What a script has started with & hears no Ctrl-C; a SIGTERM stops it all the same"
    p = start(faces, tmp_path, '--ratio', '0', before='signal.signal(signal.SIGINT, signal.SIG_IGN)')
    end = time.monotonic() + 120
    while not list(tmp_path.glob('split/*/*')) and p.poll() is None and time.monotonic() < end: time.sleep(.02)
    p.send_signal(signal.SIGTERM)
    code, said = finish(p)
    assert code == 130 and 'Stopped: 0 of 1 cells are done' in said, (code, said)
    assert 'Traceback' not in said, said                                   # of the kernel, in the middle of a cell

@pytest.mark.e2e
@pytest.mark.timeout(3600 if SLOW else 900)
def test_killed_at_random_moments(faces, undisturbed, tmp_path):
    "SIGKILL to the sweep, or to all that it has started, or Ctrl-C: no record is lost or damaged, and the end is that of an undisturbed sweep"
    files = lambda folder: sum(len(names) for _, _, names in os.walk(folder))
    rng, hit, seen, step = random.Random(2), 0, {}, 1.5*files(undisturbed)/KILLS
    for i in range(KILLS):
        p = start(faces, tmp_path, *flags(**GRID))
        least = files(tmp_path) + rng.uniform(0, step)                     # a moment that does not depend on the machine
        while p.poll() is None and files(tmp_path) < least: time.sleep(.02)
        time.sleep(rng.uniform(0, .5))
        hit += p.poll() is None
        family = psutil.Process(p.pid).children(recursive=True) if p.poll() is None else []
        how = ('SIGKILL', 'SIGINT', 'all')[i % 3]
        if how == 'all': kill(family)
        p.send_signal(signal.SIGINT if how == 'SIGINT' else signal.SIGKILL)
        code, said = finish(p)
        gone(family)
        if how == 'SIGINT' and 'running' in said and code: assert code == 130 and 'Stopped: ' in said, (code, said)
        for f, content in seen.items(): assert f.read_bytes() == content, f'{f} was made twice'
        seen = records(tmp_path)
        for f, content in seen.items(): assert json.loads(content)['hash'] == f.parent.name
    assert hit > KILLS/2, 'most kills have hit a running sweep'
    assert not list(tmp_path.glob('cell/*/error.json')), 'who is killed has not failed'
    code, said = finish(start(faces, tmp_path, *flags(**GRID)))
    assert code == 0 and f'{N} of {N} cells are done' in said, said
    for f, content in seen.items(): assert f.read_bytes() == content
    same(tmp_path, undisturbed)

def same(a, b):
    "What two folders hold is the same: records but for times, predictions, weights; and one GAN"
    a, b = Path(a), Path(b)
    times = ('started', 'finished', 'seconds', 'resumed', 'took', 'given')
    for kind, n in dict(cell=N, split=N, gan=1, data=1).items():
        names = sorted(p.parent.name for p in b.glob(f'{kind}/*/record.json'))
        assert len(names) == n and names == sorted(p.parent.name for p in a.glob(f'{kind}/*/record.json'))
        for h in names:
            ra, rb = (json.loads((o/kind/h/'record.json').read_bytes()) for o in (a, b))
            assert {k: v for k, v in ra.items() if k not in times} == {k: v for k, v in rb.items() if k not in times}
            if kind == 'cell':
                outputs = [o for c in nbformat.read(a/kind/h/'03_split.ipynb', 4).cells for o in c.get('outputs', [])]
                assert outputs and not [o for o in outputs if o.output_type == 'error']
            for f in (b/kind/h).glob('*.safetensors'):
                ta, tb = read_tensors(a/kind/h/f.name), read_tensors(f)
                assert ta.keys() == tb.keys() and all(torch.equal(ta[k], tb[k]) for k in ta), f'{kind}/{h}/{f.name}'
            for f in (b/kind/h).glob('*.parquet'):
                pd.testing.assert_frame_equal(pd.read_parquet(a/kind/h/f.name), pd.read_parquet(f))

@pytest.mark.e2e
def test_two_at_once(faces, tmp_path):
    "Each cell is executed by one of them, and both end when all is done"
    both = [start(faces, tmp_path, *flags(ratio='0,.5', cnn_seed=2)) for _ in range(2)]
    said = [finish(p) for p in both]
    assert all(code == 0 and '4 of 4 cells are done' in o for code, o in said), said
    assert sum(int(re.search(r'(\d+) of them made now', o)[1]) for _, o in said) == 4
    assert {k: len(list(tmp_path.glob(f'{k}/*/record.json'))) for k in ('data', 'gan', 'pool', 'split', 'cell', 'sweep')} == dict(
        data=1, gan=1, pool=1, split=4, cell=4, sweep=0)
    assert len(list(tmp_path.glob('sweep/*/sweep.json'))) == 1

@pytest.mark.e2e
def test_finished_starts_nothing(faces, undisturbed, monkeypatch, capsys):
    "Neither an engine nor a kernel; and nothing is checked a second time that would need fastai"
    main([*flags(**TOY, path=faces, out=undisturbed), *flags(**GRID)])
    def no(*args, **kwargs): raise AssertionError('nothing was to be started')
    for what in 'engines.local', 'kernels.KernelServer', 'kernels.execute', 'sweep.run_cell', 'split.check_params':
        monkeypatch.setattr(f'synthrob.{what}', no)
    capsys.readouterr()
    assert main([*flags(**TOY, path=faces, out=undisturbed), *flags(**GRID)]) == 0
    assert f'{N} of {N} cells are done, 0 of them made now; 0 failed.' in capsys.readouterr().out

@pytest.mark.e2e
def test_dry_run(faces, undisturbed, tmp_path, capsys):
    "What it costs is known where such cells have been run, and said to be unknown where not; nothing is written"
    assert main([*flags(**TOY, path=faces, out=tmp_path/'new', ratio='0,.5', cnn_seed=6), '--dry-run']) == 0
    said = capsys.readouterr().out
    assert '12 cells: 0 done' in said and 'not known for 12 cells and 1 GAN' in said and 'too few: --seeds 8' in said
    assert not (tmp_path/'new').exists()
    main([*flags(**TOY, path=faces, out=undisturbed, ratio='0,.4', cnn_seed=9, sd=.005), '--dry_run'])
    said = capsys.readouterr().out
    assert re.search(r'18 cells: \d+ done', said) and re.search(r'Cost: about \d+ (s|min) by finished cells', said) and 'which is enough' in said

@pytest.fixture
def pretend(monkeypatch):
    "Cells that are executed in no time: the names of those that were, and what happens to the next ones"
    class Pretend:
        done, then = [], {}
    def execute(given, cwd, art):
        Pretend.done.append((given['ratio'], given['cnn_seed']))
        if e := Pretend.then.get(Pretend.done[-1]): raise e
        return dict(split='0'*16, robust=None, gan=None, took=dict(split=1.), ran_on='cpu')
    Pretend.done.clear(), Pretend.then.clear()
    monkeypatch.setattr(synthrob.sweep.cells, '_execute', execute)
    return Pretend

def test_a_cell_fails(pretend, tmp_path, capsys):
    "It is reported in one line, does not stop the others, is left alone the next time, and tried again with `retry`"
    pretend.then[.5, 1] = RuntimeError('the GPU fell off\nTraceback')
    grid = dict(ratio=[0, .5], cnn_seed=3, out=str(tmp_path), engine=ThreadPoolExecutor(2))
    s = sweep(**grid)
    assert s.table.state.tolist() == ['done']*4 + ['failed', 'done']
    said = capsys.readouterr()
    assert 'ratio=0.5 cnn_seed=1: RuntimeError: the GPU fell off' in said.out and 'Traceback' not in said.out + said.err
    assert '--retry' in said.out and 'failed: ratio=0.5 cnn_seed=1' in said.err
    pretend.done.clear()
    sweep(**grid)
    assert not pretend.done, 'nothing was left to be done'
    sweep(**{**grid, 'cnn_seed': 4})
    assert sorted(pretend.done) == [(0, 3), (.5, 3)] and '1 cell failed before; retry=True (--retry)' in capsys.readouterr().err
    pretend.then.clear(), pretend.done.clear()
    s = sweep(**grid, retry=True)
    assert pretend.done == [(.5, 1)] and set(s.table.state) == {'done'}

def test_the_leader_fails(pretend, tmp_path):
    "The next cell of its GAN goes ahead in its place"
    pretend.then[.3, 0] = ValueError('no')
    s = sweep(ratio=[.3, .6], cnn_seed=2, out=str(tmp_path), engine=ThreadPoolExecutor(4))
    assert s.table.state.tolist() == ['failed', 'done', 'done', 'done'] and pretend.done[:2] == [(.3, 0), (.6, 0)]

def test_others_start_when_the_gan_stands(monkeypatch, tmp_path):
    "The second cell of a GAN waits for the GAN, and not for the classifier that the first one trains with it"
    second = threading.Event()
    def execute(given, cwd, art):
        if given['cnn_seed']: second.set()
        else:
            assert not second.wait(1.), 'it did not wait for the GAN'
            art.file(synthrob.sweep.cells.NOTEBOOK).write_text(f'Artefact({tmp_path}/gan/{"a"*16}, finished)')
            assert second.wait(60), 'it waits for the whole cell'
        return dict(split='0'*16, robust=None, gan=None, took=dict(split=1.), ran_on='cpu')
    monkeypatch.setattr(synthrob.sweep.cells, '_execute', execute)
    assert set(sweep(ratio=.5, cnn_seed=2, out=str(tmp_path), engine=ThreadPoolExecutor(2)).table.state) == {'done'}

def test_a_worker_dies(pretend, monkeypatch, tmp_path):
    "The cell is tried once more; then it has failed"
    class Dies(ThreadPoolExecutor):
        left = 1
        def submit(self, fn, *args):
            self.left -= 1
            return super().submit(*((int, 'dead') if self.left >= 0 else (fn, *args)))
    assert set(sweep(ratio=0, cnn_seed=2, out=str(tmp_path/'a'), engine=Dies(1)).table.state) == {'done'}
    Dies.left = 3                                         # the first cell, the second, and the first once more
    s = sweep(ratio=0, cnn_seed=2, out=str(tmp_path/'b'), engine=Dies(1))
    assert s.table.state.tolist() == ['failed', 'done'] and s.table.error[0].startswith('ValueError')

def test_the_engine_breaks(pretend, tmp_path):
    "An executor that takes no more ends the sweep; what is done stays done"
    class Breaks(ThreadPoolExecutor):
        left = 2
        def submit(self, *args):
            self.left -= 1
            if self.left < 0: raise RuntimeError('cannot schedule new futures')
            return super().submit(*args)
    with pytest.raises(RuntimeError, match='cannot schedule'): sweep(ratio=0, cnn_seed=4, out=str(tmp_path), engine=Breaks(1))
    assert Sweep(dict(ratio=0, cnn_seed=4), out=str(tmp_path)).table.state.tolist().count('done') == 2

@pytest.mark.parametrize('args, sentence', [
    (['--raitos', '0'], "There is no argument '--raitos': did you mean '--ratios'?"), (['--ratios', '0,2'], 'ratio=2 cannot be'),
    (['--ratios', '0,.1,...,.95'], 'equal steps that arrive'), (['--seeds', '0'], 'no seed at all'), (['--cnn', 'vgg'], "'vgg'"),
    (['--ratio', '1', '--how', 'add'], "ratio=1 with how='add'"), (['--data', 'fer2013'], 'needs a path'), ([], 'Give a file or an axis'),
    (['missing.yaml'], 'missing.yaml cannot be read'), (['--ratio', '0', '--engine', 'cloud'], "no engine 'cloud'"),
    (['--ratio', '0', '--option', 'thread=2'], "did you mean 'threads'?"), (['--ratio', '0', '--slots', '0'], 'slots=0 cannot be'),
    (['--ratio', '0', '--margin', '7'], 'margin=7'), (['--path', '/not/there', '--data', 'folder'], '/not/there')])
def test_refused_in_one_sentence(args, sentence, tmp_path, capsys):
    assert main([*args, '--out', str(tmp_path/'runs')]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith('synthrob_sweep: ') and sentence in said
    assert not list(tmp_path.glob('runs/cell/*')), 'nothing was begun'

def test_yaml_and_flags(faces, tmp_path, capsys):
    "A file with two grids; a flag takes the place of what it says, in both"
    f = tmp_path/'sweep.yaml'
    f.write_text(f"{json.dumps(TOY)[1:-1].replace(', ', chr(10)).replace(chr(34), '')}\npath: {faces}\nout: {tmp_path/'runs'}\ncnn_seed: 2\nmargin: .01\n"
                 "grids:\n  - ratio: [0, .25, ..., 1]\n    how: [replace, add]\n  - {ratio: .5, filler: [repeat, none]}\n")
    assert main([str(f), '--seeds', '3', '--dry-run']) == 0
    said = capsys.readouterr().out
    assert '30 cells (33 combinations' in said and 'Left out 3 combinations: ratio=1' in said and 'less than 1.0%' in said
