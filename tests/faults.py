"""Damage files of a finished and of an unfinished toy run, one at a time: is each noticed, or without effect?

    python tests/faults.py 200       # 200 faults: flips of one byte and truncations
"""
import random, shutil, sys, tempfile
from collections import Counter
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from PIL import Image
from synthrob.core import stages
from synthrob.core.basics import BadInput
from synthrob.data.faces import draw_faces
from synthrob.split.params import check_params
from synthrob.split.run import SplitRun, _load_gan
from synthrob.sweep.results import results

toy = dict(preset='quick', data='folder', size=32, gan_images=128, gan_bs=32, gan_width=8, cnn_epochs=1, ratio=.3,
           robustness='none', device='cpu')

def draw_images(folder, n=60):
    "A folder of `n` drawn faces in two classes"
    y = torch.arange(n) % 2
    for i, (o, c) in enumerate(zip(draw_faces(y + 2, seed=1, size=32, progress=False), y)):
        (at := folder/('happy', 'sad')[c]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(o[0].numpy()).save(at/f'{i:03d}.png')
    toy['path'] = str(folder)

def read(out):
    "All that a user reads of a run: weights, predictions, pool, images, tables"
    run = SplitRun(check_params(toy | dict(out=str(out)))).fit()
    r, quiet = run.record, {'started', 'finished', 'seconds', 'resumed', 'checksum', 'versions', 'given', 'files', 'pool'}
    w = [p.detach() for m in (run.classifier(), _load_gan(run)) for p in m.state_dict().values()]
    sums = [float(o.double().sum()) for o in (*w, run.pool.x, run.pool.y, run.images.x, run.images.y, run.train_idx)]
    frame = results(out)
    table = frame[~frame.metric.str.contains('seconds', na=False)][['metric', 'class', 'value']].astype(str).values.tolist()
    return dict(r={k: v for k, v in r.items() if k not in quiet}, sums=sums, table=table,
                predictions=run.evaluation().probs.tolist())

def stop_in(kind, out):
    "Leave a run whose stage `kind` was stopped when its files were complete and its record was not written"
    run = SplitRun(check_params(toy | dict(out=str(out))))
    stage = run.stages[kind]
    work = stage.work
    def stopped(s): work(s); raise KeyboardInterrupt
    stage.work = stopped
    try: run.fit()
    except KeyboardInterrupt: pass
    (stage.path/'.half.npy.1.aa.tmp').write_bytes(b'\x93NUMPY')
    (stage.path/'samples').mkdir(exist_ok=True)
    (stage.path/'samples'/'.epoch_0001.png.1.aa.tmp').write_bytes(b'\x89PNG')

def damage(file, rng):
    "Flip a bit of one byte, or cut the file"
    b = bytearray(file.read_bytes())
    at = rng.randrange(len(b))
    if rng.random() < .25: b = b[:at]
    else: b[at] ^= 1 << rng.randrange(8)
    file.write_bytes(b)

def outcome(whole, out, expect, log):
    "'noticed', 'harmless', 'silent' or 'traceback'"
    stages._sums.clear()                                           # as another process
    said = StringIO()
    try:
        with redirect_stdout(said): got = read(out)
    except BadInput: return 'noticed'
    except Exception as e: log.append(f'{type(e).__name__}: {e}'); return 'traceback'
    if got != expect:
        log.append(str([k for k in got if got[k] != expect[k]])); return 'silent'
    return 'noticed' if 'damaged' in said.getvalue() else 'harmless'

def faults(n, seed=0, root=None):
    "Outcomes of `n` faults by state of the run, and what was unexpected"
    torch.set_num_threads(1)
    rng, found, log = random.Random(seed), Counter(), []
    with tempfile.TemporaryDirectory(dir=root) as d, redirect_stdout(StringIO()):
        d = Path(d)
        draw_images(d/'images')
        expect = read(d/'finished')
        for kind in ('gan', 'split'): stop_in(kind, d/f'stopped_{kind}')
        for i in range(n):
            state = ('finished', 'finished', 'stopped_gan', 'stopped_split')[i%4]
            shutil.rmtree(d/'now', ignore_errors=True)
            shutil.copytree(d/state, d/'now')
            files = sorted(f for f in (d/'now').rglob('*') if f.is_file() and f.stat().st_size)
            if 'stopped' in state: files = [f for f in files if not (f.parent/'record.json').exists()] or files
            damage(f := rng.choice(files), rng)
            o = outcome(d/state, d/'now', expect, log)
            found[state, o] += 1
            if o in ('silent', 'traceback'): log[-1] = f'{state} {f.relative_to(d)}: {log[-1]}'
    return found, log

if __name__ == '__main__':
    found, log = faults(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
    for k, v in sorted(found.items()): print(*k, v)
    print(*log, sep='\n')
