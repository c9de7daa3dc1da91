"Trials on FER-2013 (without exact and near copies), a row each in a parquet file: shared by frontier.py and generators.py"
from __future__ import annotations
import argparse
from pathlib import Path

import pandas as pd
from fastprogress.fastprogress import progress_bar

from synthrob.core.basics import replacing
from synthrob.core.stages import device_name, versions
from synthrob.data.core import fer2013_path
from synthrob.split.params import check_params
from synthrob.split.run import SplitRun

def run_trials(about, keys, trial, args=None):
    "Run NAME:AMOUNT of the command line for each seed: `trial(name, amount, seed, parts, device)`, parts by name, to a dict of plain values"
    p = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path, help='a parquet file, written after each trial; trials that it holds are skipped')
    p.add_argument('trials', nargs='+', metavar=':'.join(keys[:2]).upper())
    p.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3])
    p.add_argument('--vocab', help='class names, comma separated; the five of the study if left out')
    p.add_argument('--path', default=fer2013_path(), help='of FER-2013')
    p.add_argument('--root', default='runs', help='where the prepared images are kept')
    p.add_argument('--device', help="'cpu' or 'cuda'; if left out, CUDA if there is one")
    a = p.parse_args(args)
    run = SplitRun(check_params(dict(data='fer2013', path=a.path, vocab=a.vocab, out=a.root, ratio=0)))
    for stage in ('data', 'copies', 'parts'): run.make(stage)
    parts = {k: run.part(k) for k in ('train', 'valid', 'test')}
    read = lambda: pd.read_parquet(a.out).to_dict('records') if a.out.exists() else []
    wanted = [(name, float(amount), seed) for seed in a.seeds for name, amount in (o.rsplit(':', 1) for o in a.trials)]
    for one in progress_bar(wanted):
        if one in {tuple(o[k] for k in keys) for o in read()}: continue
        row = dict(zip(keys, one)) | trial(*one, parts, a.device)
        rows = [*read(), row | dict(device=device_name(a.device), torch=versions()['torch'])]
        with replacing(a.out) as f: pd.DataFrame(rows).to_parquet(f)
