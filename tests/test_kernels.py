"Warm kernels from end to end: the same as ordinary ones, many at once, interrupted, killed; and nothing stays behind"
from __future__ import annotations
import asyncio, concurrent.futures as cf, json, multiprocessing as mp, os, signal, socket, subprocess, sys, textwrap, time, warnings
from pathlib import Path
import nbformat, papermill, pytest
from synthrob.sweep import kernels
from synthrob.sweep.kernels import KernelServer, NotebookFailed, WarmKernelManager, execute, kernel_server

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(sys.platform != 'linux', reason='kernels are forked on Linux only')]
slow = pytest.mark.skipif(not os.environ.get('SYNTHROB_SLOW'), reason='takes minutes of all cores: set SYNTHROB_SLOW=1 to run it')
LIGHT = ['ipykernel.kernelapp', 'ipykernel.debugger', 'numpy']     # enough to be a kernel, and there at once

@pytest.fixture(autouse=True)
def ours(monkeypatch):
    "Every test starts without a server, and ends the one that it has started"
    monkeypatch.delenv('SYNTHROB_KERNELS', raising=False)
    monkeypatch.setattr(kernels, '_deaths', 0)
    yield
    if kernels._own: kernels._own.stop()
    monkeypatch.setattr(kernels, '_own', None)

@pytest.fixture
def light(ours, monkeypatch):
    with KernelServer(LIGHT) as server:
        monkeypatch.setenv('SYNTHROB_KERNELS', server.address)
        yield server

@pytest.fixture(scope='module')
def all_imported():
    with pytest.MonkeyPatch.context() as m:
        m.setenv('PYTHONWARNINGS', 'ignore::FutureWarning')             # torch's, of which a warm kernel is spared
        server = KernelServer()
    with server: yield server

@pytest.fixture
def full(ours, all_imported, monkeypatch):
    monkeypatch.setenv('PYTHONWARNINGS', 'ignore::FutureWarning')
    monkeypatch.setenv('SYNTHROB_KERNELS', all_imported.address)

def write(path, *cells, story=()):
    "A notebook of these cells; the first holds the parameters"
    new = nbformat.v4.new_code_cell
    cells = [new(textwrap.dedent(c), metadata=dict(tags=['parameters'] if i == 0 else ['story'] if i in story else [])) for i, c in enumerate(cells)]
    spec = dict(name='python3', display_name='Python 3', language='python')
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=spec)), path)
    return path

def said(nb): return ''.join(o.text for c in nb.cells for o in c.get('outputs', ()) if o.output_type == 'stream' and o.name == 'stdout')

def gone(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] == 'Z'
    except OSError: return True

def until(what, seconds=60):
    end = time.monotonic() + seconds
    while not (got := what()) and time.monotonic() < end: time.sleep(.02)
    return got

def lines(path): return path.read_text().split() if path.exists() else []

# What a kernel leaves in `pids`, before it sleeps: itself, a child of its own, its server
SLEEPS = """import os, subprocess, time
child = subprocess.Popen(['sleep', '600'])
open('pids.tmp', 'w').write(f'{os.getpid()} {child.pid} {os.getppid()}'); os.rename('pids.tmp', 'pids')
time.sleep(600)"""

# --- the same as an ordinary kernel ---

ABOUT = """import json, os, signal, sys, tempfile
hidden = 'SYNTHROB_KERNELS', 'JPY_PARENT_PID', 'COLUMNS', 'LINES'
print(json.dumps(dict(env={k: v for k, v in os.environ.items() if k not in hidden}, path=sys.path, cwd=os.getcwd(), name=__name__,
    main=sys.modules['__main__'].__dict__ is globals(), shell=str(get_ipython().__class__), flags=str(sys.flags), options=sys.warnoptions,
    signals={s: str(signal.getsignal(s)) for s in (2, 15, 17)}, leader=os.getpgid(0) == os.getpid(), umask=os.umask(0o22), tmp=tempfile.gettempdir(),
    stdin=sys.stdin.isatty(), history=get_ipython().history_manager.hist_file)))"""
FIGURE = """import warnings, torch, numpy as np, pandas as pd, matplotlib.pyplot as plt, synthrob.split.core
fig, ax = plt.subplots(figsize=(3, 2)); ax.plot([1, 3, 2]); ax.set_title(plt.get_backend());"""
NUMBERS = """print(torch.get_num_threads(), torch.manual_seed(3).initial_seed(), torch.rand(2), torch.nn.Linear(3, 3).weight)
print(*sorted(k for k in globals() if k[0] != '_'))
warnings.warn('mind'); print('to stderr', file=sys.stderr); os.system('echo from a shell')
pd.DataFrame(dict(a=[1.5, 2]))"""

def test_the_same_as_an_ordinary_kernel(full, tmp_path, monkeypatch):
    "Environment, paths, signals, outputs, figures, threads, torch's random numbers"
    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    monkeypatch.chdir(tmp_path)
    nb = write(tmp_path/'a.ipynb', 'x = 1', ABOUT, FIGURE, NUMBERS)
    ordinary, warm = papermill.execute_notebook(str(nb), 'ordinary.ipynb', dict(x=2), progress_bar=False), execute(nb, 'warm.ipynb', dict(x=2))
    about = [json.loads(n.cells[2].outputs[0].text) for n in (ordinary, warm)]
    assert set(about[1]['env']) - set(about[0]['env']) <= {'KMP_DUPLICATE_LIB_OK', 'KMP_INIT_AT_FORK', 'TORCHINDUCTOR_CACHE_DIR'}, 'set by imports'
    for a in about: a['env'] = {k: v for k, v in a['env'].items() if k in os.environ}
    about[0]['flags'] = about[1]['flags']
    assert about[0] == about[1]
    for a, b in zip(ordinary.cells[3:], warm.cells[3:]): assert pictured(a.outputs) == pictured(b.outputs)
    assert [c.metadata.papermill.status for c in warm.cells] == ['completed']*5
    assert nbformat.read('warm.ipynb', 4) == warm and warm.metadata.language_info == ordinary.metadata.language_info

def pictured(outputs):
    "Outputs, the pieces of a stream joined"
    streams = {n: ''.join(o.text for o in outputs if o.get('name') == n).replace('\n', '') for n in ('stdout', 'stderr')}
    streams['stderr'] = streams['stderr'].split('/')[-1].partition('.py:')[2]
    return streams, [{k: v for k, v in o.data.items()} for o in outputs if 'data' in o]

def test_kernels_draw_different_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(KernelServer.__init__, '__defaults__', ([*LIGHT, 'torch'],))
    nb = write(tmp_path/'a.ipynb', '', """import random, tempfile, uuid, numpy as np, torch
print(random.random(), np.random.rand(), torch.rand(1).item(), torch.initial_seed(), uuid.uuid4(), tempfile.mktemp())""")
    one, two = (said(execute(nb, tmp_path/'out.ipynb')).split() for _ in range(2))
    assert len(one) == 6 and not set(one) & set(two)

def test_threads_and_environment_of_one_kernel(tmp_path, monkeypatch):
    monkeypatch.setattr(KernelServer.__init__, '__defaults__', ([*LIGHT, 'torch'],))
    nb = write(tmp_path/'a.ipynb', '', """import os, threadpoolctl, torch
print(os.environ['OMP_NUM_THREADS'], torch.get_num_threads(), {o['num_threads'] for o in threadpoolctl.threadpool_info() if o['user_api'] == 'blas'})""")
    for n in 1, 3: assert said(execute(nb, tmp_path/'out.ipynb', env=dict(OMP_NUM_THREADS=n))) == f'{n} {n} {{{n}}}\n'
    assert 'A' not in os.environ and said(execute(write(tmp_path/'b.ipynb', '', 'import os; print(os.environ["A"])'), tmp_path/'out.ipynb', env=dict(A=1))) == '1\n'

def test_the_gpu(full, tmp_path):
    "Hidden from the server, there in its kernels, as many as the environment says, and for two of them at once"
    import torch
    if not torch.cuda.is_available(): pytest.skip('there is no GPU here')
    nb = write(tmp_path/'a.ipynb', '', """import torch
x = torch.randn(64, 64, device='cuda', requires_grad=True); (x @ x).sum().backward()
print(torch.cuda.device_count(), x.grad.device, torch.compile(lambda x: x.sin() + 1)(x).device)""")
    with cf.ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(execute, nb, tmp_path/f'{i}.ipynb', env=dict(CUDA_VISIBLE_DEVICES='0')) for i in range(2)]
        assert [said(j.result()) for j in jobs] == ['1 cuda:0 cuda:0\n']*2
    hidden = write(tmp_path/'b.ipynb', '', 'import torch; print(torch.cuda.is_available())')
    assert said(execute(hidden, tmp_path/'out.ipynb', env=dict(CUDA_VISIBLE_DEVICES=''))) == 'False\n'

def test_exit_functions_run(light, tmp_path):
    nb = write(tmp_path/'a.ipynb', '', "import atexit, tempfile; atexit.register(lambda: open('left', 'w').write('done')); d = tempfile.TemporaryDirectory(); print(d.name)")
    folder = said(execute(nb, tmp_path/'out.ipynb', cwd=tmp_path)).strip()
    assert (tmp_path/'left').read_text() == 'done' and not Path(folder).exists()

def test_channels_are_no_ports(light):
    async def look():
        km = WarmKernelManager(kernel_name='python3')
        await km.start_kernel()
        kc = km.client()
        kc.start_channels()
        await kc.wait_for_ready()
        paths = [f'{km.ip}-{p}' for p in km.ports]
        found = [Path(p).is_socket() for p in paths]
        await km.shutdown_kernel()
        kc.stop_channels()
        return km, paths, found
    km, paths, found = asyncio.run(look())
    assert km.transport == 'ipc' and all(found) and max(map(len, paths)) < 104
    assert not list(light.folder.glob('kernel-*')), 'the folder goes with the kernel'

def test_a_long_path_to_temporary_files(tmp_path, monkeypatch):
    "The path of a socket has 107 characters at most"
    deep = tmp_path/('x'*100)
    deep.mkdir()
    monkeypatch.setenv('TMPDIR', str(deep))
    monkeypatch.setattr(kernels.tempfile, 'tempdir', None)
    monkeypatch.setattr(KernelServer.__init__, '__defaults__', (LIGHT,))
    text, why = cold(write(tmp_path/'a.ipynb', '', 'import tempfile; print(tempfile.gettempdir())'), tmp_path/'out.ipynb')
    assert text == f'{deep}\n' and not why

# --- the engine ---

def test_importing_papermill_imports_no_torch():
    "papermill loads the engines of all that is installed"
    code = "import sys, synthrob.sweep.kernels; sys.exit(bool({'torch', 'fastai', 'papermill', 'IPython'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0

def test_the_command_line(full, tmp_path):
    "As an entry point, which is what `pip install` makes of setup.py; papermill's own engine stays what it was"
    (tmp_path/'engine-0.dist-info').mkdir()
    (tmp_path/'engine-0.dist-info'/'entry_points.txt').write_text('[papermill.engine]\nsynthrob = synthrob.sweep.kernels:SynthrobEngine\n')
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, [str(tmp_path), os.environ.get('PYTHONPATH')])))
    nb = write(tmp_path/'a.ipynb', 'x = 1', 'print(x + 1)', '1/0', story=[2])
    def run(*args): return subprocess.run([sys.executable, '-m', 'papermill', str(nb), 'out.ipynb', '-p', 'x', '3', *args], cwd=tmp_path, env=env, capture_output=True, text=True)
    r = run('--engine', 'synthrob')
    assert r.returncode == 0 and 'Executing' in r.stderr, r.stderr[-2000:]
    assert said(nbformat.read(tmp_path/'out.ipynb', 4)) == '4\n'
    r = run()
    assert r.returncode and 'ZeroDivisionError' in r.stderr, 'without our engine the demonstration is run, too'
    code = 'from synthrob.sweep.kernels import SynthrobEngine as e; from papermill.engines import papermill_engines as p; assert p.get_engine("synthrob") is e'
    assert subprocess.run([sys.executable, '-c', code], env=env).returncode == 0, 'whichever is imported first'

def test_story_cells_are_left_out(light, tmp_path):
    nb = write(tmp_path/'a.ipynb', 'x = 1', 'print(x)', 'x = 5', 'print(x)', story=[2])
    done = execute(nb, tmp_path/'deep'/'er'/'out.ipynb', dict(x=2))
    assert said(done) == '2\n2\n' and done.cells[3].source == 'x = 5' and done.cells[3].execution_count is None
    assert [c.metadata.papermill.status for c in done.cells] == ['completed']*3 + ['skipped', 'completed']

def test_the_split_notebook(full, repo, tmp_path):
    "The main job in a warm kernel: its figures and its record, and none of its demonstrations"
    params = dict(ratio=.3, size=32, gan_images=640, gan_width=8, cnn_epochs=1, real_share=.1, out=str(tmp_path/'runs'))
    done = execute(repo/'nbs'/'03_split.ipynb', tmp_path/'out.ipynb', params, cwd=tmp_path)
    status = [c.metadata.papermill.status for c in done.cells if 'story' in c.metadata.get('tags', ())]
    assert set(status) == {'skipped'} and len(status) > 5
    assert [k for c in done.cells for o in c.get('outputs', ()) for k in o.get('data', ())].count('image/png') >= 3
    assert len(list((tmp_path/'runs').glob('split/*/record.json'))) == 1
    with pytest.raises(NotebookFailed, match=r"^03_split.ipynb, cell \d+: BadInput: There is no parameter 'raito': did you mean 'ratio'\?$"):
        execute(repo/'nbs'/'03_split.ipynb', tmp_path/'out.ipynb', dict(raito=.3), cwd=tmp_path)

def test_what_was_done_before_an_error_is_kept(light, tmp_path):
    nb = write(tmp_path/'a.ipynb', '', 'print("before")', 'raise ValueError("one\\n  two")', 'print("after")')
    with pytest.raises(NotebookFailed) as e: execute(nb, tmp_path/'out.ipynb')
    assert str(e.value) == 'a.ipynb, cell 3: ValueError: one two' and (e.value.cell, e.value.ename) == (3, 'ValueError')
    kept = nbformat.read(tmp_path/'out.ipynb', 4)
    assert said(kept) == 'before\n' and 'An Exception was encountered' in kept.cells[0].source

@pytest.mark.parametrize('cell, limit, sentence', [
    ('import os; os._exit(3)', None, 'cell 3: DeadKernelError: the kernel has died'), ('import os; os.kill(0, 9)', None, 'cell 3: DeadKernelError'),
    ('import time; time.sleep(600)', 2, 'cell 3: TimeoutError: not done within 2 seconds'), ('while True: pass', 2, 'cell 3: TimeoutError')])
def test_a_kernel_that_dies_or_does_not_end(light, tmp_path, cell, limit, sentence):
    nb = write(tmp_path/'a.ipynb', '', 'import os; print(os.getpid())', cell, 'print("after")')
    with pytest.raises(NotebookFailed, match=sentence): execute(nb, tmp_path/'out.ipynb', timeout=limit)
    kept = nbformat.read(tmp_path/'out.ipynb', 4)
    assert [c.metadata.papermill.status for c in kept.cells[:3]] == ['completed', 'completed', 'failed']
    assert until(lambda: gone(int(said(kept))), 5) and not list(light.folder.glob('kernel-*'))
    assert said(execute(write(tmp_path/'b.ipynb', '', 'print("next")'), tmp_path/'out.ipynb')) == 'next\n'

def test_the_notebook_is_saved_while_it_runs(light, tmp_path):
    nb = write(tmp_path/'a.ipynb', '', 'import time; time.sleep(1.1)', 'print("half")', 'import os, time\nwhile not os.path.exists("go"): time.sleep(.05)')
    with cf.ThreadPoolExecutor(1) as pool:
        done = pool.submit(execute, nb, tmp_path/'out.ipynb', cwd=tmp_path)
        try: assert until(lambda: (tmp_path/'out.ipynb').exists() and '"half\\n"' in (tmp_path/'out.ipynb').read_text() or done.done())
        finally: (tmp_path/'go').touch()
        assert said(done.result()) == 'half\n'

# --- many ---

def test_threads_execute_at_once(light, tmp_path):
    nb = write(tmp_path/'a.ipynb', 'x = 0', 'import os; print(x, os.getppid())')
    with cf.ThreadPoolExecutor(4) as pool: got = list(pool.map(lambda x: said(execute(nb, tmp_path/f'{x}.ipynb', dict(x=x))), range(6)))
    assert got == [f'{x} {light.process.pid}\n' for x in range(6)]

def _execute(*args): return said(execute(*args))

@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_a_pool_shares_the_server(light, tmp_path, method):
    nb = write(tmp_path/'a.ipynb', 'x = 0', 'import os; print(x, os.getppid())', 'assert x < 3, "x is too much"')
    with cf.ProcessPoolExecutor(2, mp_context=mp.get_context(method)) as pool:
        jobs = [pool.submit(_execute, nb, tmp_path/f'{x}.ipynb', dict(x=x)) for x in range(4)]
        assert [j.result() for j in jobs[:3]] == [f'{x} {light.process.pid}\n' for x in range(3)]
        with pytest.raises(NotebookFailed, match='a.ipynb, cell 4: AssertionError: x is too much'): jobs[3].result()
    assert light.alive

@slow
@pytest.mark.parametrize('transport', ['ipc', 'tcp'])
def test_a_hundred_kernels_eight_at_a_time(tmp_path, monkeypatch, transport):
    "No collision, and nothing left; over TCP for comparison only"
    if transport == 'tcp': monkeypatch.setattr(kernels, 'WarmKernelManager', _over_tcp())
    nb = write(tmp_path/'a.ipynb', 'x = 0', 'import os, torch, fastai.basics', 'print(x, os.getpid())')
    kernel_server()
    folder, start, failed, pids = kernels._own.folder, time.monotonic(), [], []
    def one(x):
        try:
            n, pid = said(execute(nb, tmp_path/f'{x}.ipynb', dict(x=x))).split()
            assert n == str(x)
            pids.append(int(pid))
        except Exception as e: failed.append(f'{x}: {type(e).__name__} {e}'[:200])
    with cf.ThreadPoolExecutor(8) as pool: list(pool.map(one, range(100)))
    print(f'\n{transport}: {len(pids)} of 100 kernels in {time.monotonic() - start:.0f} s; failed: {failed}')
    if transport == 'ipc': assert not failed and len(set(pids)) == 100
    assert until(lambda: all(map(gone, pids)), 10) and os.listdir(folder) == ['server']
    kernels._own.stop()
    assert not folder.exists() and gone(kernels._own.process.pid)

def _over_tcp():
    class OverTCP(WarmKernelManager):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.transport, self.ip, self.cache_ports = 'tcp', '127.0.0.1', False
    return OverTCP

# --- interrupted, killed ---

def owner(tmp_path, *before):
    "A process that executes a notebook which sleeps; it, and what the kernel has said of itself"
    write(tmp_path/'a.ipynb', '', 'print("half")', SLEEPS)
    code = f"""import time
from synthrob.sweep import kernels
kernels.KernelServer.__init__.__defaults__ = ({LIGHT},)
""" + '\n'.join(before) + "\nkernels.execute('a.ipynb', 'out.ipynb')"
    p = subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    assert until(lambda: lines(tmp_path/'pids') or p.poll() is not None) and p.poll() is None, p.stderr.read().decode()[-2000:]
    pids = [int(o) for o in lines(tmp_path/'pids')]
    return p, pids, Path(os.readlink(f'/proc/{pids[2]}/cwd'))

@pytest.mark.parametrize('signum', [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_owner_leaves_nothing(tmp_path, signum):
    p, pids, folder = owner(tmp_path)
    assert folder.name.startswith('synthrob-') and not any(map(gone, pids))
    os.kill(p.pid, signum)
    p.wait()
    assert until(lambda: all(map(gone, pids)) and not folder.exists(), 10), [pid for pid in pids if not gone(pid)]

def test_what_an_owner_has_forked_keeps_nothing_alive(tmp_path):
    "A worker that outlives its SIGKILLed owner does not pass for it"
    p, pids, folder = owner(tmp_path, 'import os, sys', 'kernels.kernel_server()', 'if not os.fork(): os.close(2); time.sleep(20); os._exit(0)')
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    assert until(lambda: all(map(gone, pids)) and not folder.exists(), 10)

def test_ctrl_c(tmp_path):
    "The owner ends with a KeyboardInterrupt, and keeps what was done; the terminal's signal does not reach server and kernel"
    p, pids, folder = owner(tmp_path)
    os.killpg(p.pid, signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert 'KeyboardInterrupt' in err.decode() and p.returncode
    assert until(lambda: all(map(gone, pids)) and not folder.exists(), 10)
    kept = nbformat.read(tmp_path/'out.ipynb', 4)
    assert said(kept) == 'half\n' and [c.metadata.papermill.status for c in kept.cells] == ['completed', 'completed', 'failed']

def test_interrupted_kernels_go_on(light, tmp_path):
    sleeps = tmp_path/'sleeps'
    async def interrupt():
        km = WarmKernelManager(kernel_name='python3')
        await km.start_kernel()
        kc = km.client()
        kc.start_channels()
        await kc.wait_for_ready()
        code = f'import time, pathlib; here = 1; pathlib.Path({str(sleeps)!r}).touch(); time.sleep(600)'
        sleep = asyncio.ensure_future(kc.execute_interactive(code, timeout=120))
        while not (sleeps.exists() or sleep.done()): await asyncio.sleep(.02)      # a kernel that is interrupted before its cell runs never answers
        await km.interrupt_kernel()
        replies = [await sleep, await kc.execute_interactive('here', timeout=60)]
        await km.restart_kernel()
        await kc.wait_for_ready(timeout=60)
        replies.append(await kc.execute_interactive('here', timeout=60))           # a new kernel: nothing is known of the old one
        await km.shutdown_kernel(now=True)
        kc.stop_channels()
        return [r['content'].get('ename', 'ok') for r in replies], await km.is_alive()
    assert asyncio.run(interrupt()) == (['KeyboardInterrupt', 'ok', 'NameError'], False)

def test_a_killed_server_takes_its_kernels_along_and_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(KernelServer.__init__, '__defaults__', (LIGHT,))
    write(tmp_path/'a.ipynb', '', SLEEPS)
    with cf.ThreadPoolExecutor(1) as pool:
        job = pool.submit(execute, tmp_path/'a.ipynb', tmp_path/'out.ipynb', cwd=tmp_path)
        kernel, child, server = map(int, until(lambda: lines(tmp_path/'pids')))
        os.kill(server, signal.SIGKILL)
        with pytest.raises(NotebookFailed, match='cell 2: DeadKernelError'): job.result(60)
    assert until(lambda: gone(kernel) and gone(server), 5)
    os.kill(child, signal.SIGKILL)                                      # nobody is left who knows of it
    now = said(execute(write(tmp_path/'b.ipynb', '', 'import os; print(os.getppid())'), tmp_path/'out.ipynb'))
    assert int(now) == kernels._own.process.pid != server

def test_a_killed_worker_takes_its_kernel_along(light, tmp_path):
    write(tmp_path/'a.ipynb', '', SLEEPS)
    p = mp.get_context('spawn').Process(target=execute, args=(tmp_path/'a.ipynb', tmp_path/'out.ipynb'), kwargs=dict(cwd=tmp_path))
    p.start()
    kernel, child, server = map(int, until(lambda: lines(tmp_path/'pids')))
    p.kill(); p.join()
    assert server == light.process.pid and until(lambda: gone(kernel) and gone(child), 5)
    assert light.alive and until(lambda: os.listdir(light.folder) == ['server'], 5)

# --- where there can be no fork ---

def cold(nb, out, **kwargs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        text = said(execute(nb, out, **kwargs))
    return text, [str(w.message) for w in caught if 'started the ordinary way' in str(w.message)]

def test_what_comes_too_late(light, tmp_path):
    nb = write(tmp_path/'a.ipynb', '', 'import os; print(os.getppid(), os.environ["PYTHONHASHSEED"])')
    text, why = cold(nb, tmp_path/'out.ipynb', env=dict(PYTHONHASHSEED=7))
    assert text == f'{os.getpid()} 7\n' and why == ['A kernel is started the ordinary way, and imports everything anew: its PYTHONHASHSEED comes too late for its server.']

def test_what_imports_have_set_is_not_too_late(full, tmp_path):
    "sklearn sets it when it is imported: in the server; and, later than that, in the process that asks"
    nb = write(tmp_path/'a.ipynb', '', 'import os; print(os.getppid(), os.environ["KMP_INIT_AT_FORK"])')
    text, why = cold(nb, tmp_path/'out.ipynb', env=dict(KMP_INIT_AT_FORK='FALSE'))
    assert not why and text.split()[0] != str(os.getpid()) and text.split()[1] == 'FALSE'

def test_a_server_survives_nonsense(light, tmp_path):
    "Half a message, none, one of another kind, and signals for kernels that have just ended"
    for data in b'', b'\0\0\0\5{"a"', b'\0\0\0\2{}', b'\0\0\0\1x':
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(light.address)
            s.sendall(data)
    nb = write(tmp_path/'a.ipynb', '', 'print(1)')
    def one(i): return said(execute(nb, tmp_path/f'{i}.ipynb'))
    with cf.ThreadPoolExecutor(4) as pool: assert set(pool.map(one, range(12))) == {'1\n'}
    assert light.alive

def test_a_server_with_threads_forks_nothing(tmp_path, monkeypatch):
    (tmp_path/'threaded.py').write_text('import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [str(tmp_path), os.environ.get('PYTHONPATH')])))
    with KernelServer([*LIGHT, 'threaded']) as server:
        monkeypatch.setenv('SYNTHROB_KERNELS', server.address)
        text, why = cold(write(tmp_path/'a.ipynb', '', 'import os; print(os.getppid())'), tmp_path/'out.ipynb')
    assert int(text) == os.getpid() and '2 threads run in its server' in why[0]

def test_another_python(light, tmp_path, monkeypatch):
    "A kernel of another environment is not a fork of ours"
    spec = tmp_path/'kernels'/'other'
    spec.mkdir(parents=True)
    python = tmp_path/'bin'/'python'
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n'); python.chmod(0o755)
    (spec/'kernel.json').write_text(json.dumps(dict(argv=[str(python), '-m', 'ipykernel_launcher', '-f', '{connection_file}'], display_name='o', language='python')))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path))
    nb = nbformat.read(write(tmp_path/'a.ipynb', '', 'import os; print(os.getppid())'), 4)
    nb.metadata.kernelspec.name = 'other'
    nbformat.write(nb, tmp_path/'a.ipynb')
    text, why = cold(tmp_path/'a.ipynb', tmp_path/'out.ipynb')
    assert int(text) == os.getpid() and 'it is not this Python' in why[0]

def test_elsewhere_than_on_linux(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels.sys, 'platform', 'darwin')
    text, why = cold(write(tmp_path/'a.ipynb', '', 'import os; print(os.getppid())'), tmp_path/'out.ipynb')
    assert int(text) == os.getpid() and 'on Linux only' in why[0]

def test_the_server_of_a_process_that_has_ended(light, tmp_path, monkeypatch):
    "Its address is still in the environment; a new one is started"
    monkeypatch.setattr(KernelServer.__init__, '__defaults__', (LIGHT,))
    light.stop()
    text, why = cold(write(tmp_path/'a.ipynb', '', 'import os; print(os.getppid())'), tmp_path/'out.ipynb')
    assert int(text) == kernels._own.process.pid and not why

def test_a_server_that_dies_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(KernelServer.__init__, '__defaults__', (LIGHT,))
    for _ in range(3):
        kernel_server()
        kernels._own.process.kill(); kernels._own.process.wait()
    text, why = cold(write(tmp_path/'a.ipynb', '', 'print("still")'), tmp_path/'out.ipynb')
    assert text == 'still\n' and 'has died three times' in why[0]
