"A sweep on a real Slurm: eval \"$(.ci/slurm start)\" starts one, as root start --install installs it"
from __future__ import annotations
import json, re, shlex, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest, yaml
from conftest import TOY, records
from synthrob.sweep.grid import Sweep

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

def jobs(): return subprocess.run(['squeue', '--noheader', '--format=%i %T'], capture_output=True, text=True).stdout.split('\n')[:-1]

@pytest.fixture(autouse=True)
def slurm():
    if not shutil.which('sbatch') or subprocess.run(['sinfo'], capture_output=True).returncode: pytest.skip('no Slurm runs here')

RUN = [sys.executable, '-W', 'ignore', '-c', 'import sys; from synthrob.sweep.command import main; sys.exit(main())']

def start(*args, **kwargs): return subprocess.Popen([*RUN, *args], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)

def flags(faces, out, **grid):
    return [o for k, v in {**TOY, 'path': faces, 'out': out, 'engine': 'slurm', 'jobs': 2, 'memory': 2, 'time': 10, **grid}.items() for o in (f'--{k}', str(v))]

def test_the_tutorials_command(faces, tmp_path):
    """The command of the tutorial on a small sweep.yaml, with one core a job: as many of its eight jobs run as fit on the node. The one
    that trains the GAN is cancelled: the GAN continues from its checkpoint in another job, and all is as on this machine"""
    page = json.loads((Path(__file__).parents[1]/'nbs/tutorials/04_slurm.ipynb').read_text())
    line, = re.findall(r'^synthrob_sweep (sweep.yaml --engine slurm .*)$', '\n'.join(''.join(c['source']) for c in page['cells']), re.M)
    grid = {**TOY, 'path': str(faces), 'ratio': [0, .4], 'cnn_seed': 2, 'gan_images': 3000}
    run = Sweep({**grid, 'ratio': .4}, out=tmp_path/'speed').cells[0].run
    run.make('parts')
    began = time.monotonic()
    run.make('gan')
    grid['gan_images'] = int(3000*50/(time.monotonic() - began))       # longer than the 20 s to a checkpoint, on any machine
    (tmp_path/'sweep.yaml').write_text(yaml.safe_dump(grid))
    p, end, out = start(*shlex.split(line), '--cores', '1', cwd=tmp_path), time.monotonic() + 600, tmp_path/'runs'
    while not list(out.glob('gan/*/checkpoint.safetensors')) and p.poll() is None and time.monotonic() < end: time.sleep(.2)
    assert p.poll() is None and (running := [o.split()[0] for o in jobs() if 'RUNNING' in o])
    for f in out.glob('sweep/*/slurm/*.err'): assert 'Traceback' not in f.read_text()
    for job in running:                                      # the first may be idle by now: then the other one trains
        if not records(out, 'gan'): subprocess.run(['scancel', job], check=True)
        time.sleep(2)
    said = p.communicate(timeout=900)[0]
    assert p.returncode == 0 and '4 of 4 cells are done' in said, said
    assert {k: len(records(out, k)) for k in ('gan', 'pool', 'split', 'cell')} == dict(gan=1, pool=1, split=4, cell=4)
    for c in Sweep(grid, out=tmp_path/'here').cells: c.run.fit()
    values = lambda out: sorted((r['hash'], r['test']['accuracy'], str(r['history'])) for r in records(out, 'split'))
    assert values(out) == values(tmp_path/'here')
    assert not jobs(), 'no job is left'

def test_ctrl_c_cancels_the_jobs(faces, tmp_path):
    p, end = start(*flags(faces, tmp_path, ratio=.4, gan_images=10**6)), time.monotonic() + 600
    while not list(tmp_path.glob('gan/*/params.json')) and p.poll() is None and time.monotonic() < end: time.sleep(.2)
    p.send_signal(signal.SIGINT)
    said = p.communicate(timeout=120)[0]
    assert p.returncode == 130 and 'Stopped: 0 of 1 cells' in said, said
    end = time.monotonic() + 30
    while jobs() and time.monotonic() < end: time.sleep(.5)
    assert not jobs(), 'no job is left'

def test_refused(faces, tmp_path):
    p = start(*flags(faces, tmp_path, ratio=0, partition='nowhere'))
    said = p.communicate(timeout=300)[0]
    assert p.returncode == 2 and 'Slurm does not take such jobs: ' in said and 'Traceback' not in said, said
