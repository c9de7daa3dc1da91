"What users bring: each kind of folder, archive and table gives the right images, or one sentence; hostile ones cost no memory"
import contextlib, gzip, io, os, shlex, shutil, struct, subprocess, sys, tarfile, unicodedata, zipfile, zlib
from pathlib import Path
import lmdb, numpy as np, pyarrow as pa, pyarrow.parquet as pq, pytest, torch
from PIL import Image
from conftest import refused
from synthrob.cnn.learner import Evaluation
from synthrob.core.basics import BadInput
from synthrob.data.core import content_key, data_stage, main, own_size, prepare
from synthrob.data.dataset import Dataset
from synthrob.data.duplicates import near_duplicates
from synthrob.data.files import list_images, torchvision_images
from synthrob.data.rows import DiskImages
from synthrob.data.splits import image_limits, splits
from synthrob.split.mixture import mix
from synthrob.split.params import check_params
from synthrob.split.run import SplitRun

rng = np.random.default_rng(0)

def photo(size=48, mode='L'):
    "Smooth random blobs"
    a = [np.asarray(Image.fromarray(rng.uniform(0, 255, (7, 7)).astype('f4')).resize((size, size), 3)).clip(0, 255) for _ in range(3)]
    return Image.fromarray(np.stack(a, -1).astype(np.uint8)).convert(mode)

def fill(path, classes='ab', n=6, ext='png', make=photo):
    for c in classes:
        (path/c).mkdir(parents=True, exist_ok=True)
        for i in range(n): make().save(path/c/f'{i}.{ext}')
    return path

def read(path, data='folder', **kw): return prepare(data, path, root=path.parent/'runs', **kw)

def masks(p):
    fill(p)
    for c in 'ab': [photo().save(p/c/f'{i}_mask.png') for i in range(6)]
def mask_folders(p): fill(p/'images'); fill(p/'masks')
def masks_in_classes(p):
    for c in 'ab': fill(p/c, ('images', 'masks'))
def masks_before(p):
    fill(p)
    for c in 'ab': [photo().save(p/c/o) for i in range(3) for o in (f'mask_{i}.png', f'{i}.seg.png')]; fill(p/c, ['thumbnails'])
def nas(p): fill(p); fill(p/'a', ['@eaDir']); fill(p/'@eaDir'); (p/'lost+found').mkdir(); (p/'Thumbs.db').write_bytes(b'x')
def doubled(p): fill(p/'train'); fill(p/'test'); [shutil.copytree(p/o, p/p.name/o) for o in ('train', 'test')]
def doubled_class(p): fill(p); shutil.copytree(p/'a', p/'a - Copy'); (p/'a/5.png').unlink()
def unread(p): fill(p); [(p/'b'/f'{i}.HEIC').write_bytes(b'heic') for i in range(3)]; (p/'a/x.dcm').write_bytes(b'd')
def jfif(p): fill(p, ext='jfif', make=lambda: photo(mode='L'))
def broken(p): fill(p, n=15); (p/'a/cut.png').write_bytes((p/'a/0.png').read_bytes()[:60])
def part_names(p): [fill(p/o) for o in ('Training', 'train2', 'dev', 'test_2')]
def usages(p): [fill(p/o) for o in ('Training', 'PublicTest', 'PrivateTest')]
def nested_parts(p): [fill(p/o/o) for o in ('training_set', 'test_set')]
def spelling(p): fill(p/'train', 'ab'); fill(p/'test', 'Ab')
def unicode_forms(p): [fill(p/q, ('a', unicodedata.normalize(f, 'joyé'))) for q, f in dict(train='NFC', test='NFD').items()]
def no_utf8(p): fill(p); os.rename(p/'a/0.png', os.fsencode(p/'a') + b'/caf\xe9.png')
def flat(p): p.mkdir(); [photo().save(p/f'{c}.{i}.png') for c in 'ab' for i in range(6)]
def flat_parts(p): [((p/o).mkdir(parents=True), [photo().save(p/o/f'{c}.{i}.png') for c in 'ab' for i in range(6)]) for o in ('train', 'test')]
def grey_as_rgb(p): fill(p, ext='jpg', make=lambda: photo().convert('RGB'))
def inner_links(p): fill(p); [(p/'b'/f'{i}x.png').symlink_to(p/'a'/f'{i}.png') for i in range(2)]

@pytest.mark.parametrize('make, counts, ignored', [
    (masks, {'a': 6, 'b': 6}, {('a', 'mask'): 6, ('b', 'mask'): 6}), (mask_folders, {'a': 6, 'b': 6}, {('', 'mask'): 12}),
    (masks_in_classes, {'a': 6, 'b': 6}, {('', 'mask'): 12}), (masks_before, {'a': 6, 'b': 6}, {('a', 'mask or thumbnail'): 12, ('b', 'mask or thumbnail'): 12}), (nas, {'a': 6, 'b': 6}, {('a', '@eaDir'): 6, ('', '@eaDir'): 12, ('', 'Thumbs.db'): 1}),
    (doubled, {'a': 12, 'b': 12}, {('', 'second copy'): 24}), (flat_parts, {'a': 12, 'b': 12}, {}), (unread, {'a': 6, 'b': 6}, {('b', '.heic is not read'): 3, ('a', '.dcm is not read'): 1}),
    (jfif, {'a': 6, 'b': 6}, {}), (broken, {'a': 15, 'b': 15}, {}), (part_names, {'a': 24, 'b': 24}, {}), (usages, {'a': 18, 'b': 18}, {}),
    (nested_parts, {'a': 12, 'b': 12}, {}), (spelling, {'a': 12, 'b': 12}, {}), (unicode_forms, {'a': 12, 'joyé': 12}, {}),
    (no_utf8, {'a': 6, 'b': 6}, {}), (flat, {'a': 6, 'b': 6}, {}), (grey_as_rgb, {'a': 6, 'b': 6}, {}), (inner_links, {'a': 6, 'b': 8}, {})],
    ids=lambda o: getattr(o, '__name__', ''))
def test_folders(tmp_path, make, counts, ignored, capsys):
    "Classes, counts and what was ignored, by class and reason; said so by `describe`; the same from a zip and a tar"
    p = tmp_path/'my set'; make(p)
    images = read(p)
    got = images.counts()
    assert got['all' if 'all' in got else 'n'].to_dict() == counts and images.x.shape[1] == 1
    found = images.about['found']['ignored']
    assert len(found) == len(ignored) and all(sum(o['n'] for o in found if o['label'] == k and why in o['reason']) == n for (k, why), n in ignored.items()), found
    capsys.readouterr(); images.describe(plot=False); told = capsys.readouterr().out
    assert all(o['reason'] in told for o in found)
    if make in (no_utf8, inner_links): return
    with tarfile.open(tmp_path/'a.tar.gz', 'w:gz') as t: t.add(p, 'data')
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: [z.write(f, f.relative_to(p)) for f in sorted(p.rglob('*'))]
    for archive in ('a.tar.gz', 'a.zip'): assert read(tmp_path/archive).counts().equals(got), archive

def test_parts_of_folders(tmp_path):
    for make, parts in ((part_names, ['test', 'train', 'valid']), (usages, ['test', 'train', 'valid']), (nested_parts, ['test', 'train'])):
        p = tmp_path/make.__name__; make(p); assert sorted(set(read(p).part)) == parts

@pytest.mark.parametrize('dtype, ext, top, want', [(np.uint16, 'png', 4095, 12), (np.uint16, 'tif', 16383, 14), (np.int32, 'tif', 255, 8), (np.uint16, 'png', 65535, 16)])
def test_deep_grey(tmp_path, dtype, ext, top, want):
    "All classes by the same range: a dark class stays dark"
    x = np.arange(48*48).reshape(48, 48)/(48*48 - 1)
    for c, light in dict(dark=.25, light=1).items():
        (tmp_path/'d'/c).mkdir(parents=True)
        for i in range(4): Image.fromarray((np.roll(x, i)*top*light).astype(dtype)).save(tmp_path/'d'/c/f'{i}.{ext}')
    images = read(tmp_path/'d')
    note = images.about['found']['notes'][0]
    assert images.x.amax((1, 2, 3)).tolist() == [63]*4 + [255]*4 and f'read as {want} bits' in note
    assert (f'classes differ (dark {want-2}, light {want})' in note) == (want > 8)

def test_refused_folders(tmp_path):
    refused("has one class only, 'a': make one folder", read, fill(tmp_path/'one', 'a'))
    (fill(tmp_path/'table', ['images'])/'labels.csv').write_text('0.png,a\n')
    refused('labels.csv may hold the labels', read, tmp_path/'table')
    (fill(tmp_path/'empty')/'c').mkdir(); refused('class folder c holds no image', read, tmp_path/'empty')
    (fill(tmp_path/'lost')/'c').mkdir(); (tmp_path/'lost/c/1.png').write_bytes(b'x')
    refused("the class 'c' is lost", read, tmp_path/'lost')
    (fill(tmp_path/'two', ['train', 'test'])/'labels.csv').write_text('0.png,a\n')
    refused('test/0.png is in no class folder', read, tmp_path/'two')
    [fill(tmp_path/'named'/o) for o in ('train-clean', 'test-clean')]; refused('which name parts', read, tmp_path/'named')
    refused("'A' and 'a', which differ only in case", read, fill(tmp_path/'case', 'Aab'))
    os.mkfifo(tmp_path/'fifo'); refused('is a pipe or device', read, tmp_path/'fifo'); refused('is a pipe or device', read, Path('/dev/zero'), 'fer2013')
    deep = tmp_path/'deep'; fill(deep); here = os.getcwd()
    try:
        os.chdir(deep)
        for _ in range(1500): os.mkdir('d'); os.chdir('d')
    finally: os.chdir(here)
    refused('more than 40 folders inside each other', read, deep)
    os.system(f'rm -rf {deep}')

@pytest.mark.parametrize('n', [1, 2, 3])
def test_tiny_class(tmp_path, n):
    p = fill(tmp_path/'d', n=12); fill(p, 'c', n=n)
    refused("a class needs at least 4, two to train, one to validate, one to test; add images or leave the class out, vocab='a,b'", splits, read(p))
    assert splits(read(p, vocab=['a', 'b'])).report['images'] == 24

def test_links(tmp_path):
    store, p = fill(tmp_path/'store'), tmp_path/'links'
    for f in store.rglob('*.png'): (p/f.parent.name).mkdir(parents=True, exist_ok=True); (p/f.parent.name/f.name).symlink_to(f)
    refused("follow links with data='folder:links'", read, p)
    images = read(p, name='links')
    assert images.counts()['n'].to_dict() == {'a': 6, 'b': 6} and check_params(dict(data='folder:links', path=str(p))).size == 48
    (p/'a/again').symlink_to(p)                                            # a circle ends
    assert len(read(p, name='links')) >= 12

@pytest.mark.parametrize('names, raw', [('data\\{}\\{}.png', None), ('{}/{}.png', 'cp1252'), ('{}/{}.png', 'cp437'), ('{}/{}.png', 'utf-8')])
def test_zip_names(tmp_path, names, raw):
    class Info(zipfile.ZipInfo):
        def _encodeFilenameFlags(self): return (self.filename.encode(raw), self.flag_bits) if raw else super()._encodeFilenameFlags()
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for c in ('glücklich', 'müde'):
            for i in range(6):
                b = io.BytesIO(); photo().save(b, 'PNG'); info = Info('x'); info.filename = names.format(c, i); z.writestr(info, b.getvalue())
    assert read(tmp_path/'a.zip').counts()['n'].to_dict() == {'glücklich': 6, 'müde': 6}

U = 'Training PublicTest PrivateTest'.split()
def table(head, row, n=168): return (head + '\n' + '\n'.join(row(i, ' '.join(map(str, rng.integers(0, 256, 2304)))) for i in range(n)) + '\n').encode()

@pytest.mark.parametrize('name, head, row, parts, classes', [
    ('train.csv', 'emotion,pixels', lambda i, px: f'{i%7},{px}', {''}, 7), ('a.csv', 'emotion,pixels,Usage', lambda i, px: f'{i%7}.0,{px},{U[i//7%3]}', {'train', 'test'}, 7),
    ('a.csv', 'emotion,pixels,Usage', lambda i, px: f"{i%7},{px},{['train', 'val', 'test'][i//7%3]}", {'train', 'valid', 'test'}, 7),
    ('a.csv', 'emotion,pixels,Usage', lambda i, px: f'{i%8},{px},{U[i//8%3]}', {'train', 'test'}, 8), ('a.csv.gz', 'emotion,pixels,Usage', lambda i, px: f'{i%7},{px},{U[i//7%3]}', {'train', 'test'}, 7)])
def test_fer_tables(tmp_path, name, head, row, parts, classes):
    b = table(head, row); (tmp_path/name).write_bytes(gzip.compress(b) if name.endswith('gz') else b)
    images = read(tmp_path/name, 'fer2013', vocab='all')
    assert set(images.part) == parts and images.c == classes and images.vocab.count('contempt') == (classes == 8)
    first = next(o for o in b.decode().split('\n')[1:] if o.startswith('0'))
    at = images.names.tolist().index(next(o for o in images.names if o.endswith('_0')))
    assert np.array_equal(images.x[at].numpy().ravel(), np.array(first.split(',')[1].split(), int)) and images.vocab[images.y[at]] == 'angry'

def test_several_tables(tmp_path):
    "Kaggle's folder holds them all beside a part of them; of parts alone none is taken for the whole"
    part, whole = (lambda i, px: f'{i%7},{px}'), (lambda i, px: f'{i%7},{px},{U[i//7%3]}')
    (tmp_path/'two').mkdir(); (tmp_path/'all').mkdir()
    for name in 'test.csv', 'train.csv': (tmp_path/'two'/name).write_bytes(table('emotion,pixels', part, 42))
    refused('holds 2 CSVs of pixels, and none has a column Usage', read, tmp_path/'two', 'fer2013')
    (tmp_path/'all'/'a.csv').write_bytes(table('emotion,pixels', part, 42))
    (tmp_path/'all'/'icml.csv').write_bytes(table('emotion, Usage, pixels', lambda i, px: f'{i%7},{U[i//7%3]},{px}'))
    assert len(read(tmp_path/'all', 'fer2013', vocab='all')) == 112             # PrivateTest is left out
    with tarfile.open(tmp_path/'dot.tar.gz', 'w:gz') as t:
        (tmp_path/'fer2013.csv').write_bytes(table('emotion,pixels,Usage', whole)); t.add(tmp_path/'fer2013.csv', './fer2013.csv')
    assert len(read(tmp_path/'dot.tar.gz', 'fer2013', vocab='all')) == 112

def test_a_zip_of_the_folder_itself(tmp_path):
    fill(tmp_path/'x')
    with zipfile.ZipFile(tmp_path/'x.zip', 'w') as z:
        z.writestr('./', '')
        for f in sorted((tmp_path/'x').rglob('*.png')): z.writestr(f'./{f.relative_to(tmp_path/"x")}', f.read_bytes())
    assert read(tmp_path/'x.zip').counts()['n'].to_dict() == {'a': 6, 'b': 6}

def test_a_class_that_is_called_like_masks(tmp_path):
    "Without files that go with the other class's it is a class"
    fill(tmp_path/'x', ('face', 'none'))
    (tmp_path/'x'/'face_mask').mkdir()
    for i in range(6): photo().save(tmp_path/'x'/'face_mask'/f'covered {i}.png')
    assert read(tmp_path/'x').counts()['n'].to_dict() == {'face': 6, 'face_mask': 6, 'none': 6}
    for i in range(6): os.rename(tmp_path/'x'/'face_mask'/f'covered {i}.png', tmp_path/'x'/'face_mask'/f'{i}_mask.png')
    assert read(tmp_path/'x').counts()['n'].to_dict() == {'face': 6, 'none': 6}

def test_the_home_folder(tmp_path, monkeypatch):
    fill(tmp_path/'x'); (tmp_path/'home').mkdir(); (tmp_path/'here').mkdir()
    monkeypatch.setenv('HOME', str(tmp_path/'home')); monkeypatch.chdir(tmp_path/'here')
    prepare('folder', tmp_path/'x', root='~/runs')
    assert (tmp_path/'home/runs/data/content.json').exists() and not list((tmp_path/'here').iterdir())

def test_a_set_of_torchvision_without_classes(tmp_path, monkeypatch):
    kind = lambda root, train, download: [(photo(), [dict(type='Car')] if train else None)]*4
    monkeypatch.setattr('synthrob.data.files.torchvision_sets', lambda: dict(Kitti=kind))
    refused('The images of Kitti have no classes', torchvision_images, 'Kitti', tmp_path, tmp_path/'x.npy')

def test_fer_folders_and_labels_only(tmp_path):
    for u in U: fill(tmp_path/'fer'/u, ('angry', 'fear', 'happy', 'sad', 'neutral'))
    images = read(tmp_path/'fer', 'fer2013')
    assert images.counts()['all'].tolist() == [12]*5 and images.about['left_out'] == 30 and set(images.part) == {'train', 'test'}
    (tmp_path/'fer2013new.csv').write_text('Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\nTraining,fer0.png,4,0,0,1,3,2,0,0,0,0\n')
    refused('labels of FER+ only, without pixels', read, tmp_path/'fer2013new.csv', 'fer2013')

@pytest.mark.parametrize('name, usage', [('fer2013.csv', True), ('train.csv', False)])
def test_fer_plus(tmp_path, name, usage):
    "The votes replace the labels where a class has most of them, and which labels is never a guess"
    plus = 'neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF'.split(',')
    of = dict(zip('angry disgust fear happy sad surprise neutral'.split(), 'anger disgust fear happiness sadness surprise neutral'.split()))
    b = table('emotion,pixels' + ',Usage'*usage, lambda i, px: f'{i%7},{px}' + f',{U[i//7%3]}'*usage, 84)
    rows = [list(of.values())[i%7] if i > 2 else 'contempt' if i else '' for i in range(84)]               # 0: undecided
    vote = lambda c: ','.join('9' if o == c else '1' for o in plus) if c else ','.join('2' for _ in plus)
    text = ['Usage,Image name,' + ','.join(plus), *(f'{U[i//7%3] if usage else U[0]},fer{i:07}.png,{vote(c)}' for i, c in enumerate(rows))]
    (tmp_path/name).write_bytes(b); (tmp_path/'fer2013new.csv').write_text('\n'.join(text + [f'{U[1]},x,{vote("fear")}']*(not usage)) + '\n')
    images = read(tmp_path/'fer2013new.csv', 'fer2013', vocab='all')
    own = read(tmp_path/name, 'fer2013', vocab='all')
    assert len(own) - len(images) == 1 and images.counts()['all' if usage else 'n']['contempt'] == 2 and 'contempt' not in own.vocab
    assert [(o['label'], o['n'], o['reason']) for o in images.about['found']['ignored']] == [('angry', 1, 'without a majority in FER+')]
    refused('beside those of FER-2013: give the file whose labels you want', read, tmp_path, 'fer2013')
    (tmp_path/'fer2013new.csv').write_text('\n'.join(text[:40])); refused('has other rows than the pixels', read, tmp_path/'fer2013new.csv', 'fer2013')
    (tmp_path/'fer2013new.csv').write_text('\n'.join([text[0], *(o.replace(',9', ',x') for o in text[1:])])); refused('is damaged', read, tmp_path/'fer2013new.csv', 'fer2013')

def test_copied_folder_is_the_same_data(tmp_path):
    p = fill(tmp_path/'a set'); subprocess.run(['cp', '-r', p, tmp_path/'b'], check=True)
    assert content_key(p) == content_key(tmp_path/'b') and read(p).about['hash'] == read(tmp_path/'b').about['hash']
    photo().save(tmp_path/'b/a/0.png'); assert content_key(p) != content_key(tmp_path/'b')

@pytest.mark.parametrize('side, own, size', [(28, 32, 32), (64, 64, 64), (50, 48, 48), (100, None, 32)])
def test_size_follows_the_images(tmp_path, side, own, size, capsys):
    p = fill(tmp_path/'d', make=lambda: photo(side))
    assert own_size('folder', p) == own and check_params(dict(data='folder', path=str(p))).size == size
    images = read(p); assert images.x.shape[-1] == (own or 48) and (side == own or f'have {side} pixels' in capsys.readouterr().out)
    assert check_params(dict(data='folder', path=str(p), preset='study')).size == 32 == check_params({}).size

def shard(path, kinds, side=64, n=12):
    "A parquet file; `kinds`: class -> make(side), sorted by class as many are"
    def b(im): o = io.BytesIO(); im.save(o, 'PNG'); return o.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(b(make(side)), c) for c, make in kinds.items() for _ in range(n)]
    pq.write_table(pa.table(dict(image=[o for o, _ in rows], label=[c for _, c in rows])), path, row_group_size=6)
    return path

def deep(top): return lambda side: Image.fromarray((np.linspace(0, 1, side*side).reshape(side, side)*top).astype(np.uint16))

def test_parquet_as_folders(tmp_path, capsys):
    "Own size, one depth for all classes, and grey stored as RGB, as in folders"
    grey = shard(tmp_path/'grey.parquet', dict(a=photo, b=lambda side: photo(side).convert('RGB')))
    p = check_params(dict(data='parquet', path=str(grey)))
    images = read(grey, 'parquet'); assert images.x.shape[1:] == (1, 64, 64) and (p.size, p.folds) == (64, 5)
    odd = shard(tmp_path/'odd.parquet', dict(a=photo, b=lambda side: photo(side, 'RGB')), 50)
    assert read(odd, 'parquet').x.shape[1:] == (3, 48, 48) and 'have 50 pixels' in capsys.readouterr().out
    both = shard(tmp_path/'deep.parquet', dict(a=deep(255), dark=deep(1000), light=deep(4095)), n=600)       # more than the sample
    images = read(both, 'parquet'); assert [int(images.x[images.y == k].max()) for k in range(3)] == [15, 62, 255]
    assert 'read as 12 bits' in (note := images.about['found']['notes'][0]) and 'a 8, dark 10, light 12' in note
    refused("there is no class 'c': choose from a (12), b (12)", check_params, dict(data='parquet', path=str(grey), vocab='a,c'))
    refused("groups='column:id' is no column of", check_params, dict(data='parquet', path=str(grey), groups='column:id'))

# --- the command

def test_folds_are_hashed_as_done(tmp_path):
    "The number of folds that the data decide on is the one that is given, before an image is decoded"
    p = fill(tmp_path/'d', n=8); fill(tmp_path/'t/train', n=8); fill(tmp_path/'t/test', n=8)
    parts = lambda path, **kw: SplitRun(check_params(dict(data='folder', path=str(path), out=str(tmp_path/'runs')) | kw)).stages['parts'].hash
    assert parts(p) == parts(p, folds=5) != parts(p, folds=1) == parts(p, folds=0) and parts(tmp_path/'t') == parts(tmp_path/'t', folds=1)
    refused('folds=5 does not go with the official test part', parts, tmp_path/'t', folds=5); refused('with 5 folds choose 0 to 4', parts, p, fold=5)
    (p/'c').mkdir(); [photo().save(p/'c'/f'{i}.png') for i in range(3)]                                     # seen though `d` itself was listed
    assert check_params(dict(data='folder', path=str(p))).folds == 3 and check_params(dict(data='folder', path=str(p), vocab='a,b')).folds == 5
    assert not (tmp_path/'runs/data').exists() or not [*(tmp_path/'runs/data').glob('*/images*')]

@pytest.mark.parametrize('given, say', [('--path {p}x', 'no file or folder'), ('--vocab a,x', "no class 'x': choose from a (6), b (6)"), ('--groups (x', 'no regular expression'),
    ('--groups (x)', 'finds no subject for 12 of 12'), ('--groups folder', 'no folder of a subject'), ('--metric recall:x', 'names no class of the data'), ('--cnn postr', "did you mean 'poster'"),
    ('--pool {p}x', 'no file or folder'), ('--margin 7', 'margin=7.0 is out of range'), ('--ratios 0,2', 'ratio=2 is out of range'), ('--seeds x', 'cnn_seed='), ('--treatment overs', 'treatment=')])
@pytest.mark.parametrize('ratios', [['--ratios', '0,.5'], []], ids=['grid', 'default'])
def test_mistakes_come_first(tmp_path, given, say, ratios, capsys):
    "Before an image is decoded"
    from synthrob.sweep.command import main as sweep
    p, out = fill(tmp_path/'d'), tmp_path/'runs'
    more = given.format(p=p).split()
    rc = sweep(['--data', 'folder', '--path', str(p), *([] if '--ratios' in more else ratios), '--out', str(out), *more, '--dry_run'])
    err = capsys.readouterr().err
    assert rc == 2 and say in err and err.count('\n') == 1 and not [*out.glob('data/*/images*')], err

def test_pool_in_a_sweep(tmp_path, capsys):
    from synthrob.sweep.grid import Sweep
    s = Sweep(dict(data='folder', path=str(fill(tmp_path/'d')), pool=str(fill(tmp_path/'pool')), ratio=.5, folds=1), out=tmp_path/'runs')
    assert len(s) == 1 and 'gan' not in s.cells[0].run.stages
    fill(tmp_path/'pool', 'c'); run = SplitRun(check_params(dict(data='folder', path=str(tmp_path/'d'), pool=str(tmp_path/'pool'), ratio=.5, folds=1, out=str(tmp_path/'runs'))))
    run.make('pool'); assert "6 images of the pool are left out: of class 'c'" in capsys.readouterr().out and run.pool.vocab == ['a', 'b']

def test_a_pool_is_read_before_the_first_cell(tmp_path):
    "With other classes, or real images among its own, no baseline is trained first"
    from synthrob.sweep.command import sweep
    plan = lambda pool: sweep(data='folder', path=str(fill(tmp_path/'d')), pool=str(pool), ratio='0,.5', folds='1', cnn_seed='1',
                              copies='exact', out=tmp_path/'runs', dry_run=True)
    with pytest.raises(BadInput, match="the pool has no class 'a'"): plan(fill(tmp_path/'other', 'cd'))
    with pytest.raises(BadInput, match='of the pool are copies of real ones'): plan(tmp_path/'d')

@pytest.mark.parametrize('command, args, gone', [('sweep.command', '--ratios 0 --data {p} --dry_run', 'there is no data'), ('sweep.report', '{p}', 'holds no'),
                                                 ('data.core', '{p}', 'there is no data')])
def test_poor_terminal(tmp_path, command, args, gone):
    "A message with characters that the terminal's encoding lacks is one sentence with their numbers"
    r = subprocess.run([sys.executable, '-c', f'import sys; from synthrob.{command} import main; sys.exit(main())', *(o.format(p='データ→') for o in args.split())],
                       capture_output=True, env=os.environ | dict(PYTHONIOENCODING='cp1252', PYTHONUTF8='0'), cwd=tmp_path)
    err = r.stderr.decode('cp1252'); assert r.returncode == 2 and 'Traceback' not in err and r'\u30c7' in err, err[-1000:]

def printed(out): return shlex.split(out[out.index('Next: ') + 6:].splitlines()[0])

def test_next_command_and_a_poor_terminal(tmp_path):
    "The printed command, read as papermill reads it, asks for the split that was described"
    from papermill.cli import _resolve_type
    p = tmp_path/"it's mine \"→\" $HOME"
    for c in ('ä→', 'b'): (p/c).mkdir(parents=True); [photo(64).save(p/c/f'p{i//2:02}_{i}.png') for i in range(24)]
    env = os.environ | dict(PYTHONIOENCODING='cp1252', PYTHONUTF8='0')
    run = lambda *more: subprocess.run([sys.executable, '-c', 'import sys; from synthrob.data.core import main; sys.exit(main())', 'folder', str(p), '--channels', '3', '--seed', '7',
                                        '--groups', r'(p\d+)_', '--vocab', 'b,ä→', '--folds', '4', '--seeds', '3', '--metric', 'recall:b', '--out', str(tmp_path/'my runs'), *more],
                                       capture_output=True, env=env | dict(PYTHONIOENCODING=more[-1]) if more else env, cwd=tmp_path)
    r = run(); out = r.stdout.decode('cp1252'); assert r.returncode == 0, r.stderr.decode('cp1252')[-2000:]
    assert '3 seeds can show a difference of' in out and 'of recall:b' in out and 'Subjects: 12, each in one part' in out and 'in 4 folds' in out
    with contextlib.redirect_stdout(io.StringIO()) as f: assert main(['folder', str(p), '--groups', r'(p\d+)_', '--channels', '3', '--seed', '7', '--vocab', 'b,ä→', '--folds', '4', '--metric', 'recall:b', '--out', str(tmp_path/'my runs')]) == 0
    given = printed(f.getvalue()); assert given[:3] == ['papermill', 'nbs/03_split.ipynb', 'runs/split_0.3.ipynb']
    pairs = [(given[i], *given[i+1:i+3]) for i in range(3, len(given), 3)]
    got = {k: v if how == '-r' else _resolve_type(v) for how, k, v in pairs}
    assert (got.pop('ratio'), got.pop('how')) == (.3, 'add') and got == dict(data='folder', path=str(p), vocab='b,ä→', channels=3, size=64, groups=r'(p\d+)_', folds=4, metric='recall:b',
                                                  split_seed=7, out=str(tmp_path/'my runs')), got
    q = SplitRun(check_params(got)); assert q.stages['data'].done and q.p.size == 64

def test_one_line_for_a_resize(tmp_path, capsys):
    p = fill(tmp_path/'d', n=12, make=lambda: photo(100))
    assert main(['folder', str(p), '--out', str(tmp_path/'runs')]) == 0
    out = capsys.readouterr().out; assert out.count('have 100 pixels') == 1 and 'resized to 32 x 32' in out
    [photo().save(p/c/f'p{i//2}_{i}.png') for c in 'ab' for i in range(12)]
    assert main(['folder', str(p), '--out', str(tmp_path/'runs')]) == 0 and 'look like several images of one subject' in capsys.readouterr().out

@pytest.mark.e2e
def test_after_a_finished_sweep(tmp_path, capsys):
    "A dry run knows what it took, a copied folder is the same data, and the report names what was left out"
    from synthrob.sweep.command import main as sweep
    from synthrob.sweep.grid import Sweep
    from synthrob.sweep.report import main as report
    p, out = fill(tmp_path/'d', n=12), tmp_path/'the runs'; (p/'a/x.heic').write_bytes(b'x')
    grid = dict(data='folder', ratio=[0, .5], folds=1, gan_images=64, cnn_epochs=1, robustness='none')
    for c in Sweep(grid | dict(path=str(p)), out=out).cells: c.stage.make()
    shutil.copytree(p, tmp_path/'copy')
    s = Sweep(grid | dict(path=str(tmp_path/'copy')), out=out); assert s.states == dict(done=2) and f"synthrob_report {shlex.quote(str(out))} " in s.summary()
    flags = ['--data', 'folder', '--path', str(tmp_path/'copy'), '--folds', '1', '--gan_images', '64', '--cnn_epochs', '1', '--robustness', 'none', '--out', str(out), '--dry_run']
    capsys.readouterr(); assert sweep(['--ratios', '0,.5', '--seeds', '1', *flags]) == 0 and '2 done' in (told := capsys.readouterr().out) and 'nothing like' not in told and 'A verdict takes six runs. On images of this kind, 6 seeds can show a difference of' in told
    assert sweep(['--ratios', '0,.25,.5', '--seeds', '3', '--gan_seeds', '2', *flags]) == 0 and 'Cost: about' in (told := capsys.readouterr().out) and 'nothing like' not in told, told
    assert report([str(out)]) == 0 and '1 of a: .heic is not read' in (out/'report/report.html').read_text()

def test_file_size_limit(tmp_path):
    "ulimit -f: one sentence, and it goes on afterwards"
    p = fill(tmp_path/'d', n=60)
    code = f"import resource, sys; from synthrob.data.core import main; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); sys.exit(main(['folder', {str(p)!r}, '--out', {str(tmp_path/'runs')!r}]))"
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode == 2 and 'ulimit -f' in r.stderr and 'Traceback' not in r.stderr, r.stderr[-2000:]
    assert len(read(p)) == 120

# --- hostile input: time and memory are bounded

def png(side, mode=6):
    "A PNG of `side` x `side` pixels of zeros, compressed well"
    def chunk(kind, b): return struct.pack('>I', len(b)) + kind + b + struct.pack('>I', zlib.crc32(kind + b))
    z = zlib.compressobj(9); row = bytes(1 + side*4)
    data = b''.join(z.compress(row) for _ in range(side)) + z.flush()
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, mode, 0, 0, 0)) + chunk(b'IDAT', data) + chunk(b'IEND', b'')

def giants(p):
    b = png(9400); fill(p)
    for i in range(16): (p/'a'/f'x{i}.png').write_bytes(b)
def large(p):
    b = png(6000); fill(p)
    for i in range(4): (p/'a'/f'x{i}.png').write_bytes(b)
def zeros(p):
    with zipfile.ZipFile(p, 'w', zipfile.ZIP_DEFLATED) as z:
        for i in range(8): z.writestr(f'{"ab"[i%2]}/{i}.png', bytes(250_000_000), compresslevel=1)
def long_line(p):
    with gzip.open(p, 'wb', 1) as g:
        g.write(b'emotion,pixels,Usage\n3,')
        for _ in range(60): g.write(b'1 '*5_000_000)
def bad_rows(p):
    with gzip.open(p, 'wb', 1) as g: g.write(b'emotion,pixels,Usage\n'); [g.write(b'9,1 2 3,Training\n'*100_000) for _ in range(30)]
def long_name(p):
    h = tarfile.TarInfo('././@LongLink'); h.type, h.size = tarfile.GNUTYPE_LONGNAME, 1_000_000_000
    with gzip.open(p, 'wb', 1) as g: g.write(h.tobuf()); [g.write(b'a'*10_000_000) for _ in range(100)]
def dictionary(p):
    b = png(300) + os.urandom(30_000_000)
    images = pa.DictionaryArray.from_arrays(pa.array([0]*128, pa.int32()), pa.array([b]))
    pq.write_table(pa.table(dict(image=images, label=['a', 'b']*64)), p, store_schema=False)

@pytest.mark.e2e
@pytest.mark.parametrize('make, name, data, say', [
    (giants, 'd', 'folder', 'is too large (9400x9400, more than 67 million pixels'), (large, 'd', 'folder', None), (zeros, 'a.zip', 'folder', 'MiB, more than 64'),
    (long_line, 'a.csv.gz', 'fer2013', 'a line has more than 65,536 bytes'), (bad_rows, 'a.csv.gz', 'fer2013', 'of the first 1,001 rows'),
    (long_name, 'a.tar.gz', 'fer2013', 'a name or header of 1,000,000,000 bytes'), (dictionary, 'a.parquet', 'parquet', None)], ids=lambda o: getattr(o, '__name__', ''))
def test_bounds(tmp_path, make, name, data, say):
    "In a process of its own: at most 1.5 GB more than the libraries, and 30 s of the processor"
    make(tmp_path/name)
    code = f"""import sys, resource, time; from synthrob.data.core import prepare; from synthrob.core.basics import BadInput
top = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
a, t = top(), time.process_time()
try: said = len(prepare({data!r}, {str(tmp_path/name)!r}, size=32, root={str(tmp_path/'runs')!r}))
except BadInput as e: said = e
print('', (top() - a)>>10, round(time.process_time() - t, 1), said, sep='\\n')"""
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert r.returncode == 0, r.stderr[-2000:]
    mib, seconds, said = r.stdout.strip().splitlines()[-3:]
    print(make.__name__, mib, 'MiB', seconds, 's', said[:150])
    assert int(mib) < 1500 and float(seconds) < 30 and (say is None or say in said) and (say is not None or said.isdigit()), r.stdout[-2000:]

def test_lmdb_that_kills(tmp_path):
    "Each of 40 changed bytes gives images or one sentence, also where LMDB dies by a signal"
    folder = tmp_path/'lsun'/'a_train_lmdb'; folder.mkdir(parents=True)
    def b(): o = io.BytesIO(); photo(32, 'RGB').save(o, 'WEBP'); return o.getvalue()
    with lmdb.open(str(folder), map_size=1<<24) as env, env.begin(write=True) as txn: [txn.put(f'{i:040}'.encode(), b()) for i in range(40)]
    whole, ok = (folder/'data.mdb').read_bytes(), 0
    for i in range(40):
        bad = bytearray(whole); at = int(rng.integers(0, 16384 if i % 2 else len(bad))); bad[at] ^= 1 << int(rng.integers(8)); (folder/'data.mdb').write_bytes(bad)
        try: ok += len(prepare('lsun', tmp_path/'lsun', root=tmp_path/'runs')) > 0
        except BadInput as e: assert '\n' not in str(e)
    assert ok > 5

def test_deep_tiffs_with_their_directory_at_the_end(tmp_path):
    "12 bits in 16 are as bright from a folder as from an archive, though the head of the file cannot be opened"
    for c in 'ab':
        (tmp_path/'deep'/c).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 4096, (256, 256)).astype(np.uint16)).save(tmp_path/'deep'/c/f'{i}.tif', compression='tiff_lzw')
    shutil.make_archive(str(tmp_path/'packed'), 'zip', tmp_path/'deep')
    a, b = read(tmp_path/'deep', size=32), read(tmp_path/'packed.zip', size=32)
    assert abs(a.x.float().mean() - b.x.float().mean()) < .5 and 100 < a.x.float().mean() < 150

def test_content_covers_labels(tmp_path):
    "Runs are paired by it: corrected labels make another data set, another folder does not"
    fill(tmp_path/'one', n=4)
    shutil.copytree(tmp_path/'one', tmp_path/'two')
    shutil.copytree(tmp_path/'one', tmp_path/'three')
    a, b = (tmp_path/'three'/c/'0.png' for c in 'ab')
    x, y = a.read_bytes(), b.read_bytes()
    a.write_bytes(y), b.write_bytes(x)                                           # the same pixels in both classes
    one, two, three = (data_stage('folder', tmp_path/k, size=32, root=tmp_path/'runs')[0].make().record['content'] for k in ('one', 'two', 'three'))
    assert one == two != three

def test_pairs_do_not_change_the_split(tmp_path, capsys):
    "With --copies exact near copies are listed, and the split is that of the experiment, as it is without the list"
    fill(tmp_path/'im', n=8)
    im = Image.open(tmp_path/'im'/'a'/'0.png')
    im.crop((3, 3, 45, 45)).resize((48, 48)).save(tmp_path/'im'/'b'/'9.png')
    args = ['folder', str(tmp_path/'im'), '--copies', 'exact', '--out', str(tmp_path/'runs')]
    said = []
    for more in ([], ['--pairs', str(tmp_path/'f.csv')]):
        main(args + more)
        said.append([o for o in capsys.readouterr().out.splitlines() if 'near copies' in o or 'removed' in o])
    assert said[0] == said[1] and (tmp_path/'f.csv').exists(), said

def test_robust_accuracy_is_an_accuracy(tmp_path):
    "Its standard error is that of accuracy, however uneven the classes are"
    fill(tmp_path/'im', 'a', n=40); fill(tmp_path/'im', 'b', n=6)
    im = read(tmp_path/'im', size=32)
    limit = [image_limits(im, splits(im), o)[0] for o in ('accuracy', 'robust_accuracy', 'balanced_accuracy')]
    assert limit[0] == limit[1] < limit[2]

def test_noise_of_images_on_disk(tmp_path):
    im = read(fill(tmp_path/'im', n=10), size=32)
    disk = Dataset(DiskImages.open(next(tmp_path.glob('runs/data/*/images.npy'))), im.y, im.vocab)
    a, b = (mix(o, None, .5, 'add', treatment='noise') for o in (im, disk))
    assert not isinstance(disk.x, torch.Tensor) and len(b) == 2*len(im) and torch.equal(a.x, b.x.clone())

def test_what_other_libraries_call_images_and_labels():
    "Keras gives channels last and labels (n,1): both were taken, and a net trained on nonsense"
    x, y = torch.randint(0, 256, (20, 32, 32, 3), dtype=torch.uint8), torch.arange(20) % 2
    with pytest.raises(BadInput, match=r'one class number per item'): Dataset(x.permute(0, 3, 1, 2), y[:, None])
    for f in (lambda: Dataset(x, y), lambda: near_duplicates(x)):
        with pytest.raises(BadInput, match='channels last'): f()
    p = torch.rand(20, 2, requires_grad=True).softmax(1)
    assert Evaluation(p, y.to(torch.int8), ['a', 'b']).top_losses()[0].isfinite().all()

@pytest.mark.parametrize('share', [.1, .2, .3, .4, .6, .7])
def test_a_large_test_part_of_subjects(share):
    "Shares from .4 up became a half"
    y = torch.arange(500) % 2
    d = Dataset(torch.randint(0, 256, (500, 1, 16, 16), dtype=torch.uint8), y, ['a', 'b'])
    s = splits(d, test=share, valid=.1, subject=np.arange(500)//10)
    assert abs(len(s.test)/500 - share) < .05

def test_parts_in_any_folder_of_shards(tmp_path):
    "Hive's split=train and deeper folders lost the official split"
    for at in ('split=train/a', 'split=test/b', 'train/x/c', 'test/x/d'):
        (f := tmp_path/f'{at}.parquet').parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(dict(image=[picture(i) for i in range(4)], label=[0, 1, 0, 1])), f)
    d = prepare('parquet', tmp_path, root=tmp_path/'runs')
    assert sorted(set(d.part)) == ['test', 'train'] and (d.part == 'test').sum() == 8

def test_folders_that_may_be_the_classes(tmp_path):
    "Classes above the parts, or below the subjects of whom some lack one, are named"
    def notes(*files):
        shutil.rmtree(top := tmp_path/'top', ignore_errors=True)
        for i, f in enumerate(files): (top/f).parent.mkdir(parents=True, exist_ok=True); (top/f).write_bytes(picture(i))
        return ' '.join(list_images(top).notes)
    said = notes(*(f'{c}/{p}/{o}/{i}.png' for i, (c, p, o) in enumerate([(c, p, o) for c in ('real', 'fake') for p in ('train', 'test') for o in ('in', 'out')])))
    assert 'fake, real, whose names are not read' in said
    assert 'the classes hold the folders benign, malignant' in notes('p1/benign/1.png', 'p1/malignant/2.png', 'p2/benign/3.png', 'p3/malignant/4.png')
    assert not notes('cat/p1/1.png', 'cat/p2/2.png', 'dog/p1/3.png', 'dog/p3/4.png', 'dog/p4/4.png')

def picture(i):
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32), dtype=np.uint8)).save(b := io.BytesIO(), 'PNG')
    return b.getvalue()
