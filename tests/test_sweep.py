"Sweeps: planned, killed at random moments, two at once, stopped, with cells that fail, and found again when finished"
from __future__ import annotations
import json, os, random, re, shutil, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
import nbformat, pandas as pd, psutil, pytest, torch
from conftest import TOY
from synthrob.core.basics import BadInput, read_tensors, write_json
from synthrob.core.stages import _locked
from synthrob.sweep.cluster import Run
from synthrob.sweep.command import main, sweep
from synthrob.sweep.grid import Sweep

# `SYNTHROB_SLOW=1 pytest -m e2e tests/test_sweep.py -k killed` kills a sweep of 72 cells twenty times
SLOW = bool(os.environ.get('SYNTHROB_SLOW'))
GRID, KILLS = (dict(ratio='0,.1,.2,.4,.6,.8,.9', how='replace,add', cnn_seed=6), 20) if SLOW else (dict(ratio='0,.4', cnn_seed=2), 3)
N = 78 if SLOW else 4             # ratio 0 is the same cell both ways

def flags(**grid): return [o for k, v in grid.items() for o in (f'--{k}', str(v))]

def start(faces, out, *more, before='pass', **grid):
    "Start the command `synthrob_sweep` in a session of its own, as a terminal's job"
    code = f'import signal, sys; from synthrob.sweep.command import main; {before}; sys.exit(main())'
    args = [*flags(**{**TOY, 'path': faces, 'out': out, 'slots': 2, **grid}), *more]
    return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code, *args], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, start_new_session=True)

def finish(p):
    out, _ = p.communicate(timeout=7200 if SLOW else 800)
    return p.returncode, out

def workers(p): return [c for c in psutil.Process(p.pid).children(recursive=True) if 'spawn_main' in ' '.join(c.cmdline())]

def until(what, p, seconds=300):
    "Wait for `what()` while `p` runs"
    end = time.monotonic() + seconds
    while not what() and p.poll() is None and time.monotonic() < end: time.sleep(.02)
    assert p.poll() is None, p.communicate()[0]

def gone(processes):
    "All of `processes` end by themselves within half a minute"
    left = psutil.wait_procs(processes, timeout=30)[1]
    assert not left, f'still running: {[p.cmdline() for p in left]}'

def records(out): return {f: f.read_bytes() for f in Path(out).glob('*/*/record.json')}

@pytest.fixture(scope='module')
def undisturbed(faces, tmp_path_factory):
    "The folder of a sweep whose cells were made one after another in this process"
    s = Sweep({**TOY, 'path': faces, **GRID}, out=tmp_path_factory.mktemp('undisturbed')/'runs')
    s.declare()
    for c in s.cells: c.stage.make()
    return s.out

def same(a, b):
    "Two folders hold the same: records but for times, predictions, weights; and one GAN"
    a, b = Path(a), Path(b)
    times = ('started', 'finished', 'seconds', 'resumed', 'given', 'files', 'checksum')
    plain = lambda o: {k: plain(v) for k, v in o.items() if k not in times} if isinstance(o, dict) else o
    for kind, n in dict(cell=N, split=N, gan=1, pool=None, parts=1, data=1).items():
        names = sorted(p.parent.name for p in b.glob(f'{kind}/*/record.json'))
        assert n in (None, len(names)) and names == sorted(p.parent.name for p in a.glob(f'{kind}/*/record.json'))
        for h in names:
            ra, rb = (json.loads((o/kind/h/'record.json').read_bytes()) for o in (a, b))
            assert plain(ra) == plain(rb), f'{kind}/{h}'
            if kind == 'cell':
                outputs = [o for c in nbformat.read(a/kind/h/'03_split.ipynb', 4).cells for o in c.get('outputs', [])]
                assert outputs and not [o for o in outputs if o.output_type == 'error']
            for f in (b/kind/h).glob('*.safetensors'):
                ta, tb = read_tensors(a/kind/h/f.name), read_tensors(f)
                assert ta.keys() == tb.keys() and all(torch.equal(ta[k], tb[k]) for k in ta), f'{kind}/{h}/{f.name}'
            for f in (b/kind/h).glob('*.parquet'):
                pd.testing.assert_frame_equal(pd.read_parquet(a/kind/h/f.name), pd.read_parquet(f))

@pytest.mark.e2e
@pytest.mark.timeout(7200 if SLOW else 1800)
def test_killed_at_random_moments(faces, undisturbed, tmp_path):
    "SIGKILL to the sweep or to a worker, or Ctrl-C: no record is lost, and the end is that of an undisturbed sweep"
    files = lambda folder: sum(len(names) for _, _, names in os.walk(folder))
    rng, hit, seen, step = random.Random(2), 0, {}, 1.2*files(undisturbed)/KILLS
    for i in range(KILLS):
        p = start(faces, tmp_path, **GRID)
        least = files(tmp_path) + rng.uniform(2, step)                     # a moment that does not depend on the machine
        while p.poll() is None and files(tmp_path) < least: time.sleep(.02)
        time.sleep(rng.uniform(0, .5))
        hit += (runs := p.poll() is None)
        family = psutil.Process(p.pid).children(recursive=True) if runs else []
        how = 'worker' if i == KILLS - 1 else ('SIGKILL', 'SIGINT')[i % 2]   # a sweep that loses a worker ends well
        if how == 'worker' and runs and (ws := workers(p)): rng.choice(ws).kill()
        if how == 'SIGINT' and runs: os.killpg(p.pid, signal.SIGINT)       # as a terminal does
        if how == 'SIGKILL': p.kill()
        code, said = finish(p)
        gone(family)
        if how == 'SIGINT' and runs and code: assert code == 130 and 'Stopped: ' in said and 'Traceback' not in said, (code, said)
        if how == 'worker' and runs: assert code == 0 and '; 0 failed' in said, said
        for f, content in seen.items(): assert f.read_bytes() == content, f'{f} was made twice'
        seen = records(tmp_path)
        for f, content in seen.items(): assert json.loads(content)['hash'] == f.parent.name
    assert hit > KILLS/2, 'most kills have hit a running sweep'
    assert not list(tmp_path.glob('cell/*/error.json')), 'who is killed has not failed'
    code, said = finish(start(faces, tmp_path, **GRID))
    assert code == 0 and f'{N} of {N} cells are done' in said, said
    for f, content in seen.items(): assert f.read_bytes() == content
    same(tmp_path, undisturbed)

@pytest.mark.e2e
def test_sigterm_in_the_background(faces, tmp_path):
    "A process that a script started with & ignores Ctrl-C; SIGTERM stops it all the same"
    p = start(faces, tmp_path, before='signal.signal(signal.SIGINT, signal.SIG_IGN)', ratio=.4, gan_images=20_000)
    until(lambda: list(tmp_path.glob('gan/*/*')), p)
    family = workers(p)
    p.send_signal(signal.SIGTERM)
    code, said = finish(p)
    gone(family)
    assert code == 130 and 'Stopped: 0 of 1 cells are done' in said and 'Traceback' not in said, (code, said)

@pytest.mark.e2e
def test_two_at_once(faces, tmp_path):
    "Each stage is made by one of them, and both end when all is done"
    both = [start(faces, tmp_path, **{**GRID, 'slots': 1}) for _ in range(2)]
    said = [finish(p) for p in both]
    assert all(code == 0 and f'{N} of {N} cells are done' in o for code, o in said), said
    assert sum(int(re.search(r'(\d+) of them made now', o)[1]) for _, o in said) == N
    assert {k: len(list(tmp_path.glob(f'{k}/*/record.json'))) for k in ('data', 'gan', 'pool', 'split', 'cell')} == dict(
        data=1, gan=1, pool=1, split=N, cell=N)
    assert len(list(tmp_path.glob('sweep/*/sweep.json'))) == 1

@pytest.mark.e2e
def test_a_cell_fails(faces, tmp_path):
    "It is reported in one line, stops no other, waits for --retry, and then succeeds"
    toy = {**TOY, 'path': faces}
    bad = Sweep({**toy, 'ratio': 0, 'cnn_seed': 2}, out=tmp_path).cells[1].run.stages['split']
    bad.path.parent.mkdir(parents=True)
    bad.path.write_text('a file where a folder should be')
    grid = dict(toy, ratio=0, cnn_seed=2, out=str(tmp_path), slots=1)
    s = sweep(**grid)
    assert s.table.state.tolist() == ['done', 'failed'] and s.cells[1].error['traceback'].startswith('Traceback')
    bad.path.unlink()
    assert sweep(**grid).table.state.tolist() == ['done', 'failed'], 'it is left alone'
    assert sweep(**grid, retry=True).table.state.tolist() == ['done', 'done']
    (lost := s.cells[0].run.stages['split'].file('cnn.safetensors')).unlink()
    assert sweep(**grid, repair=True).table.state.tolist() == ['done', 'done'] and lost.exists()
    shutil.rmtree(lost.parent)
    assert Sweep({k: v for k, v in grid.items() if k not in ('out', 'slots')}, out=tmp_path).states == dict(open=1, done=1)
    assert sweep(**grid).table.state.tolist() == ['done', 'done'] and lost.exists(), 'a run that was deleted is made again'

def test_a_second_sweep_takes_other_cells(faces, tmp_path):
    "In order, unless another process is at them: then it would wait for each of its cells"
    s = Sweep({**TOY, 'path': faces, 'ratio': [0, .4], 'cnn_seed': 20}, out=tmp_path)
    client = SimpleNamespace(submit=lambda f, p, hash, *args, **kw: SimpleNamespace(key=hash, add_done_callback=lambda f: None))
    seeds = lambda: [c.p.cnn_seed for c in Run(s, client, False).cells]
    in_order = sorted([*range(20)]*2)
    assert seeds() == in_order
    with _locked(s.cells[0].run.stages['split']): assert seeds() != in_order == sorted(seeds())
    assert seeds() == in_order

@pytest.mark.e2e
def test_out_of_memory(faces, tmp_path, capsys):
    "A worker that takes more memory than it may costs retries, then its cell; one sentence says so"
    with pytest.MonkeyPatch.context() as m:
        m.setitem(__import__('synthrob.sweep.cluster', fromlist=['_config'])._config, 'distributed.scheduler.allowed-failures', 0)
        s = sweep(dict(TOY, path=faces, ratio=.4, gan_images=10**6, gan_bs=1024, gan_width=256, out=str(tmp_path)), slots=1, memory=1.2)
    assert s.cells[0].state == 'failed' and 'as happens when memory runs out: use fewer slots' in s.cells[0].error['error']

@pytest.mark.e2e
def test_schedulers_that_fail(faces, tmp_path, monkeypatch):
    "An address without a scheduler, a cluster without workers, a scheduler that dies: one sentence each"
    import synthrob.sweep.cluster as cluster
    monkeypatch.setattr(cluster, '_patience', 5.)
    grid = dict(TOY, path=faces, ratio=.4, gan_images=10**6, out=str(tmp_path))
    for address in 'tcp://127.0.0.1:9', 'nonsense':
        with pytest.raises(BadInput, match=f"scheduler='{address}' does not answer"): sweep(grid, scheduler=address)
    dask = lambda *args: subprocess.Popen([sys.executable, '-m', 'dask', *args, '--no-dashboard'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    f, ps = tmp_path/'scheduler.json', []
    try:
        ps.append(dask('scheduler', '--host', '127.0.0.1', '--port', '0', '--scheduler-file', str(f)))
        until(lambda: f.exists() and f.read_text().rstrip()[-1:] == '}', ps[0])
        address = json.loads(f.read_text())['address']
        with pytest.raises(BadInput, match='No worker has been free for a minute'): sweep(grid, scheduler=address)
        ps.append(dask('worker', address, '--nthreads', '2'))
        with pytest.raises(BadInput, match='has 2 threads, but trains one net at a time'): sweep(grid, scheduler=address)
        ps.pop().kill()
        ps.append(dask('worker', address, '--nthreads', '1'))
        p = start(faces, tmp_path, scheduler=address, ratio=.4, gan_images=10**6)
        until(lambda: list(tmp_path.glob('gan/*/params.json')), p)
        ps[0].kill()
        code, said = finish(p)
        assert code == 2 and 'synthrob_sweep: The scheduler has gone' in said and 'Traceback' not in said, said
    finally:
        for o in ps[::-1]: o.kill()

@pytest.mark.e2e
def test_finished_starts_nothing(faces, undisturbed, monkeypatch, capsys):
    "A finished sweep is found without a cluster, in a moment"
    def no(*args, **kwargs): raise AssertionError('nothing was to be started')
    monkeypatch.setattr('synthrob.sweep.command.run_cells', no)
    assert main([*flags(**TOY, path=faces, out=undisturbed), *flags(**GRID)]) == 0
    assert f'{N} of {N} cells are done, 0 of them made now; 0 failed.' in capsys.readouterr().out

def test_a_plan_of_a_thousand_cells(tmp_path, capsys):
    "It takes at most about ten times as long as one of a hundred, and writes data and parts only"
    def plan(ratios, seeds):
        t, grid = time.process_time(), ['--ratios', ratios, '--how', 'replace,add', '--classes', 'prior,balance', '--seeds', seeds]
        assert main([*grid, '--out', str(tmp_path), '--dry-run']) == 0
        return time.process_time() - t
    few = plan('0,.3,.5,.9', '8')
    assert '104 cells' in capsys.readouterr().out
    assert plan('0,.1,...,.9', '27') < 15*few
    assert '999 cells' in capsys.readouterr().out and {p.name for p in tmp_path.iterdir()} == {'data', 'parts'}, 'nothing else is written'

def test_the_price(faces, tmp_path, capsys):
    "It is not known where no such stage has been made, and known where one has"
    args = [*flags(**TOY, path=faces, out=tmp_path, ratio='0,.5', cnn_seed=6), '--dry-run']
    main(args)
    said = capsys.readouterr().out
    assert '12 cells: 0 done' in said and "(12 of 'split', 1 of 'gan', 1 of 'pool')" in said and 'for others of their kind, no number of seeds shows less than' in said, said
    assert 'first run one cell: --ratio 0.5 --seeds 1 in place of --dry_run.' in said, said
    for s in Sweep({**TOY, 'path': faces, 'ratio': [0, .5]}, out=tmp_path).cells[1].stage.upstream():
        if not s.done: write_json(s.file('record.json'), dict(kind=s.kind, hash=s.hash, **s.spec, resumed=False, device='cpu', seconds=50))
    main([*args, '--sd', '.005', '--slots', '2'])
    said = capsys.readouterr().out
    assert '12 cells: 1 done' in said and 'Cost: about 9 min (5 min on 2 slots' in said and 'Seeds: ' in said, said

@pytest.mark.e2e
def test_one_cell_gives_a_price(faces, tmp_path, capsys):
    "A dry run prints the flags of a cell of the sweep; once it has run, no cost is unknown"
    args, plan = flags(**TOY, path=faces, out=tmp_path, ratio='0,.3,.5', how='replace,add', cnn_seed='3,4'), lambda: capsys.readouterr().out
    main([*args, '--dry_run'])
    first = re.search('first run one cell: (.*) in place of --dry_run', said := plan())
    assert first and 'Cost: not known' in said, said
    assert main([*args, *first[1].split(), '--slots', '1']) == 0 and '1 of 1 cells are done' in plan()
    main([*args, '--dry_run'])
    said = plan()
    assert '1 done, 0 failed, 9 to run' in said and 'Cost: about ' in said and 'not known' not in said, said

@pytest.mark.parametrize('args, sentence', [
    (['--raitos', '0'], "There is no argument '--raitos': did you mean '--ratios'?"), (['--ratios', '0,2'], 'ratio=2'),
    (['--ratios', '0,.1,...,.95'], 'has no equal steps'), (['--seeds', '0'], 'no seed at all'), (['--cnn', 'vgg'], "'vgg'"),
    (['--ratio', '1', '--how', 'add'], "ratio=1 does not go with how='add'"), (['--data', 'fer2013'], 'needs a path'),
    ([], 'Give a file or a grid'), (['missing.yaml'], 'missing.yaml cannot be read'), (['--ratio', '0', '--engine', 'cloud'], "no engine 'cloud'"),
    (['--ratio', '0', '--slots', '0'], 'slots=0 is out of range'), (['--ratio', '0', '--margin', '7'], 'margin=7'),
    (['--path', '/not/there', '--data', 'folder'], '/not/there')])
def test_refused_in_one_sentence(args, sentence, tmp_path, capsys):
    assert main([*args, '--out', str(tmp_path/'runs')]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith('synthrob_sweep: ') and sentence in said
