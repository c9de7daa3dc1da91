"""Make classes of FER-2013 rare: `python benchmarks/rare.py fer2013.zip rare.zip --classes fear angry --share .1`.

Copies the zip of images without most training images of these classes; test images and other classes stay as they are. The
images that stay depend on their names only, so the same zip comes out everywhere. benchmarks/rare.yaml trains on it, and
nbs/results/10_rare.ipynb reads the records.
"""
from __future__ import annotations
import argparse
from hashlib import sha256
from pathlib import PurePosixPath
from zipfile import ZipFile

from synthrob.core.basics import replacing

def main(args=None):
    "Copy the zip; return how many training images each class has"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('src', help='fer2013.zip with a folder per part and class')
    p.add_argument('dst', help='the zip to write')
    p.add_argument('--classes', nargs='+', default=['fear', 'angry'])
    p.add_argument('--share', type=float, default=.1, help='of the training images of a class that stay')
    a = p.parse_args(args)
    kept = {}
    with ZipFile(a.src) as src, replacing(a.dst) as tmp, ZipFile(tmp, 'w') as dst:
        groups = {}
        for name in sorted(o for o in src.namelist() if not o.endswith('/')):
            groups.setdefault(PurePosixPath(name).parts[-3:-1], []).append(name)
        for (part, label), names in groups.items():
            if part == 'train':
                names.sort(key=lambda o: sha256(PurePosixPath(o).name.encode()).digest())
                if label in a.classes: names = names[:round(a.share*len(names))]
                kept[label] = len(names)
            for o in names: dst.writestr(src.getinfo(o), src.read(o))
    return kept

if __name__ == '__main__': print(main())
