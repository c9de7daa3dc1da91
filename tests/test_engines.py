"Engines under stress: workers that are killed, programs that are killed, Ctrl-C; and a real Slurm, where one runs"
from __future__ import annotations
import json, os, shutil, signal, subprocess, sys, time
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from pathlib import Path
import psutil, pytest
from conftest import TOY
from synthrob.sweep.engines import (ENDED, GRACE, LocalExecutor, WorkerDied, slot_environments, slurm, slurm_queue, status)
from synthrob.sweep.grid import Sweep

pytestmark = pytest.mark.e2e
slow = pytest.mark.skipif(not os.environ.get('SYNTHROB_SLOW'), reason='takes minutes: SYNTHROB_SLOW=1 runs it')

SMALL = '''
import os, signal, subprocess, sys, time
from pathlib import Path

def sleep(s): time.sleep(s); return s
def fail(what): raise ValueError(f'{what} cannot be')
def die(how): print('the last words', file=sys.stderr, flush=True); os.kill(os.getpid(), how); time.sleep(5)
def leave(code): sys.exit(code)
def add(*xs): return sum(xs)
def much(n): return b'x'*n
def environment(*names): return os.getpid(), [os.environ.get(o) for o in names]

def meet(folder, n, name):
    "Wait until `n` are here; the GPU that is seen"
    Path(folder, name).touch()
    end = time.time() + 60
    while len(os.listdir(folder)) < n and time.time() < end: time.sleep(.02)
    return len(os.listdir(folder)), os.environ['CUDA_VISIBLE_DEVICES']

class Picky(Exception):
    def __init__(self, a, b): super().__init__(f'{a} and {b}')
def picky(): raise Picky(1, 2)

def stuck(folder, stubborn=False):
    "Start a process, tell its number and ours, and wait for ever; whoever is stubborn does not let itself be stopped"
    p = subprocess.Popen(['sleep', '600'], start_new_session=True)
    tell = Path(folder)/f'{os.getpid()}.tmp'
    tell.write_text(f'{os.getpid()} {p.pid}')
    tell.rename(tell.with_suffix('.pids'))
    while True:
        try: time.sleep(600)
        except BaseException:
            if not stubborn: raise

def steps(file, n, pause, deaf=False):
    "Count to `n` in a file, from where it stands; the processes that have counted"
    if deaf: signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    for _ in range(n - len(Path(file).read_text().split()) if Path(file).exists() else n):
        with open(file, 'a') as f: print(os.getpid(), file=f)
        time.sleep(pause)
    return Path(file).read_text().split()
'''

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A module that other processes find, too"
    folder = tmp_path_factory.mktemp('small')
    (folder/'small_tasks.py').write_text(SMALL)
    with pytest.MonkeyPatch.context() as m:
        m.syspath_prepend(folder)
        m.setenv('PYTHONPATH', os.pathsep.join([str(folder), *filter(None, [os.environ.get('PYTHONPATH')])]))
        import small_tasks
        yield small_tasks

def until(what, seconds=60):
    "Wait for `what()`, and give it back"
    end = time.monotonic() + seconds
    while not (r := what()) and time.monotonic() < end: time.sleep(.05)
    assert r, 'it did not happen in time'
    return r

def pids(folder, n):
    "The numbers that `n` calls of `stuck` have told"
    files = until(lambda: len(fs := sorted(Path(folder).glob('*.pids'))) >= n and fs)
    return [int(o) for f in files for o in f.read_text().split()]

def gone(ps): return not any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in ps)

# --- this machine ---

def test_many_on_few(small):
    with LocalExecutor(slot_environments(3, 1)) as ex:
        futures = [ex.submit(small.add, i, i) for i in range(200)]
        assert [f.result(60) for f in futures] == [2*i for i in range(200)]
        assert len(ex.submit(small.much, 20_000_000).result(60)) == 20_000_000

def test_slots_share_the_gpus(small, tmp_path):
    with LocalExecutor(slot_environments(4, 1, ['0', '1'])) as ex:
        futures = [ex.submit(small.meet, tmp_path, 2, str(i)) for i in range(2)]
        assert {f.result(90) for f in futures} == {(2, '0'), (2, '1')}, 'two at once, on a GPU each'

def test_threads_and_logs(small, tmp_path):
    with LocalExecutor(slot_environments(1, 3), tmp_path/'logs') as ex:
        wanted = 'OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'CUDA_VISIBLE_DEVICES'
        pid, names = ex.submit(small.environment, *wanted).result(60)
        assert names == ['3', '3', ''] and pid != os.getpid()
        assert isinstance(ex.submit(small.die, signal.SIGKILL).exception(60), WorkerDied)
    assert (tmp_path/'logs'/'slot_0.log').read_text() == 'the last words\n'
    assert gone([pid])

@pytest.mark.parametrize('end, arg, sentence', [
    ('die', signal.SIGKILL, 'SIGKILL, as happens when memory runs out: use fewer slots. It said last: the last words'),
    ('die', signal.SIGSEGV, 'was killed by SIGSEGV. It said last: the last words'),
    ('leave', 3, 'ended with exit code 3.')])
def test_one_dies_alone(small, end, arg, sentence):
    with LocalExecutor(slot_environments(2, 1)) as ex:
        long, dead = ex.submit(small.sleep, 3), ex.submit(getattr(small, end), arg)
        after = [ex.submit(small.add, i) for i in range(5)]
        with pytest.raises(WorkerDied) as e: dead.result(60)
        assert str(e.value).endswith(sentence) and '\n' not in str(e.value)
        assert long.result(60) == 3 and [f.result(60) for f in after] == list(range(5))

def test_what_was_raised(small):
    with LocalExecutor(slot_environments(1, 1)) as ex:
        with pytest.raises(ValueError, match='this cannot be') as e: ex.submit(small.fail, 'this').result(60)
        assert 'small_tasks.py' in str(e.value.__cause__)
        with pytest.raises(RuntimeError, match='Picky: 1 and 2'): ex.submit(small.picky).result(60)
        assert ex.submit(small.add, 1).result(60) == 1

@pytest.mark.parametrize('stubborn', [False, True])
def test_cancelled(small, tmp_path, stubborn):
    ex = LocalExecutor(slot_environments(2, 1))
    futures = [ex.submit(small.stuck, tmp_path, stubborn) for _ in range(2)] + [ex.submit(small.add, 1)]
    ps, t = pids(tmp_path, 2), time.monotonic()
    ex.shutdown(cancel_futures=True)
    assert time.monotonic() - t < 2*GRACE + 5 and gone(ps)
    assert futures[2].cancelled() and not wait(futures, 1).not_done and status(futures) == dict(cancelled=3)
    for f in futures: pytest.raises(CancelledError, f.result)

PROGRAM = '''
import sys
from synthrob.sweep.engines import LocalExecutor, slot_environments
import small_tasks
ex = LocalExecutor(slot_environments(2, 1))
futures = [ex.submit(small_tasks.stuck, sys.argv[1], i == 0) for i in range(4)]
try: futures[3].result()
except KeyboardInterrupt: ex.shutdown(cancel_futures=True); print('stopped'); sys.exit(7)
'''

@pytest.mark.parametrize('how, code, said', [
    (signal.SIGINT, 7, 'stopped\n'), (signal.SIGKILL, -signal.SIGKILL, ''), (signal.SIGTERM, -signal.SIGTERM, '')])
def test_the_program_ends(small, tmp_path, how, code, said):
    "Ctrl-C goes to the whole group, as in a terminal; whatever it is, nothing is left after some seconds"
    p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', PROGRAM, tmp_path], start_new_session=True,
                         stdout=subprocess.PIPE, text=True)
    ps = pids(tmp_path, 2)
    assert not gone(ps)
    os.killpg(p.pid, how)
    assert p.communicate(timeout=60)[0] == said and p.returncode == code
    until(lambda: gone(ps), 2*GRACE + 5)

def test_nothing_is_left_at_the_end(small, tmp_path):
    "A program that ends without a shutdown"
    code = """from synthrob.sweep.engines import local
import small_tasks
print(local(2, gpus=0).submit(small_tasks.environment).result()[0])"""
    p = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=120)
    assert p.returncode == 0 and not p.stderr, p.stderr
    until(lambda: gone([int(p.stdout)]), 2*GRACE)

# --- Slurm ---

@pytest.fixture(scope='module')
def cluster(small):
    "A Slurm that answers; where there is none, a skip"
    if not shutil.which('sbatch') or slurm_queue() is None:
        pytest.skip('no Slurm runs here: eval "$(.ci/slurm start)" starts one (as root, start --install installs it)')

@pytest.fixture
def engine(cluster, tmp_path):
    made = []
    def make(**kw):
        ex = slurm(tmp_path/'slurm', **{**dict(cpus=1, mem=.5, minutes=5), **kw})
        ex.patience = 2.
        made.append(ex)
        return ex
    yield make
    for ex in made: ex.shutdown(cancel_futures=True)

def in_queue(ex):
    "The states of all jobs, as Slurm has them now; of a job that was cancelled while it waited it may know nothing"
    queue = slurm_queue()
    return [queue.get(j, ('gone',))[0] for j in ex.table.job]

@pytest.mark.slurm
def test_slurm_array(small, engine):
    ex = engine(array_parallelism=2)
    futures = [ex.submit(small.add, i, i) for i in range(3)]
    futures += [ex.submit(small.fail, 'this'), ex.submit(small.die, signal.SIGKILL), ex.submit(small.picky)]
    assert [f.result(120) for f in futures[:3]] == [0, 2, 4]
    with pytest.raises(ValueError, match='this cannot be') as e: futures[3].result(120)
    assert 'small_tasks.py' in str(e.value.__cause__)
    with pytest.raises(WorkerDied, match='the last words; srun: error: .*Killed') as e: futures[4].result(120)
    assert 'ended without a result (FAILED)' in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(RuntimeError, match='Picky: 1 and 2'): futures[5].result(120)
    assert status(futures) == dict(done=3, failed=3)
    assert len({o.split('_')[0] for o in ex.table.job}) == 1, 'all in one array'
    assert list(ex.table.state) == ['COMPLETED']*4 + ['FAILED', 'COMPLETED']

@pytest.mark.slurm
def test_slurm_gives_gpus_and_threads(small, engine, tmp_path):
    ex = engine(gpus=1)
    (tmp_path/'met').mkdir()
    futures = [ex.submit(small.meet, tmp_path/'met', 2, str(i)) for i in range(2)]
    assert {f.result(120) for f in futures} == {(2, '0'), (2, '1')}, 'two at once, on a GPU each'
    ex = engine(cpus=2)
    assert ex.submit(small.environment, 'OMP_NUM_THREADS', 'SLURM_CPUS_PER_TASK').result(120)[1] == ['2', '2']

@pytest.mark.slurm
def test_slurm_refuses(small, engine):
    f = engine(partition='nowhere').submit(small.add, 1)
    with pytest.raises(WorkerDied, match='Slurm did not take the job. It said: .*Invalid partition'): f.result(60)

@pytest.mark.slurm
def test_slurm_time_out(small, engine, tmp_path):
    "A job that needs more time than it has goes back into the queue, and goes on"
    ex = engine(minutes=1)
    who = ex.submit(small.steps, tmp_path/'steps', 45, 1).result(300)   # it comes within 45 s: Slurm looks every 30 s
    log = next(ex.folder.glob('*_log.out')).read_text()
    assert len(who) == 45, 'each step done once'
    assert 1 < len(set(who)) <= 1 + log.count('Requeued job'), 'by several; Slurm may look before one has done its first'

@pytest.mark.slurm
@slow
def test_slurm_time_out_unheard(small, engine, tmp_path):
    "A job that was cut off without having put itself back into the queue is sent once more"
    ex = engine(minutes=1)
    who = ex.submit(small.steps, tmp_path/'steps', 100, 1, deaf=True).result(600)
    assert len(who) == 100 and len(set(who)) == 1 + ex.jobs[0].again > 1
    assert 'Requeued job' not in ''.join(o.read_text() for o in ex.folder.glob('*_log.out'))

@pytest.mark.slurm
def test_slurm_cancels(small, engine, tmp_path):
    ex = engine()
    futures = [ex.submit(small.stuck, tmp_path) for _ in range(4)]
    ps = pids(tmp_path, 2)
    until(lambda: status(futures) == dict(running=2, waiting=2))
    assert futures[3].cancel() and not futures[0].cancel()
    until(lambda: in_queue(ex)[3] in ENDED)
    ex.shutdown(cancel_futures=True)
    assert status(futures) == dict(cancelled=4) and set(in_queue(ex)) <= {'CANCELLED', 'gone'}
    until(lambda: gone(ps), 20)

@pytest.mark.slurm
def test_slurm_somebody_cancels(small, engine):
    ex = engine()
    f = ex.submit(small.sleep, 600)
    until(f.running)
    subprocess.run(['scancel', ex.table.job[0]], check=True)
    with pytest.raises(WorkerDied, match=r'ended without a result \(CANCELLED\)'): f.result(60)

@pytest.mark.slurm
def test_slurm_survives_the_program(small, engine, tmp_path):
    "The program is killed while jobs run and wait: the next one takes them over"
    code = f"""
import sys, time
from synthrob.sweep.engines import slurm
import small_tasks
ex = slurm({str(tmp_path/'slurm')!r}, cpus=1, mem=.5, minutes=5)
for i in range(3): ex.submit(small_tasks.steps, {str(tmp_path)!r} + f'/steps_{{i}}', 20, .5)
while not all(ex.table.job): time.sleep(.1)
print(*ex.table.job, flush=True)
time.sleep(600)"""
    p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code], stdout=subprocess.PIPE, text=True)
    jobs = p.stdout.readline().split()
    p.kill(); p.wait()
    ex = engine()
    futures = [ex.submit(small.steps, str(tmp_path) + f'/steps_{i}', 20, .5) for i in range(4)]
    who = [f.result(120) for f in futures]
    assert [len(w) for w in who] == [20]*4 and [len(set(w)) for w in who] == [1]*4, 'each was computed once'
    assert list(ex.table.job[:3]) == jobs and ex.table.job[3] not in jobs

# --- a sweep on Slurm ---

def records(out, kind): return [json.loads(p.read_text()) for p in Path(out).glob(f'{kind}/*/record.json')]

@pytest.mark.slurm
def test_slurm_sweep(cluster, faces, tmp_path):
    "Four cells as jobs: one GAN, four splits, the same as on this machine"
    grid = {**TOY, 'path': faces, 'ratio': [0, .4], 'cnn_seed': 2}
    options = dict(cpus=1, mem=2., minutes=10)
    s = Sweep(grid, out=tmp_path/'slurm').run('slurm', options=options)
    assert [c.state for c in s.cells] == ['done']*4
    assert [len(records(tmp_path/'slurm', o)) for o in ('gan', 'pool', 'split', 'cell')] == [1, 1, 4, 4]
    Sweep(grid, out=tmp_path/'here').run('local', options=dict(threads=1))
    values = lambda out: sorted((r['hash'], r['test']['accuracy'], str(r['history'])) for r in records(out, 'split'))
    assert values(tmp_path/'slurm') == values(tmp_path/'here')
    again = Sweep(grid, out=tmp_path/'slurm').run('slurm', options=options)
    assert again.table.equals(s.table) and len(list(tmp_path.glob('slurm/sweep/*/slurm/*'))) == 1, 'nothing is sent'

@pytest.mark.slurm
@slow
def test_slurm_sweep_goes_on_from_a_checkpoint(cluster, faces, tmp_path):
    "The signal that comes before the time is up, at a moment when a GAN has left a checkpoint"
    grid = {**TOY, 'path': faces, 'ratio': .4, 'gan_images': 60_000}
    ex = slurm(tmp_path/'slurm', cpus=1, mem=2., minutes=5)
    seen = []
    def cut_off():
        until(lambda: list(tmp_path.glob('runs/gan/*/checkpoint.safetensors')), 240)
        seen.append(ex.table.job[0])
        subprocess.run(['scancel', '--signal=USR2', seen[0]], check=True)
    with ex, ThreadPoolExecutor(1) as other:
        cut = other.submit(cut_off)
        s = Sweep(grid, out=tmp_path/'runs').run(ex)
        cut.result(1)
    assert s.cells[0].state == 'done' and list(ex.table.job) == seen, 'one job, back in the queue'
    assert 'Requeued job' in next(ex.folder.glob('*_log.out')).read_text()
    gan, = records(tmp_path/'runs', 'gan')
    assert gan['resumed'] and not list(tmp_path.glob('runs/cell/*/error.json'))
