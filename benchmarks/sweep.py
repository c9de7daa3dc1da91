"""What a sweep adds to its trainings: `python benchmarks/sweep.py [cell] [sweep] --json`, with the options of bench.py.

It is seen best where the trainings are next to nothing: a hundred faces, a GAN that sees 640 of them, one epoch.
"""
from __future__ import annotations
import io, json, os, statistics, subprocess, sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt, torch
from PIL import Image

import bench as b
from synthrob.data.faces import draw_faces, emotions
from synthrob.split.core import run_split
from synthrob.sweep.cluster import Run, open_cluster
from synthrob.sweep.grid import NOTEBOOK, Sweep, _run_notebook

b.benches.clear()

def tiny_cell(s):
    "The parameters of a split experiment of less than a second"
    folder, y = s.folder/'tiny', torch.arange(100) % len(emotions)
    for i, (x, c) in enumerate(zip(draw_faces(y, size=32, seed=5, progress=False), y)) if not folder.exists() else ():
        (folder/emotions[c]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[0].numpy()).save(folder/emotions[c]/f'{i}.png')
    return dict(data='folder', path=str(folder), size=32, folds=1, copies='exact', gan_images=640, gan_width=16,
                cnn_epochs=1, robustness='none', ratio=.5)

def same_cells(params):
    "Execute the cells that a sweep executes in this process, without papermill"
    space = dict(__name__='__main__')
    for c in json.loads((Path(__file__).parent.parent/'nbs'/NOTEBOOK).read_text(encoding='utf-8'))['cells']:
        tags, source = c['metadata'].get('tags', []), ''.join(c['source'])
        if c['cell_type'] != 'code': continue
        exec(compile(source, 'cell', 'exec'), space)
        if 'parameters' in tags: space.update(params)
        for n in plt.get_fignums(): plt.figure(n).savefig(io.BytesIO(), bbox_inches='tight')
        plt.close('all')

@b.bench(1, 'what papermill and the engine add to the cells of a notebook', 'the limit of 1 s')
def cell(s):
    params, pairs, bare = tiny_cell(s), [], []
    ways = [lambda p: _run_notebook({**p, 'out': str(s.folder/'engine_runs')}, s.folder/'cell.ipynb'),
            lambda p: same_cells({**p, 'out': str(s.folder/'here_runs')}),
            lambda p: run_split(**p, out=str(s.folder/'bare_runs'))]
    plt.switch_backend('agg')
    with redirect_stdout(io.StringIO()):
        for w in ways: w({**params, 'cnn_seed': 0})           # makes data, GAN and pool, and warms up
    for i in s.rounds():
        with redirect_stdout(io.StringIO()):
            engine, here, split = (b.stopwatch(partial(w, {**params, 'cnn_seed': i + 1}), s.device) for w in ways)
        pairs.append((max(engine - here, 1e-3), 1.))
        bare.append((engine, here, split))
    engine, here, split = map(statistics.median, zip(*bare))
    return pairs, (f'{engine:.2f} s by papermill and the engine, {here:.2f} s in one process; run_split, which '
                   f'draws no figures, takes {split:.2f} s')

def cells_per_hour(s, slots, seeds, out):
    "The smallest cells that `slots` workers execute in an hour; the first `slots` seeds warm up, uncounted"
    grid = lambda seeds: Sweep({**tiny_cell(s), 'cnn_seed': seeds}, out=out)
    def run(sweep, client):
        r = Run(sweep, client, False)
        while r.cells: r.settle(*r.ended.get())
    with redirect_stdout(sys.stderr), open_cluster(out, slots=slots, gpus=0 if s.device.type == 'cpu' else None) as (client, _):
        run(grid(seeds[:slots]), client)
        return 3600*len(seeds[slots:])/b.stopwatch(lambda: run(grid(seeds), client), 'cpu')

@b.bench(1, 'a finished sweep of 72 cells, started again', 'the limit of 6 s')
def sweep(s):
    out, per_hour, first = s.folder/'sweep_runs', {}, 1
    plan = {2: 3} if s.quick else {1: 15, 2: 16, 4: 18, 8: 22}                      # slots -> cells
    run_split(**tiny_cell(s), out=str(out))                                          # data, GAN and pool
    for slots, n in plan.items():
        per_hour[slots] = cells_per_hour(s, slots, list(range(first, first + n)), out)
        first += n
    flags = [f'--{k}={v}' for k, v in {**tiny_cell(s), 'cnn_seed': first, 'out': out}.items()]
    cmd = [sys.executable, '-c', 'import sys; from synthrob.sweep.command import main; sys.exit(main())', *flags]
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(o or os.getcwd() for o in sys.path)}    # the same synthrob
    again = lambda: subprocess.run(cmd, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    again()                                                                          # the last cell
    pairs = [(b.stopwatch(again, 'cpu'), 6.) for _ in s.rounds(most=3)]
    speed = ', '.join(f'{v:.0f} by {k}' for k, v in per_hour.items())
    return pairs, f'{first} cells; of the smallest cells in an hour, by slots: {speed}; {os.cpu_count()} cores'

if __name__ == '__main__': sys.exit(b.main())
