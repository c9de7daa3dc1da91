"Near copies planted in FER-2013: recall, counts, time, memory. `python benchmarks/near.py five|seven OUT.json [PER_KIND [N]]`, of N images"
import io, json, resource, sys, time
import numpy as np, torch
from PIL import Image, ImageDraw
from synthrob.data.core import fer2013_path, prepare
from synthrob.data.duplicates import near_duplicates

def crop(a, r, lo=.7, hi=.95):
    n = len(a); k = n*r.uniform(lo, hi); y, x = r.uniform(0, n - k, 2)
    return np.array(Image.fromarray(a).resize((n, n), Image.BICUBIC, box=(x, y, x + k, y + k)))
def scale(a, r):
    n, s = len(a), np.exp(r.uniform(np.log(.8), np.log(1.25)))
    if s >= 1: o = (n - n/s)/2; return np.array(Image.fromarray(a).resize((n, n), Image.BICUBIC, box=(o, o, n - o, n - o)))
    k = round(n*s); p = n - k
    return np.pad(np.array(Image.fromarray(a).resize((k, k), Image.BICUBIC)), (p//2, p - p//2), mode='edge')
def shift(a, r, k=6):
    y, x = r.integers(0, 2*k + 1, 2)
    return np.pad(a, k, mode='edge')[y:y+len(a),x:x+len(a)]
def jpeg(a, r):
    f = io.BytesIO(); Image.fromarray(a).save(f, 'JPEG', quality=30); return np.array(Image.open(f))
def mirror(a, r): return a[:,::-1].copy()
def brightness(a, r): return np.clip(a + r.choice([-1, 1])*r.uniform(25, 50), 0, 255).astype(np.uint8)
def contrast(a, r):
    c = r.uniform(.4, .7) if r.random() < .5 else r.uniform(1.4, 1.7)
    return np.clip((a - a.mean())*c + a.mean(), 0, 255).astype(np.uint8)
def watermark(a, r):
    i = Image.fromarray(a).copy()
    ImageDraw.Draw(i).text((int(r.integers(0, len(a)//4)), int(r.integers(0, len(a) - 12))), 'stock.com', fill=255)
    return (a*.35 + np.array(i)*.65).astype(np.uint8)

kinds = dict(crop=[crop], crop_70=[lambda a, r: crop(a, r, .7, .7)], scale=[scale], shift=[shift], mirror=[mirror], jpeg_30=[jpeg],
             brightness=[brightness], contrast=[contrast], watermark=[watermark], crop_mirror_jpeg=[crop, mirror, jpeg],
             scale_contrast_watermark=[scale, contrast, watermark], crop_brightness_jpeg=[crop, brightness, jpeg],
             mirror_watermark_contrast_crop=[mirror, watermark, contrast, crop])

def main(which, out, per=100, n=None):
    images = prepare('fer2013', fer2013_path(), vocab='all' if which == 'seven' else None)
    r = np.random.default_rng(0)
    if n: images = images.subset(np.sort(r.permutation(len(images))[:n]))
    x, n = images.x[:], len(images)
    good = np.flatnonzero(x.float().std((1, 2, 3)).numpy() > 5)
    _, first = np.unique(x.numpy().reshape(n, -1), axis=0, return_index=True)
    rows = r.permutation(np.intersect1d(good, first))[:per*len(kinds)]
    copies = []
    for j, i in enumerate(rows):
        a = x[i,0].numpy()
        for f in list(kinds.values())[j//per]: a = f(a, r)
        copies.append(a)
    planted = torch.from_numpy(np.stack(copies))[:,None]
    before, start, wall = peak(), time.process_time(), time.time()
    pairs = near_duplicates(torch.cat([x, planted]), progress=False)
    used = dict(images=n + len(planted), cpu_s=round(time.process_time() - start), wall_s=round(time.time() - wall),
                peak_gb=peak(), peak_gb_before=before, threads=torch.get_num_threads())
    pairs.to_parquet(out.replace('.json', '.parquet'))
    score = {(a, b): s for a, b, s in zip(pairs.a, pairs.b, pairs.score)}
    hit = np.array([(i, n + j) in score for j, i in enumerate(rows)]).reshape(-1, per).mean(1)
    own, y, te = pairs[pairs.b < n], images.y.numpy(), images.part == 'test'
    near = own[own.score < 1]
    across = near[te[near.a] != te[near.b]]
    test = np.unique(np.where(te[across.a], across.a, across.b))
    count = lambda i: dict(zip(images.vocab, np.bincount(y[i], minlength=images.c).tolist()))
    record = dict(used, recall=dict(zip(kinds, hit.round(3).tolist())), per_kind=per, pairs=len(own), pairs_near=len(near),
                  labels_differ=int((y[own.a] != y[own.b]).sum()), labels_differ_near=int((y[near.a] != y[near.b]).sum()),
                  with_near_copy=count(np.unique(near[['a', 'b']])), test_with_near_copy=count(test), test=count(te))
    open(out, 'w').write(json.dumps(record, indent=1)); print(record)

def peak(): return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6, 2)

if __name__ == '__main__': main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
