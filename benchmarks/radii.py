"""Accuracy under attack at further radii: `python benchmarks/radii.py RUNS OUT.parquet --eps .0039 .0078`.

The classifiers of a sweep that were trained adversarially, attacked on all test images by as many steps of PGD as for their robust
accuracy, and at each radius only those that survived the smaller ones. A row a run and radius; runs that OUT already holds are skipped.
nbs/results/09_attacks.ipynb reads nbs/results/records/fer2013_radii.parquet.
"""
from __future__ import annotations
import argparse
from pathlib import Path

import pandas as pd
from fastprogress.fastprogress import progress_bar

from synthrob.cnn.attacks import Predictor, attack
from synthrob.core.basics import read_json, replacing
from synthrob.split.params import check_params
from synthrob.split.run import PGD_STEPS, SplitRun

def main(args=None):
    "Attack the classifiers; return the table"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('runs', type=Path, help='folder of the sweep')
    p.add_argument('out', type=Path, help='a parquet file, written after each run')
    p.add_argument('--path', help='of the data, if it has moved')
    p.add_argument('--eps', type=float, nargs='+', default=[1/255, 2/255], help='radii, for images in [0,1]')
    a = p.parse_args(args)
    done = pd.read_parquet(a.out) if a.out.exists() else pd.DataFrame(dict(run=[]))
    for file in progress_bar(sorted(a.runs.glob('split/*/record.json'))):
        r = read_json(file)
        if r['given'].get('training') != 'adversarial' or r['hash'] in set(done.run): continue
        moved = dict(out=str(a.runs)) | (dict(path=a.path) if a.path else {})
        run = SplitRun(check_params(r['given'] | moved))
        model, part, kept, rows = Predictor(run.classifier(), run.recipe.flip).eval(), run.part('test'), None, []
        for e in sorted({*a.eps} - {0}):
            o = attack(model, part.x, part.y, 'pgd', e, steps=PGD_STEPS, mask=kept)
            kept = o.correct
            rows.append(dict(attack='pgd', norm='inf', eps=e, steps=PGD_STEPS, n=len(part), accuracy=o.accuracy, run=r['hash']))
        done = pd.concat([done, pd.DataFrame(rows)], ignore_index=True)
        with replacing(a.out) as f: done.to_parquet(f)
    return done

if __name__ == '__main__': main()
