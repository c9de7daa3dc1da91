"""Damaged and hostile input for every reader, artefact and command: refused by the project's own error, in time, in place?

    python tests/fuzz.py --n 100000 --seed 0 --jobs 1 --state fuzz      # goes on where it was stopped
    python tests/fuzz.py --kind zip --only 123                          # one input again, with its traceback

Each input is made from (seed, kind, number) by changing a good one: bytes, numbers, names, values. It counts as *refused* (`BadInput`, or
argparse's message), *accepted*, or as a fault: another exception, more than 10 s of CPU time or 50 s, a killed process, a file written outside the
output folder, a pickle or program run.
"""
import argparse, contextlib, gzip, io, json, os, random, resource, shutil, signal, struct, sys, tarfile, tempfile, time, traceback, warnings
import zipfile
from collections import Counter
from pathlib import Path

os.environ |= dict(MPLBACKEND='Agg', OMP_NUM_THREADS='1')
import numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq, torch, yaml
from PIL import Image
from synthrob.cnn.robustness import Robustness
from synthrob.core import stages
from synthrob.core.basics import BadInput, read_json, read_tensors, write_tensors
from synthrob.data import core, files, sources
from synthrob.data.core import prepare
from synthrob.data.dataset import Dataset
from synthrob.data.rows import read_images
from synthrob.data.splits import splits
from synthrob.gan.learner import load_gan, save_gan
from synthrob.gan.nets import GAN
from synthrob.split.params import SplitParams, check_params
from synthrob.sweep import command
from synthrob.sweep import report as report_module
from synthrob.sweep.grid import _combinations, values
from synthrob.sweep.results import results
from dataclasses import fields
from simulate import simulate_runs

HANG, MEMORY = 10, 2<<30          # seconds of CPU time (or five times as many by the clock), and bytes that a process may take beyond its start, of one input

# --- changing good input ---

numbers = [0, 1, -1, 2, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1, 10**12]
junk = ['', ' ', '.', '..', '../x', '/etc/passwd', 'a\0b', '\n', 'ä', 'a\u0308', '\ud800', '🙂'*9, 'x'*300, '%s%n', '${HOME}', '<b>&"\'', 'nan', 'inf',
        '-inf', '1e999', '1_000', '0x10', 'None', 'true', '0', '-0.0', '1e400', '٣', 'CON', 'train', 'test', '__proto__', "'; drop", '9'*400]

def change_bytes(b, rng):
    "Flip, overwrite, cut, insert, repeat or swap some bytes, one to four times"
    b = bytearray(b)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        n = len(b)
        if not n: return bytes(rng.randbytes(rng.randrange(9)))
        at = rng.randrange(n) if rng.random() < .6 else rng.choice((rng.randrange(min(n, 64)), n - 1 - rng.randrange(min(n, 64))))
        size = rng.choice((1, 2, 4, 8, 16, 64, 256))
        how = rng.randrange(8)
        if how < 2: b[at] ^= 1 << rng.randrange(8)
        elif how == 2: b[at:at+size] = rng.randbytes(size)
        elif how == 3: b[at:] = b''
        elif how == 4: del b[at:at+size]
        elif how == 5: b[at:at] = rng.randbytes(size)
        elif how == 6: b[at:at] = b[at:at+size]*rng.choice((1, 2, 50))
        else:
            k = rng.choice('BHIQ')
            b[at:at+struct.calcsize(k)] = struct.pack(rng.choice('<>') + k, rng.choice(numbers) % 256**struct.calcsize(k))
    return bytes(b)

def value(rng, deep=0):
    "Any value that JSON or YAML could hold"
    how = rng.randrange(10 if deep < 3 else 6)
    if how == 0: return rng.choice(numbers)*rng.choice((1, -1))
    if how == 1: return rng.choice((None, True, False, .5, -.1, 1e-300, 1e308, float('nan'), float('inf')))
    if how < 5: return rng.choice(junk)
    if how == 5: return rng.random()
    if how < 8: return [value(rng, deep + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(junk): value(rng, deep + 1) for _ in range(rng.randrange(4))}

def nodes(o, at=()):
    "Yield the paths of all nodes of nested dicts and lists"
    yield at
    for k, v in (o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, list) else ()): yield from nodes(v, (*at, k))

def change_json(o, rng):
    "Replace, remove, add or repeat a node of nested dicts and lists"
    o = json.loads(json.dumps(o))
    for _ in range(rng.choice((1, 1, 2, 3))):
        *above, last = ('top', *rng.choice([*nodes(o)]))
        box = dict(top=o)
        for k in above: box = box[k]
        how = rng.randrange(6)
        if how < 3: box[last] = value(rng)
        elif how == 3 and last != 'top': del box[last]
        elif how == 4 and isinstance(box[last], (int, float)): box[last] = rng.choice((-1, 0, .5, 2, 1e9))*(box[last] or 1)
        elif isinstance(box[last], list): box[last] = box[last]*rng.choice((0, 2)) + [value(rng)]
        elif isinstance(box[last], dict): box[last][rng.choice(junk)] = value(rng)
        else: box[last] = [box[last]]
        if above: o = o
        else: o = box['top'] if 'top' in box else None
    return o

def json_text(o, rng):
    "`o`, changed, as text: seldom deep, long, of another encoding, or with bytes changed"
    b = json.dumps(change_json(o, rng) if rng.random() < .8 else o).encode('utf-8', 'surrogatepass')
    how = rng.randrange(12)
    if how == 0: return b'['*rng.choice((500, 5000, 200_000)) + b
    if how == 1: return b.replace(b'1', b'1'*rng.choice((20, 5000)), 1)
    if how == 2: return b.decode('utf-8', 'replace').encode(rng.choice(('utf-16', 'utf-8-sig', 'cp037')), 'replace')
    return change_bytes(b, rng) if how < 6 else b

# --- good input ---

def pictures():
    "Small images in every format: name -> bytes"
    x = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    im, out = Image.fromarray(x), {}
    alpha = Image.fromarray(np.dstack([x, x[..., 0]]))
    deep = Image.fromarray(x[..., 0].astype(np.uint16)*200)
    for name, o, kw in (('a.png', im, {}), ('b.jpg', im, {}), ('c.bmp', im, {}), ('d.gif', im.convert('P'), {}), ('e.tif', im, {}),
                        ('f.webp', im, dict(lossless=True)), ('g.ppm', im, {}), ('h.png', alpha, {}), ('i.png', deep, {}),
                        ('j.png', im.convert('P'), dict(transparency=3)), ('k.tif', deep, dict(compression='tiff_deflate')),
                        ('l.jpg', im.convert('CMYK'), {}), ('m.tif', im.convert('L'), dict(compression='tiff_lzw')),
                        ('n.png', im.convert('1'), {}), ('o.gif', im, dict(save_all=True, append_images=[im, im])), ('p.avif', im, {})):
        with contextlib.suppress(KeyError, OSError):
            o.save(f := io.BytesIO(), format=dict(jpg='JPEG', tif='TIFF', ppm='PPM').get(name[-3:], name.split('.')[1].upper()), **kw)
            out[name] = f.getvalue()
    im.convert('L').resize((48, 48)).save(f := io.BytesIO(), format='PNG')           # as FER-2013 has them
    return out | {'q.png': f.getvalue(), 'r.png': f.getvalue() + b'\0'}

PICTURES = pictures()

def members(rng):
    "Names and contents of a small data set, some of them odd"
    pics = [*PICTURES.items()][-2 if rng.random() < .3 else 0:]
    out = {f"{p}{c}/{i}{n}": b for i, (c, p) in enumerate((c, p) for c in ('happy', 'sad') for p in rng.choice((('train/', 'test/'), ('', '')))
           for _ in range(3)) for n, b in [rng.choice(pics)]}
    for _ in range(rng.choice((0, 1, 1, 2))):
        name, b = rng.choice([*out.items()])
        how, where = rng.randrange(9), rng.choice(('happy/', 'train/', '', 'x/y/', 'happy/../', '../', '/', 'C:\\', './', 'happy\\'))
        if how == 0: out[name] = change_bytes(b, rng)
        elif how == 1: out[where + rng.choice(junk) + '.png'] = b
        elif how == 2: out['/'.join(['d']*rng.choice((3, 39, 45, 900))) + '/x.png'] = b
        elif how == 3: out[where + rng.choice(('Thumbs.db', '__MACOSX/a.png', 'labels.csv', 'a_mask.png', 'x.PNG', 'x', 'a.csv', '.hidden.png'))] = b
        elif how == 4: out[name.swapcase()] = b
        elif how == 5: out[name] = b''
        elif how == 6: out[name] = b'\0'*rng.choice((10, 10**6))
        elif how == 7: out = {k: v for k, v in out.items() if not k.endswith(rng.choice(('g', 'f')))}
        else: out[name + '/inside.png'] = b
    return out

def put(folder, names, rng):
    "Write members to a folder as far as the system allows"
    for name, b in names.items():
        f = folder/name.lstrip('/').replace('..', '_')
        with contextlib.suppress(OSError, ValueError):
            f.parent.mkdir(parents=True, exist_ok=True)
            how = rng.randrange(60)
            if how == 0: f.symlink_to(rng.choice(('/etc/passwd', '..', 'a.png', '/dev/zero')))
            elif how == 1: os.mkfifo(f)
            elif how == 2: f.mkdir()
            else: f.write_bytes(b)

def zip_of(names, rng):
    f = io.BytesIO()
    with zipfile.ZipFile(f, 'w') as z:
        for k, b in names.items():
            with contextlib.suppress(ValueError, UnicodeError):
                i = zipfile.ZipInfo(k.replace('\ud800', '?'))
                i.compress_type = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
                if rng.random() < .01: i.external_attr = 0xA1FF << 16
                z.writestr(i, b)
    return f.getvalue()

def tar_of(names, rng, how):
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode=f'w:{how}', format=rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) as t:
        for k, b in names.items():
            i = tarfile.TarInfo(k); i.size = len(b)
            if rng.random() < .01: i.type, i.linkname = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)), '/etc/passwd'
            with contextlib.suppress(ValueError, UnicodeError): t.addfile(i, io.BytesIO(b))
    return f.getvalue()

def seldom(b, rng, p=.6): return change_bytes(b, rng) if rng.random() < p else b

# --- one input of each kind: a function of (seed folder, box with `inp` and `out`, random numbers) ---

def read_data(box, rng, data, path):
    "What a user does with data: decode, look, split"
    size = rng.choice((8, 16, 16, None)) if data == 'folder' else 16
    images = prepare(data, path, vocab='all', size=size, channels=rng.choice((None, 1, 3)), root=box/'out')
    if rng.random() < .1: images.counts(); splits(images).report

def image(seeds, box, rng):
    try:
        files._decode_image(change_bytes(rng.choice([*PICTURES.values()]), rng), rng.choice((8, 48)), rng.choice((1, 3)))
    except files.BrokenImage: raise BadInput from None
    except Exception as e:
        if isinstance(e, MemoryError): raise
        raise BadInput from None                     # `decode_blocks` takes any exception of a reader for a broken image

def folder(seeds, box, rng):
    put(box/'inp', members(rng), rng)
    read_data(box, rng, rng.choice(('folder',)*5 + ('fer2013',)), box/'inp')

def zipped(seeds, box, rng):
    (f := box/'inp'/'x.zip').write_bytes(seldom(zip_of(members(rng), rng), rng))
    read_data(box, rng, rng.choice(('folder',)*5 + ('fer2013',)), f)

def tarred(seeds, box, rng):
    how = rng.choice(('', 'gz', 'gz', 'bz2', 'xz'))
    (f := box/'inp'/f"x.tar{'.' + how if how else ''}").write_bytes(seldom(tar_of(members(rng), rng, how), rng))
    read_data(box, rng, rng.choice(('folder',)*5 + ('fer2013',)), f)

def table(rng):
    "FER-2013's CSV, a few rows, seldom with odd ones"
    pixels = ' '.join(str(rng.randrange(256)) for _ in range(48))
    rows = [[str(i % 2 + 3), ' '.join([pixels]*48), u] for i, u in enumerate(('Training',)*3 + ('PublicTest', 'PrivateTest')*2)]
    head = ['emotion', 'pixels', 'Usage']
    for _ in range(rng.choice((0, 1, 1, 2))):
        r = rng.choice([head, *rows])
        k = rng.randrange(len(r))
        r[k] = rng.choice((rng.choice(junk), r[k][:rng.randrange(50)], r[k].upper(), r[k] + rng.choice(junk), '"' + r[k], r[k].replace(' ', ',', 2),
                           '1 '*rng.choice((3, 2304, 40_000)), r[k].replace('1', str(rng.choice(numbers)), 3)))
        if rng.random() < .1: r += rng.choice((['x'], r*9))
    return rng.choice(('\n', '\n', '\r\n', '\r')).join(rng.choice((',', ',', ',', ',', ';')).join(r) for r in [head, *rows]).encode('utf-8', 'replace')

def csv(seeds, box, rng):
    b, how = seldom(table(rng), rng, .4), rng.randrange(5)
    name, b = (('x.csv', b), ('x.csv', b), ('x.csv.gz', seldom(gzip.compress(b, 1), rng, .5)), ('x.zip', seldom(zip_of({'a/fer.csv': b}, rng), rng, .3)),
               ('x.tar.gz', seldom(tar_of({'a/fer.csv': b}, rng, 'gz'), rng, .3)))[how]
    (f := box/'inp'/name).write_bytes(b)
    read_data(box, rng, 'fer2013', f)

def make_lmdb(at):
    import lmdb
    for c in 'bedroom', 'kitchen':
        with lmdb.open(str(at/f'{c}_train_lmdb'), map_size=1<<20) as env, env.begin(write=True) as t:
            for i, b in enumerate(PICTURES.values()): t.put(f'{i:040x}'.encode(), b)

def lsun(seeds, box, rng):
    shutil.copytree(seeds, box/'inp', dirs_exist_ok=True)
    f = rng.choice(sorted(box.joinpath('inp').glob('*/data.mdb')))
    f.write_bytes(change_bytes(f.read_bytes(), rng))
    read_data(box, rng, 'lsun', box/'inp')

def shard(rng):
    "A parquet file of labelled images, seldom with odd columns"
    pics = [rng.choice([*PICTURES.values()]) for _ in range(8)]
    odd, n = rng.randrange(16), len(pics)
    if odd == 1: pics[3] = None
    if odd == 2: pics[3] = b''
    image, label = [dict(bytes=b, path='x') for b in pics], [i % 2 for i in range(n)]
    if odd == 3: image = pics
    if odd == 4: label[2] = rng.choice((None, -1, 7, 2**40))
    if odd == 5: label = [rng.choice(junk).replace('\ud800', '') for _ in range(n)]
    if odd == 6: label = [1.5]*n
    t = pa.table({rng.choice(('image', 'image', 'img', 'x')): image, rng.choice(('label', 'label', 'labels', 'y')): label})
    names = rng.choice((['a', 'b'], ['a', 'b'], ['a'], ['a', 'a'], [], {}, 7, [1, 2], [None, 'a']))
    about = dict(info=dict(features=dict(image=dict(_type='Image'), label=dict(_type='ClassLabel', names=names))))
    if odd < 9: t = t.replace_schema_metadata(dict(huggingface=json_text(about, rng) if odd == 7 else json.dumps(about)))
    pq.write_table(t, f := io.BytesIO(), compression=rng.choice(('none', 'snappy', 'zstd', 'gzip')), use_dictionary=rng.random() < .5, row_group_size=3)
    return f.getvalue()

def parquet(seeds, box, rng):
    (f := box/'inp'/rng.choice(('x.parquet', 'train-00000-of-00001.parquet', 'train-00000-of-00002.parquet'))).write_bytes(seldom(shard(rng), rng, .7))
    read_data(box, rng, 'parquet', rng.choice((f, box/'inp')))

def make_set(at):
    ds = Dataset(torch.arange(4*64, dtype=torch.uint8).view(4, 1, 8, 8), [0, 1, 0, 1], ['a', 'b'], dict(name=list('wxyz')))
    ds.save(at/'set')
    write_tensors(at/'t.safetensors', dict(a=torch.ones(3, 4), b=torch.arange(5)), metadata=dict(state='{}'))
    write_tensors(at/'u.safetensors', dict(a=torch.ones(3)))
    save_gan(GAN(16, 1, 2, 4, 4), at/'gan.safetensors')

def tensors(seeds, box, rng):
    f = rng.choice(('t', 'u', 'gan'))
    b = (seeds/f'{f}.safetensors').read_bytes()
    if rng.random() < .5:                             # the head is JSON
        n = struct.unpack('<Q', b[:8])[0]
        head = json_text(json.loads(b[8:8+n]), rng)
        b = struct.pack('<Q', len(head)) + head + b[8+n:]
    else: b = change_bytes(b, rng)
    (g := box/'inp'/'x.safetensors').write_bytes(b)
    if f == 'gan': load_gan(g)
    else: read_tensors(g, strict=rng.random() < .5)

def dataset(seeds, box, rng):
    shutil.copytree(seeds/'set', box/'inp'/'set')
    f = rng.choice(sorted((box/'inp'/'set').iterdir()))
    f.write_bytes(json_text(read_json(f), rng) if f.suffix == '.json' and rng.random() < .7 else change_bytes(f.read_bytes(), rng))
    if f.name == 'x.npy' and rng.random() < .5: read_images(f, rng.choice((None, 0)))[:2]
    else: Dataset.load(box/'inp'/'set')

def make_runs(at):
    simulate_runs(at, ratios=(0, .3), hows=('replace',), cnn_seeds=range(2), n=40)

def seal(r): return {**r, 'files': r.get('files', {}), 'checksum': stages._record_sum({**r, 'files': r.get('files', {})})}

def records(seeds, box, rng, also=()):
    "Damage a file in a folder of runs, a record seldom with the checksum of its new content; read all"
    for at in seeds.iterdir():                        # as links, but for the damaged one
        (box/'inp'/at.name).mkdir()
        for o in at.iterdir():
            if o.is_dir(): (box/'inp'/at.name/o.name).symlink_to(o)
    f = rng.choice([*seeds.glob('*/*/record.json')]*3 + sorted(o for o in seeds.glob('*/*/*') if o.is_file()))
    here = box/'inp'/f.parent.relative_to(seeds)
    here.unlink(); shutil.copytree(f.parent, here)
    b, here = f.read_bytes(), here/f.name
    if f.name == 'record.json' and rng.random() < .5:
        r = change_json(json.loads(b), rng)
        here.write_text(json.dumps(seal(r) if isinstance(r, dict) and rng.random() < .5 else r), encoding='utf-8', errors='surrogatepass')
    else: here.write_bytes(json_text(json.loads(b), rng) if f.suffix == '.json' and rng.random() < .6 else change_bytes(b, rng))
    frame = results(box/'inp')
    if f.parent.parent.name == 'robustness': Robustness.load(here.parent)
    for o in also: o(frame)

def whole_report(seeds, box, rng):
    records(seeds, box, rng, [lambda frame: report_module.report(frame, box/'out', progress=False)])

good_spec = dict(ratio=[0, .3, .5], cnn_seed=2, how=['replace', 'add'], data='faces', margin=.02, slots=2, grids=[dict(treatment='synthetic'), dict(size=32)])
texts = ['ratios: 0,.1,...,.9\nseeds: 6\n', 'ratio: &a [0, .5]\nreal_share: *a\n', 'grids:\n- {ratio: [0, .3]}\n- ratio: 0..3\n', 'cnn_seed: 0..5\nratio: [0, yes]\n',
         '- ratio: 0\n- how: add\n  ratio: .5\n', 'vocab: happy,sad\nratio: 0\npreset: quick\ndry_run: yes\n']
words = [*'0123456789', '...', '..', ',', ':', '- ', '\n', '  ', '&a ', '*a', '[', ']', '{', '}', '!!python/object:os.system ', '!!binary ', '? ', '| ', '"', '1e9',
         '0..99999999', '0,.0001,...,1', '<<: ', '---\n', '#', '\t', 'ratio', 'cnn_seed', '.nan', '.inf', '2026-01-01', '0o17', '=']

def specs(seeds, box, rng):
    text = rng.choice((yaml.safe_dump(change_json(good_spec, rng), allow_unicode=True), rng.choice(texts)))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(words)*rng.choice((1, 1, 1, 3, 2000)) + text[at + rng.choice((0, 0, 1, 5)):]
    if rng.random() < .02: text = 'a: &a0 [x]\n' + ''.join(f'b{i}: &a{i+1} [' + ','.join([f'*a{i}']*9) + ']\n' for i in range(rng.choice((3, 30)))) + text
    (f := box/'inp'/'x.yaml').write_bytes(seldom(text.encode('utf-8', 'replace'), rng, .2))
    grids, settings = command._read_spec(f)
    command._check_settings({k: v[0] for k, v in command._settings.items()} | settings)
    for g in grids:
        vs = {k: values(k, v) for k, v in g.items()}
        if np.prod([len(o) for o in vs.values()], dtype=float) <= 60: _combinations(g)

def given(rng):
    "A parameter and a value, often a wrong one"
    f = rng.choice(fields(SplitParams))
    m, how = f.metadata, rng.randrange(6)
    if how == 0: return f.name, value(rng)
    if how == 1: return f.name, rng.choice(junk)
    if m['options']: return f.name, rng.choice(m['options'])
    if m['low'] is not None: return f.name, rng.choice((m['low'], m['high'], m['low'] - 1, m['high'] + 1, (m['low'] + m['high'])/2, f.default, str(m['low'])))
    return f.name, rng.choice((f.default, 'faces', 'torchvision:resnet18', 'torchvision:x', 'strong', 'mlp', 'a,b', 'recall:a', 'cuda', 'cpu', 'folder:links'))

def parameters(seeds, box, rng): check_params(dict(given(rng) for _ in range(rng.choice((1, 1, 2, 3)))))

def make_folder(at):
    for c in 'happy', 'sad':
        (at/c).mkdir(parents=True)
        for i in range(6): Image.fromarray(np.random.default_rng(i + 9*(c == 'sad')).integers(0, 255, (16, 16), np.uint8)).save(at/c/f'{i}.png')

def arguments(rng, flags, n=3):
    "A few flags with values, often wrong ones"
    out = []
    for _ in range(rng.randrange(n + 1)):
        k, v = rng.choice(flags), rng.choice((str(value(rng, 9)), rng.choice(junk), str(rng.choice(numbers)), '0,.3', '0..3', '.5', 'a,b', 'a=b', '0,.1,...,.9'))
        out += rng.choice(([f'--{k}', v], [f'--{k}={v}'], [f'--{k}'], [v], [f'--{k[:-1]}', v]))
    return [o for o in out if '\0' not in o]

def run_main(main, args):
    "Refused: exit code 2"
    if main(args) == 2: raise BadInput

def data_command(seeds, box, rng):
    args = arguments(rng, ['vocab', 'size', 'channels', 'seed', 'help'])
    if rng.random() < .3: args += [f'--{rng.choice(("sheet", "table"))}', str(box/'out'/rng.choice(('a.png', 'a.csv', 'a.parquet', 'a', 'a.exe', 'a/b/c.csv')))]
    if any(o.isdigit() and int(o) > 2000 for o in args): args = []                         # sizes are bounded; a slow picture is no finding
    data = rng.choice(('folder', 'folder', 'folder', 'folder:links', 'parquet', 'fer2013', 'lsun', 'torchvision', 'torchvision:MNIST', rng.choice(junk) + 'x'))
    path = rng.choice((str(seeds), str(seeds), str(seeds/'happy'), str(seeds/'happy'/'0.png'), str(box/'nothing')))
    run_main(core.main, [data, path, *args, '--out', str(box/'out')])

def sweep_command(seeds, box, rng):
    flags = [*command.axes(), *command._settings, *command._switches, 'ratios', 'seeds', 'gan_seeds', 'dry-run']
    flags = [o for o in flags if o not in ('out', 'path', 'pool', 'weights', 'data')]
    some = rng.choice((['--ratios', '0,.3'], ['--ratios', '0,.1,...,.5', '--seeds', '2'], ['--seeds', '2'], []))
    run_main(command.main, [*some, *arguments(rng, flags, 2), '--data', 'folder', '--path', str(seeds), '--copies', 'exact', '--folds', '1', '--dry_run',
                            '--out', str(box/'out')])

def report_command(seeds, box, rng):
    flags = ['only', 'sweep', 'margin', 'alpha', 'metric', 'confirm']
    args = arguments(rng, flags)
    if rng.random() < .5: args += ['--only', *(f'{rng.choice(("ratio", "how", "cnn", "cnn_seed", "x", ""))}={rng.choice(junk)}' for _ in range(2))]
    run_main(report_module.main, [str(rng.choice((seeds, seeds, seeds, box/'nothing', seeds/'split'))), *(o for o in args if '\0' not in o), '--out', str(box/'out')])

KINDS = dict(                                         # kind -> (share of the inputs, one input, its good files)
    image=(20, image, None), folder=(6, folder, None), zip=(8, zipped, None), tar=(7, tarred, None), csv=(6, csv, None), lmdb=(1, lsun, make_lmdb),
    parquet=(7, parquet, None), safetensors=(10, tensors, make_set), dataset=(7, dataset, make_set), records=(5, records, make_runs),
    report=(.15, whole_report, make_runs), yaml=(8, specs, None), parameters=(10, parameters, None),
    synthrob_data=(2, data_command, make_folder), synthrob_sweep=(2, sweep_command, make_folder), synthrob_report=(1, report_command, make_runs))

# --- watching ---

class Hang(BaseException): "More than `HANG` seconds"

_watch = dict(on=False, allowed=(), found=[])

def _audit(event, args):
    "Note what is written elsewhere, and programs and pickles that are run"
    if not _watch['on']: return
    where = None
    if event == 'open' and (isinstance(args[1], str) and set(args[1]) & set('wax+') or args[1] is None and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
        where = args[0]
    elif event in ('os.mkdir', 'os.remove', 'os.rmdir', 'os.truncate', 'os.chmod'): where = args[0]
    elif event in ('os.rename', 'os.link', 'os.symlink'): where = args[1]
    elif event in ('pickle.find_class', 'os.system', 'os.exec', 'os.fork', 'socket.connect') or event == 'subprocess.Popen' and sources._lmdb_reader not in args[1]:
        _watch['found'].append(f'{event} {args[:2]}'[:200])
    if isinstance(where, (str, bytes, os.PathLike)):
        full = os.path.abspath(os.fsdecode(where))
        if not full.startswith(_watch['allowed']): _watch['found'].append(f'{event} {full}'[:200])

def peak():
    "Peak of this process's memory since `reset_peak`, bytes"
    with open('/proc/self/status') as f: return next(int(o.split()[1]) for o in f if o.startswith('VmHWM'))*1024

def reset_peak():
    with contextlib.suppress(OSError), open('/proc/self/clear_refs', 'w') as f: f.write('5')

def on_alarm(*_): raise Hang

def try_one(kind, seeds, box, seed, i):
    "Make and read one input: outcome, seconds, peak bytes beyond the start, message"
    _watch['on'] = False
    shutil.rmtree(box, ignore_errors=True)
    for o in 'inp', 'out', 'cwd', 'tmp': (box/o).mkdir(parents=True)
    os.chdir(box/'cwd')
    tempfile.tempdir = str(box/'tmp')
    rng, why = random.Random(f'{seed} {kind} {i}'), ''
    stages._sums.clear()
    reset_peak(); before = peak()
    t, quiet = time.process_time(), io.StringIO()
    signal.setitimer(signal.ITIMER_PROF, HANG); signal.setitimer(signal.ITIMER_REAL, 5*HANG)
    _watch.update(allowed=(str(box/'out'), str(box/'tmp'), '/dev/null', str(box/'inp')), found=[])
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            _watch['on'] = True
            KINDS[kind][1](seeds, box, rng)
        how = 'accepted'
    except BadInput as e: how, why = 'refused', str(e)
    except SystemExit as e: how, why = ('accepted' if not e.code else 'refused' if e.code == 2 else 'exception'), f'exit {e.code}'
    except Hang: how, why = 'hang', traceback.format_exc()
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt): raise
        how, why = 'exception', traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0); signal.setitimer(signal.ITIMER_REAL, 0)
        _watch['on'] = False
    seconds, used = time.process_time() - t, max(0, peak() - before)
    made = [o.name for o in (*box.iterdir(), *(box/'cwd').iterdir()) if o.name not in ('inp', 'out', 'cwd', 'tmp')]
    if _watch['found'] or made: how, why = 'outside', f"{_watch['found'] + made}\n{why}"
    if how == 'refused' and kind not in ('image',) and why.startswith('Traceback'): how = 'exception'
    return how, seconds, used, why

def run_chunk(kind, seed, a, b, root, dest):
    "Try the inputs `a` to `b` of a kind; each begun input is noted, so that one that kills the process is known"
    for o in signal.SIGALRM, signal.SIGPROF: signal.signal(o, on_alarm)
    with open('/proc/self/statm') as f: size = int(f.read().split()[0])*4096
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, -1))
    sys.addaudithook(_audit)
    log = dest.open('a', encoding='utf-8')
    for i in range(a, b):
        print(json.dumps(dict(begin=i)), file=log, flush=True)
        how, seconds, used, why = try_one(kind, root/'seeds'/kind, root/f'box{os.getpid()}', seed, i)
        print(json.dumps(dict(i=i, how=how, seconds=seconds, used=used, why=why if how in ('exception', 'hang', 'outside') else '')), file=log, flush=True)
    os.chdir('/')
    shutil.rmtree(root/f'box{os.getpid()}', ignore_errors=True)

def read_log(f):
    "Outcomes of a chunk by number, and the inputs that ended the process"
    done, begun = {}, set()
    for line in f.read_text(encoding='utf-8').splitlines() if f.exists() else ():
        with contextlib.suppress(ValueError):
            o = json.loads(line)
            begun.add(o.get('begin', -1))
            if 'i' in o: done[o['i']] = o
    return done, sorted(begun - set(done) - {-1})

def fork_chunk(kind, seed, a, b, root, dest):
    "Try a chunk in a child process, which imports nothing again; inputs that kill it are left out and counted"
    while True:
        done, killed = read_log(dest)
        if (at := max([a - 1, *done, *killed]) + 1) >= b: return
        if (pid := os.fork()) == 0:
            os.dup2(os.open(dest.with_suffix('.err'), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)      # libtiff writes there
            try: run_chunk(kind, seed, at, b, root, dest)
            except BaseException: traceback.print_exc(); os._exit(1)
            os._exit(0)
        end = time.monotonic() + 60
        while os.waitpid(pid, os.WNOHANG) == (0, 0):  # the alarm cannot interrupt C: after a minute without a line, kill
            time.sleep(.02)
            if dest.exists(): end = max(end, time.monotonic() - (time.time() - dest.stat().st_mtime) + 60)
            if time.monotonic() > end: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0); break

# --- all ---

def shares(n, kinds):
    "Number of inputs of each kind"
    total = sum(KINDS[k][0] for k in kinds)
    return {k: max(1, round(n*KINDS[k][0]/total)) for k in kinds}

def fuzz(n, seed=0, kinds=None, state=None, root=None, jobs=1, chunk=500):
    "Try `n` inputs; return a table by kind, and the faults found"
    kinds = list(kinds or KINDS)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=root or ('/dev/shm' if os.path.isdir('/dev/shm') else None)) as d:
        d = Path(d)
        state = Path(state or d/'state').absolute()
        state.mkdir(parents=True, exist_ok=True)
        for k in kinds:
            (d/'seeds'/k).mkdir(parents=True)
            if KINDS[k][2]:
                with contextlib.redirect_stdout(io.StringIO()): KINDS[k][2](d/'seeds'/k)
        todo = [(k, a, min(a + chunk, m)) for k, m in shares(n, kinds).items() for a in range(0, m, chunk)]
        random.Random(seed).shuffle(todo)             # an early look at all kinds
        file = lambda k, a: state/f'{k}_{seed}_{a}.jsonl'
        if jobs == 1:
            for k, a, b in todo: fork_chunk(k, seed, a, b, d, file(k, a))
        else:
            pids = set()
            for k, a, b in todo:
                if len(pids) >= jobs: pids.discard(os.wait()[0])
                if (pid := os.fork()) == 0: fork_chunk(k, seed, a, b, d, file(k, a)); os._exit(0)
                pids.add(pid)
            for p in pids: os.waitpid(p, 0)
        rows, faults = [], []
        for k in kinds:
            logs = [read_log(file(k, a)) for o, a, _ in todo if o == k]
            done, killed = [o for l, _ in logs for o in l.values()], [i for _, l in logs for i in l]
            c = Counter(o['how'] for o in done)
            rows.append(dict(kind=k, inputs=len(done) + len(killed), **{o: c[o] for o in ('refused', 'accepted', 'exception', 'hang', 'outside')},
                             killed=len(killed), slowest=max((o['seconds'] for o in done), default=0.), peak_mb=max((o['used'] for o in done), default=0)/1e6,
                             seconds=sum(o['seconds'] for o in done)))
            faults += [(k, o['i'], o['how'], o['why']) for o in done if o['how'] not in ('refused', 'accepted')] + [(k, i, 'killed', '') for i in killed]
    t = pd.DataFrame(rows).set_index('kind')
    return pd.concat([t, t.agg({c: 'max' if c in ('slowest', 'peak_mb') else 'sum' for c in t}).to_frame('all').T]).astype(t.dtypes), faults

def one(kind, seed, i):
    "Try one input in this process, with its traceback"
    with tempfile.TemporaryDirectory() as d:
        d = Path(d); (d/'seeds').mkdir()
        if KINDS[kind][2]: KINDS[kind][2](d/'seeds')
        for o in signal.SIGALRM, signal.SIGPROF: signal.signal(o, on_alarm)
        sys.addaudithook(_audit)
        print(*try_one(kind, d/'seeds', d/'box', seed, i), sep='\n')
        os.chdir('/')

def main():
    p = argparse.ArgumentParser('fuzz', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=1000, help='inputs of all kinds (1000)')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--jobs', type=int, default=1, help='processes at a time')
    p.add_argument('--kind', nargs='+', choices=KINDS, help='only these')
    p.add_argument('--only', type=int, metavar='I', help='one input of a kind, here, with its traceback')
    p.add_argument('--state', help='folder of the outcomes; what is there is not tried again')
    a = p.parse_args()
    if a.only is not None: return one(a.kind[0], a.seed, a.only)
    start, cpu = time.monotonic(), os.times()
    t, faults = fuzz(a.n, a.seed, a.kind, a.state, jobs=a.jobs)
    print(t.to_string(float_format='%.2f'))
    same = {}
    for k, i, how, why in faults: same.setdefault((k, how, (why.strip().splitlines() or [''])[-1][:150]), []).append((i, why))
    for (k, how, last), found in sorted(same.items(), key=lambda o: -len(o[1])):
        print(f'\n{len(found)} x {k} {how}: {last}\n  inputs {[i for i, _ in found[:5]]}')
        print('  ' + '\n  '.join(o for o in found[0][1].splitlines() if 'synthrob/' in o)[-600:])
    now = os.times()
    print(f'{time.monotonic() - start:.0f} s, {now.user + now.system + now.children_user + now.children_system - cpu.user - cpu.system:.0f} s of CPU')
    return int(bool(faults))

if __name__ == '__main__': sys.exit(main())
