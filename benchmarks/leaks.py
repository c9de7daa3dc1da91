"""What two leaks claim and what is true: `python benchmarks/leaks.py OUT.parquet --path fer2013.zip`.

The small CNN on a tenth of FER-2013's training images without copies: exact and near copies of test images are out, and of a group
of copies the first stays. `claimed` is its accuracy on the images that the leaky protocol tests, `true` that on images that no part
of the protocol has seen. Beside each leaky protocol is the same work in the right order:
  augment, then split:  five versions of each image, a fifth of all of them drawn for the test
  split, then augment:  a fifth of the images drawn for the test, five versions of each of the others
  GAN sees test images: as many synthetic images as real ones, the GAN trained on the real ones and the test images
  GAN sees none:        the GAN is trained on the real ones
A row a protocol and seed, the GAN's too; rows that OUT already holds are skipped. nbs/results/04_near_copies.ipynb reads
nbs/results/records/leaks.parquet.
"""
from __future__ import annotations
import argparse
from pathlib import Path

import pandas as pd, torch
from fastprogress.fastprogress import progress_bar
from torchvision.transforms import v2

from synthrob.cnn.learner import cnn_learner, evaluate
from synthrob.core.basics import replacing, seeded
from synthrob.core.stages import device_name, versions
from synthrob.data.core import prepare, prepare_near
from synthrob.data.dataset import concat
from synthrob.data.splits import splits
from synthrob.gan.learner import gan_learner
from synthrob.gan.trainer import gan_recipe
from synthrob.split.mixture import mix, nested_order

VERSIONS = 5   # of an image, itself among them
PROTOCOLS = 'augment, then split', 'split, then augment', 'GAN sees test images', 'GAN sees none'

def five_versions(images):
    "Each image and four mirrored, turned, moved and scaled copies of it, in blocks"
    change = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomAffine(10, (.06, .06), (.9, 1.1))])
    copies = []
    for _ in range(VERSIONS - 1):
        copies.append(images.subset(slice(None)))
        copies[-1].x = torch.stack([change(o) for o in images.x])
    return concat(images, *copies)

def drawn(data, share, seed):
    "Training and test part, item by item, with the same class shares"
    order = nested_order(data.y, data.c, seed)
    return data.subset(order[round(share*len(data)):]), data.subset(order[:round(share*len(data))])

def pool_of(seen, n, seed, a):
    "`n` images of each class from a GAN of `seen`"
    learn = gan_learner(seen, gan_recipe('default', nf=a.width), seed=seed, device=a.device)
    with learn.no_bar(), learn.no_logging(): learn.fit_gan(a.images)
    return learn.sample_pool(n, progress=False)

def main(args=None):
    "Run what OUT lacks; return all rows"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path, help='a parquet file, written after each row')
    p.add_argument('--data', default='fer2013', help='of synthrob.data.core.prepare')
    p.add_argument('--path', help='of the data')
    p.add_argument('--share', type=float, default=.1, help='of the real training images that is used')
    p.add_argument('--images', type=int, default=120_000, help='real images that a discriminator sees')
    p.add_argument('--width', type=int, default=32, help='of the nets of the GANs')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--root', default='runs', help='where the prepared images are kept')
    p.add_argument('--device', help="'cpu' or 'cuda'; if left out, CUDA if there is one")
    a = p.parse_args(args)
    images = prepare(a.data, a.path, size=32, root=a.root)
    s = splits(images, near=prepare_near(a.data, a.path, size=32, root=a.root))
    first = s.train[~pd.Series(s.table.near.to_numpy()[s.train]).duplicated().to_numpy()]
    train, valid, test = (images.subset(o) for o in (first, s.valid, s.test))
    order = nested_order(train.y, train.c)
    n = round(a.share*len(train))
    real, fresh = train.subset(order[:n]), train.subset(order[n:n + len(test)])
    rows = pd.read_parquet(a.out).to_dict('records') if a.out.exists() else []
    have = {(o['protocol'], o['seed']) for o in rows}
    for name, seed in progress_bar([(k, i) for k in PROTOCOLS for i in range(a.seeds) if (k, i) not in have]):
        if name.startswith('GAN'):
            pool = pool_of(concat(real, test) if name == PROTOCOLS[2] else real, int(real.y.bincount().max()), seed, a)
            data, tested, unseen = mix(real, pool, .5, 'add'), test, fresh
        else:
            with seeded('leaks', seed):
                if name == PROTOCOLS[0]: data, tested = drawn(five_versions(real), 1/VERSIONS, seed)
                else:
                    data, tested = drawn(real, 1/VERSIONS, seed)
                    data = five_versions(data)
            unseen = test
        learn = cnn_learner(data, valid, 'poster', seed=seed, device=a.device)
        with learn.no_bar(), learn.no_logging(): learn.fit_recipe()
        rows.append(dict(protocol=name, seed=seed, claimed=evaluate(learn, tested).accuracy, true=evaluate(learn, unseen).accuracy,
                         n_claimed=len(tested), n_true=len(unseen), n_train=len(data), data=a.data, share=a.share,
                         gan_images=a.images, gan_width=a.width, device=device_name(a.device), torch=versions()['torch']))
        with replacing(a.out) as f: pd.DataFrame(rows).to_parquet(f)
    return pd.DataFrame(rows)

if __name__ == '__main__': main()
