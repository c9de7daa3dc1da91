"Copies planted in FER-2013: shares that `find_copies` finds, new images accused. `python benchmarks/memorization.py OUT.json [N]`"
import json, resource, sys, time
import numpy as np, torch
from PIL import Image
from statsmodels.stats.proportion import proportion_confint
from near import jpeg, mirror
from synthrob.data.core import fer2013_path, prepare
from synthrob.data.dataset import Dataset
from synthrob.gan.memorization import find_copies

def shift(a, r): # by one pixel
    y, x = ((0, 1), (1, 0), (2, 1), (1, 2))[r.integers(4)]
    return np.pad(a, 1, mode='edge')[y:y+len(a),x:x+len(a)]
def zoom(a, r):
    o = (len(a) - len(a)/1.08)/2
    return np.array(Image.fromarray(a).resize(a.shape, Image.BICUBIC, box=(o, o, len(a) - o, len(a) - o)))
def noise(a, r): return (a + r.normal(0, .04*255, a.shape)).round().clip(0, 255).astype(np.uint8)

kinds = dict(shift_1px=shift, zoom_8_percent=zoom, mirror=mirror, noise_04=noise, jpeg_30=jpeg)
share = lambda k, n: dict(found=int(k), n=int(n), share=k/n, interval=proportion_confint(k, n, method='wilson'))

def main(out, per=300):
    images = prepare('fer2013', fer2013_path())
    (train, valid, test), r = images.split(), np.random.default_rng(0)   # by exact copies: near ones are on both sides
    rows = r.permutation(np.flatnonzero(train.x[:].float().std((1, 2, 3)).numpy() > 5))[:per*len(kinds)]
    copies = [list(kinds.values())[j//per](train.x[i][0].numpy(), r) for j, i in enumerate(rows)]
    planted = Dataset(torch.tensor(np.stack(copies))[:,None], train.y[rows], train.vocab)
    start, wall = time.process_time(), time.time()
    m = find_copies(planted, train, valid, n=len(rows))
    used = dict(cpu_s=time.process_time() - start, wall_s=time.time() - wall, threads=torch.get_num_threads())
    near, right = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    near[m.pairs.a[m.pairs.near]] = True
    right[m.pairs.a[m.pairs.b.to_numpy() == rows[m.pairs.a]]] = True
    record = dict(used, images=len(train), holdout=len(valid), sentence=m.sentence, c_t=m.c_t,
                  planted={k: share(near[j*per:(j+1)*per].sum(), per) | dict(original=int(right[j*per:(j+1)*per].sum()))
                           for j, k in enumerate(kinds)})
    start = time.process_time()
    h = find_copies(test, train, valid, n=2000)                 # real new images, and those of them that are none
    record |= dict(new=share(h.pairs.near.sum() - h.sure, h.n - h.sure), new_copies=h.sure, new_sentence=h.sentence,
                   new_cpu_s=time.process_time() - start)
    record |= dict(max_rss_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6)
    open(out, 'w').write(json.dumps(record, indent=1)); print(record)

if __name__ == '__main__': main(sys.argv[1], *map(int, sys.argv[2:]))
