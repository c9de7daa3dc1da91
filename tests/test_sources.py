"Scenes of LSUN, shards of parquet, torchvision's sets and colour folders: read as others read them, resumed, refused in one sentence, taken through all stages"
from __future__ import annotations
import hashlib, io, json, os, pickle, signal, struct, subprocess, sys, time
from pathlib import Path
import lmdb, numpy as np, pyarrow as pa, pyarrow.parquet as pq, pytest, torchvision
from PIL import Image
from conftest import papermill, records, refused
import synthrob.data.files as files
import synthrob.data.sources as sources
from synthrob.core.basics import BadInput
from synthrob.data.core import own_size, prepare, prepare_near, preview
from synthrob.data.splits import subjects
from synthrob.split.core import run_split

TOY = dict(copies='exact', size=32, gan_images=640, gan_width=8, cnn='poster', cnn_epochs=1, robustness='none')

def picture(i, kind, mode='RGB', fmt='WEBP', side=40):
    "The bytes of an image of class `kind`: stripes of a colour of its own, with noise that depends on `i`"
    rng = np.random.default_rng([i, kind])
    x = rng.normal(60, 20, (side, side, 3))
    x[:, ::2 + kind] += np.array([[150, 40, 0], [0, 150, 40], [40, 0, 150]])[kind]
    im, b = Image.fromarray(x.clip(0, 255).astype(np.uint8)).convert(mode), io.BytesIO()
    im.save(b, fmt, **(dict(lossless=True) if fmt == 'WEBP' else {}))
    return b.getvalue()

def by_papermill(repo, tmp_path, **params):
    "The record of a run that papermill made"
    r = papermill(repo, tmp_path/'out.ipynb', out=tmp_path/'pm', **params)
    assert r.returncode == 0, r.stderr[-3000:]
    record, = records(tmp_path/'pm')
    return record

# --- LSUN

def write_lmdb(folder, values):
    folder.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(folder), map_size=1<<26) as env, env.begin(write=True) as txn:
        for k, v in values.items(): txn.put(k, v)

def key(i, kind): return hashlib.sha1(f'{kind} {i}'.encode()).hexdigest().encode()     # 40 hexadecimal digits, as LSUN has

@pytest.fixture(scope='module')
def lsun(tmp_path_factory) -> Path:
    "Three categories of scenes, with a validation part"
    top = tmp_path_factory.mktemp('lsun')
    for kind, c in enumerate(('bedroom', 'kitchen', 'tower')):
        for part, n in (('train', 150), ('val', 20)):
            write_lmdb(top/f'{c}_{part}_lmdb', {key(i, f'{c} {part}'): picture(i, kind) for i in range(n)})
    return top

def test_lsun_is_what_torchvision_reads(lsun, tmp_path, monkeypatch):
    ours = prepare('lsun', lsun, vocab=['bedroom', 'tower'], size=40, root=tmp_path/'runs')
    monkeypatch.chdir(tmp_path)                       # where torchvision leaves a pickle of the keys
    theirs = torchvision.datasets.LSUN(str(lsun), classes=['bedroom_train', 'tower_train'])
    assert len(theirs) == 300 and len(list(tmp_path.glob('_cache_*'))) == 2
    for part, y in ((ours.subset((ours.part == 'train') & (ours.y == k).numpy()), k) for k in (0, 1)):
        for i in (0, 1, 77, 149):
            im, label = theirs[i + 150*y]
            assert label == y and np.array_equal(np.asarray(im).transpose(2, 0, 1), part.x[i].numpy())

def test_categories_are_classes(lsun, tmp_path):
    a = prepare('lsun', lsun, vocab=['tower', 'bedroom'], root=tmp_path)
    assert a.vocab == ['tower', 'bedroom'] and a.x.shape == (340, 3, 64, 64) and 'kitchen' not in ''.join(a.names)
    assert a.counts().loc['tower'].tolist() == [150, 20, 170]
    b = prepare('lsun', lsun, vocab=['bedroom', 'tower'], root=tmp_path)
    assert b.about['path'] == a.about['path'], 'the order of classes is no reason to read again'
    assert prepare('lsun', lsun, vocab='kitchen', root=tmp_path).vocab == ['kitchen']
    assert len(prepare('lsun', lsun, n=30, vocab=['tower'], root=tmp_path)) == 50
    assert prepare('lsun', lsun, vocab='all', root=tmp_path).vocab == ['bedroom', 'kitchen', 'tower']

@pytest.mark.parametrize('say, damage', [
    ('it is truncated', lambda b: b[:len(b)*2//3]), ('not an LMDB database or is damaged', lambda b: b'\0'*len(b)),
    ('not an LMDB database or is damaged', lambda b: b''), ('not an LMDB database or is damaged', lambda b: b[:5])])
def test_bad_lmdb(lsun, tmp_path, say, damage):
    bad = tmp_path/'lsun'/'bedroom_train_lmdb'; bad.mkdir(parents=True)
    (bad/'data.mdb').write_bytes(damage((lsun/'bedroom_train_lmdb'/'data.mdb').read_bytes()))
    refused(say, prepare, 'lsun', tmp_path/'lsun', root=tmp_path/'runs')
    assert not (tmp_path/'runs').exists(), 'refused before any work'

def test_lsun_that_is_not_there(lsun, tmp_path, monkeypatch):
    ask = lambda path, vocab=None: prepare('lsun', path, vocab=vocab, root=tmp_path/'runs')
    refused("has no LSUN category 'kitchens'", ask, lsun, ['bedroom', 'kitchens'])
    refused('needs a path', ask, None)
    refused('there is no file or folder', ask, tmp_path/'nowhere')
    refused('holds no folder such as bedroom_train_lmdb', ask, tmp_path)
    refused('give the folder above it', ask, lsun/'tower_train_lmdb')
    refused('unpack it', ask, lsun/'tower_train_lmdb'/'data.mdb')
    (tmp_path/'lsun'/'tower_train_lmdb').mkdir(parents=True)
    refused('has no data.mdb', ask, tmp_path/'lsun')
    (tmp_path/'half'/'tower_val_lmdb').mkdir(parents=True)
    refused('has no tower_train_lmdb', ask, tmp_path/'half', ['tower'])
    monkeypatch.setattr(sources, 'find_spec', lambda name: None)
    refused('pip install lmdb', ask, lsun)

def test_a_renamed_database_is_another_data_set(tmp_path):
    "Labels and parts are in the names of folders, which no file's content holds"
    for c in ('cat', 'dog'): write_lmdb(tmp_path/'lsun'/f'{c}_train_lmdb', {key(i, c): picture(i, int(c == 'dog')) for i in range(6)})
    one = prepare('lsun', tmp_path/'lsun', root=tmp_path/'runs')
    (tmp_path/'lsun'/'dog_train_lmdb').rename(tmp_path/'lsun'/'wolf_train_lmdb')
    other = prepare('lsun', tmp_path/'lsun', root=tmp_path/'runs')
    assert (one.vocab, other.vocab) == (['cat', 'dog'], ['cat', 'wolf'])

def test_corrupt_entries_are_counted_and_named(lsun, tmp_path, capsys):
    good = {key(i, 'x'): picture(i, 0) for i in range(200)}
    bad = [key(3, 'x'), key(9, 'x')]
    write_lmdb(tmp_path/'lsun'/'tower_train_lmdb', good | dict(zip(bad, (b'', picture(9, 0)[:300]))))
    images = prepare('lsun', tmp_path/'lsun', root=tmp_path/'runs')
    names = {f'tower_train/{k.decode()}' for k in bad}
    assert len(images) == 198 and {o['name'] for o in images.about['broken']} == names
    assert '2 of 200 images skipped' in capsys.readouterr().out
    write_lmdb(tmp_path/'lsun'/'tower_train_lmdb', {key(i, 'x'): b'no image' for i in range(6)})
    refused('more than 1 % of all 200', prepare, 'lsun', tmp_path/'lsun', root=tmp_path/'other')

SLOW = """import sys, time, synthrob.data.files as files
fast = files._decode_image
def slow(*args):
    time.sleep(.002)
    return fast(*args)
files._decode_image = slow
from functools import partial
import synthrob.data.core as data
data.lsun_images = partial(data.lsun_images, bs=16)
data.prepare('lsun', sys.argv[1], root=sys.argv[2])"""

@pytest.mark.e2e
def test_killed_and_gone_on(lsun, tmp_path, monkeypatch, capsys):
    "SIGKILL while it is read, twice; what was decoded is not decoded again, and the result is the same"
    for least in (1, 8):
        p = subprocess.Popen([sys.executable, '-c', SLOW, str(lsun), str(tmp_path/'runs')], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        end, lines = time.monotonic() + 120, lambda: [o for f in tmp_path.glob('runs/data/*/images.jsonl') for o in f.read_bytes().splitlines()]
        while len(lines()) < least and p.poll() is None and time.monotonic() < end: time.sleep(.005)
        assert p.poll() is None, p.stderr.read().decode()[-2000:]
        p.send_signal(signal.SIGKILL); p.wait()
    there = sum(len(json.loads(o)['kept']) for o in lines()[:-1])                 # the last line may be torn
    assert 8*16 - 16 <= there < 510 and not list(tmp_path.glob('runs/data/*/images.npy'))
    decoded, fast = [], files._decode_image
    monkeypatch.setattr(files, '_decode_image', lambda *args: decoded.append(1) or fast(*args))
    gone_on = prepare('lsun', lsun, root=tmp_path/'runs')
    assert 'continuing after them' in capsys.readouterr().out and len(decoded) <= 510 - there
    whole = prepare('lsun', lsun, root=tmp_path/'whole')
    assert len(gone_on) == 510 and gone_on.hash == whole.hash and gone_on.names.tolist() == whole.names.tolist()
    left = {o.name for o in next(tmp_path.glob('runs/data/*/images.npy')).parent.iterdir()}
    assert left == {'images.npy', 'meta.parquet', 'params.json', 'record.json'}

@pytest.mark.e2e
def test_scenes_by_papermill(repo, lsun, tmp_path):
    "A scene GAN, a scene classifier and a split"
    record = by_papermill(repo, tmp_path, data='lsun', path=lsun, vocab='bedroom,kitchen', ratio=.3, **TOY)
    assert list(record['counts']) == ['bedroom', 'kitchen'] and record['splits']['valid'] == 40
    assert sum(o['added'] for o in record['counts'].values()) == round(.3*sum(map(sum, (o.values() for o in record['counts'].values()))))
    assert record['test']['n'] == record['splits']['test'] > 50

# --- parquet

LABELS = ['cat', 'dog', 'horse']

def shard(file, n, start=0, mode='RGB', names=LABELS, **columns):
    "A parquet file as Hugging Face writes it"
    y = [i % 3 for i in range(start, start + n)]
    ims = [dict(bytes=picture(start + i, k, mode, 'PNG'), path=f'{i}.png') for i, k in enumerate(y)]
    about = dict(info=dict(features=dict(image=dict(_type='Image'), label=dict(_type='ClassLabel', names=names)))) if names else {}
    t = pa.table(dict(image=pa.array(ims, pa.struct([('bytes', pa.binary()), ('path', pa.string())])), label=y if names else [f'is {k}' for k in y], **columns))
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(t.replace_schema_metadata(dict(huggingface=json.dumps(about))), file, row_group_size=30)

@pytest.fixture(scope='module')
def hub(tmp_path_factory) -> Path:
    "A data set of three shards"
    top = tmp_path_factory.mktemp('hub')
    for k in range(2): shard(top/'data'/f'train-0000{k}-of-00002.parquet', 75, 75*k)
    shard(top/'data'/'test-00000-of-00001.parquet', 60, 150)
    return top

def test_parquet(hub, tmp_path):
    images = prepare('parquet', hub, size=40, root=tmp_path)
    assert images.vocab == LABELS and images.counts()['all'].tolist() == [70]*3 and images.counts().test.sum() == 60
    for i in (0, 59, 60, 209):                        # test comes first in the order of files
        j = 150 + i if i < 60 else i - 60
        want = np.asarray(Image.open(io.BytesIO(picture(j, j % 3, fmt='PNG'))).convert('RGB')).transpose(2, 0, 1)
        assert images.y[i] == j % 3 and np.array_equal(images.x[i].numpy(), want)
    one = prepare('parquet', hub/'data'/'train-00001-of-00002.parquet', root=tmp_path)
    assert len(one) == 75 and set(one.part) == {'train'}
    shard(tmp_path/'text.parquet', 30, names=None)
    assert prepare('parquet', tmp_path/'text.parquet', root=tmp_path).vocab == ['is 0', 'is 1', 'is 2']

def test_rows_are_named_by_where_their_shard_lies(tmp_path):
    "Two shards of one name have rows and subjects of their own; a renamed file has another part; links are followed"
    for k, site in enumerate('AB'): shard(tmp_path/'hub'/site/'train'/'0000.parquet', 30, 30*k, patient=[f'{site}{i//3}' for i in range(30)])
    images = prepare('parquet', tmp_path/'hub', root=tmp_path/'runs')
    assert len(set(images.names)) == 60 and subjects(images, 'column:patient', tmp_path/'hub').max() == 19
    (tmp_path/'hub').rename(tmp_path/'moved')
    again = prepare('parquet', tmp_path/'moved', root=tmp_path/'runs')
    assert again.about['hash'] == images.about['hash'] and subjects(again, 'column:patient', tmp_path/'moved').max() == 19
    shard(tmp_path/'blob', 30)
    (tmp_path/'snapshot').mkdir()
    for name in 'test.parquet', 'images.parquet':
        (f := tmp_path/'snapshot'/name).symlink_to(tmp_path/'blob')
        assert set(prepare('parquet', f, root=tmp_path/'runs').part) == {'test' if 'test' in name else ''}
        assert len(prepare('parquet', tmp_path/'snapshot', root=tmp_path/'runs')) == 30
        f.unlink()

def test_a_shard_written_anew_is_listed_anew(tmp_path):
    "Its folder does not change with it"
    f = tmp_path/'data'/'train.parquet'
    shard(f, 30); assert own_size('parquet', f.parent) == 32
    with pytest.raises(BadInput, match="no class 'is 0'"): preview('parquet', f.parent, vocab=['is 0', 'is 1'])
    stamp = f.parent.stat().st_mtime_ns
    shard(f, 30, names=None)
    os.utime(f.parent, ns=(stamp, stamp))
    preview('parquet', f.parent, vocab=['is 0', 'is 1'])

def test_near_copies_of_another_test_part(tmp_path):
    "Pairs are of the images with one test part of FER-2013, and are not read for the other"
    rng = np.random.default_rng(0)
    base = np.kron(rng.integers(0, 255, (60, 6, 6)), np.ones((8, 8))).astype(int)
    rows = [(i % 2 + 3, x, 'Training') for i, x in enumerate(base[:20])] + [(i % 2 + 3, x, 'PublicTest') for i, x in enumerate(base[20:40])]
    rows += [(i % 2 + 3, x[:, ::-1], 'PrivateTest') for i, x in enumerate(base[:20])]     # mirror images of those in training
    lines = [f"{y},{' '.join(map(str, x.ravel()))},{u}" for y, x, u in rows]
    (tmp_path/'fer2013.csv').write_text('\n'.join(['emotion,pixels,Usage', *lines, '']))
    pairs = lambda **kw: len(prepare_near('fer2013', tmp_path/'fer2013.csv', vocab=['happy', 'sad'], root=tmp_path/'runs', **kw))
    assert (pairs(), pairs(test='PrivateTest'), pairs()) == (0, 20, 0)

def test_bad_parquet(hub, tmp_path):
    file, b = tmp_path/'a.parquet', (hub/'data'/'train-00000-of-00002.parquet').read_bytes()
    ask = lambda path=file, **kw: prepare('parquet', path, root=tmp_path/'runs', **kw)
    for keep in (.1, .9, .9999):
        file.write_bytes(b[:int(keep*len(b))])
        refused('a.parquet is truncated or damaged', ask)
    file.write_bytes(b'version https://git-lfs.github.com/spec/v1\n')
    refused('git lfs pull', ask)
    file.write_bytes(b'a,b\n1,2\n')
    refused('is not a parquet file', ask)
    pq.write_table(pa.table(dict(text=['a'], label=[0])), file)
    refused('has no column of images, its columns are text, label', ask)
    shard(file, 9, label2=[0]*9)
    refused("has no column 'breed'", ask, name='breed')
    (tmp_path/'gap').mkdir()
    refused('holds no parquet file', ask, tmp_path/'gap')
    (tmp_path/'gap'/'train-00000-of-00002.parquet').write_bytes(b)
    refused('train-00001-of-00002.parquet is missing', ask, tmp_path/'gap')
    shard(tmp_path/'gap'/'train-00001-of-00002.parquet', 9, names=['cat', 'dog', 'cow'])
    refused('different columns or classes', ask, tmp_path/'gap')
    assert not list(tmp_path.glob('runs/*/*/record.json'))

def test_damaged_in_the_middle(hub, tmp_path):
    "A whole footer, and pages that are not what it says"
    b = bytearray((hub/'data'/'train-00000-of-00002.parquet').read_bytes())
    b[4:4000] = bytes(3996)
    (tmp_path/'a.parquet').write_bytes(b)
    refused('a.parquet is truncated or damaged', prepare, 'parquet', tmp_path/'a.parquet', root=tmp_path/'runs')

def test_grey_among_colour(tmp_path, capsys):
    "They are kept, counted and named, in one sentence; with one channel there is nothing to say"
    for i in range(60):
        f = tmp_path/'pets'/LABELS[i % 3]/f'{i:02}.png'; f.parent.mkdir(parents=True, exist_ok=True)
        f.write_bytes(picture(i, i % 3, 'L' if i in (3, 6) else 'RGB', 'PNG'))
    images = prepare('folder', tmp_path/'pets', root=tmp_path/'runs')
    said = capsys.readouterr().out
    assert images.about['grey'] == dict(n=2, names=['cat/03.png', 'cat/06.png'], classes=dict(cat=2))
    assert said.count('grey among') == 1 and '2 of 60 images are grey among colour ones (cat/03.png; cat/06.png)' in said
    assert prepare('folder', tmp_path/'pets', channels=1, root=tmp_path/'runs').about['grey'] is None
    assert 'grey' not in capsys.readouterr().out

def test_parquet_through_all_stages(hub, tmp_path):
    run = run_split(data='parquet', path=str(hub), ratio=.3, out=str(tmp_path), **TOY | dict(copies='near'))
    assert run.record['test']['n'] == 60 and list(run.record['counts']) == LABELS and run.pool.x.shape[1] == 3

# --- colour folders and torchvision's sets

@pytest.mark.e2e
def test_colour_folder_by_papermill(repo, tmp_path):
    for i in range(240):
        f = tmp_path/'pets'/('test' if i >= 180 else 'train')/LABELS[i % 3]/f'{i}.jpg'; f.parent.mkdir(parents=True, exist_ok=True)
        f.write_bytes(picture(i, i % 3, fmt='JPEG'))
    record = by_papermill(repo, tmp_path, data='folder', path=tmp_path/'pets', ratio=.5, how='add', **TOY | dict(robustness='fast'))
    assert list(record['counts']) == LABELS and record['test']['n'] == 60
    robust, = (json.loads(p.read_text()) for p in (tmp_path/'pm').glob('robustness/*/record.json'))
    assert robust['summary']['mca'] > 0

def test_cifar10(tmp_path, monkeypatch):
    "Files as CIFAR-10 has them, with the sums that torchvision compares"
    base, rng = tmp_path/'data'/'cifar-10-batches-py', np.random.default_rng(0)
    base.mkdir(parents=True)
    def put(name, o):
        (base/name).write_bytes(pickle.dumps(o))
        return [name, hashlib.md5((base/name).read_bytes()).hexdigest()]
    batch = lambda n: dict(data=rng.integers(0, 256, (n, 3072), dtype=np.uint8), labels=[i % 10 for i in range(n)])
    C = torchvision.datasets.CIFAR10
    names = 'airplane automobile bird cat deer dog frog horse ship truck'.split()
    train = [batch(40) for _ in range(5)]
    monkeypatch.setattr(C, 'train_list', [put(f'data_batch_{k+1}', o) for k, o in enumerate(train)])
    monkeypatch.setattr(C, 'test_list', [put('test_batch', batch(50))])
    monkeypatch.setattr(C, 'meta', dict(filename='batches.meta', key='label_names', md5=put('batches.meta', dict(label_names=names))[1]))
    run = run_split(data='torchvision:CIFAR10', path=str(tmp_path/'data'), vocab='cat,dog,ship', ratio=.3, out=str(tmp_path/'runs'), **TOY)
    assert run.images.x.shape[1:] == (3, 32, 32) and run.images.vocab == ['cat', 'dog', 'ship'] and run.record['test']['n'] == 15
    first = next(i for i, y in enumerate(train[0]['labels']) if y == 3)
    assert np.array_equal(run.images.x[0].numpy().ravel(), train[0]['data'][first])
    (base/'test_batch').write_bytes(b'other')
    refused('download=True) downloads it', prepare, 'torchvision', tmp_path/'data', name='CIFAR10', root=tmp_path/'other')

def test_fashion_mnist(tmp_path):
    raw, rng = tmp_path/'data'/'FashionMNIST'/'raw', np.random.default_rng(0)
    raw.mkdir(parents=True)
    idx = lambda x: struct.pack('>HBB', 0, 8, x.ndim) + struct.pack(f'>{x.ndim}I', *x.shape) + x.tobytes()
    for part, n in (('train', 200), ('t10k', 50)):
        (raw/f'{part}-images-idx3-ubyte').write_bytes(idx(rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)))
        (raw/f'{part}-labels-idx1-ubyte').write_bytes(idx((np.arange(n) % 10).astype(np.uint8)))
    run = run_split(data='torchvision:FashionMNIST', path=str(tmp_path/'data'), ratio=.3, out=str(tmp_path/'runs'), **TOY)
    assert run.images.x.shape == (250, 1, 32, 32) and run.record['test']['n'] == 50 and len(run.images.vocab) == 10
