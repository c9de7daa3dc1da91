"Bad input, file by file: each case gives one sentence that names the thing and the remedy, and damages nothing"
import io, multiprocessing as mp, os, signal, stat, struct, tarfile, time, zipfile, zlib
import numpy as np, pytest
from PIL import Image
from conftest import refused
from synthrob.core.basics import read_array
from synthrob.data.core import prepare
from synthrob.data.files import decode_files, list_images, read_fer_csv

rng = np.random.default_rng(0)

def picture(size=(48, 48), mode='L', fmt='PNG'):
    shape = (size[1], size[0]) if mode == 'L' else (size[1], size[0], 3)
    b = io.BytesIO(); Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(b, fmt)
    return b.getvalue()

def tree(n=200):
    "`n` images of two classes in the layout of FER-2013, a half of them for training"
    return {f'fer2013/{part}/{c}/{usage}_{i}.png': picture()
            for part,usage in (('train','Training'), ('test','PublicTest')) for c in ('sad','happy') for i in range(n//4)}

def write_zip(path, files, links=()):
    with zipfile.ZipFile(path, 'w') as z:
        for k,b in files.items(): z.writestr(k, b)
        for k,to in links:
            i = zipfile.ZipInfo(k); i.external_attr = (stat.S_IFLNK | 0o777) << 16
            z.writestr(i, to)
    return path

def fer(path, tmp_path, **kw): return prepare('fer2013', path, vocab=['sad','happy'], root=tmp_path/'runs', **kw)

def nothing_finished(tmp_path):
    return not [*tmp_path.glob('runs/*/*/record.json'), *tmp_path.glob('runs/*/*/*.npy')]

# --- archives and folders

def test_good_zip_is_taken(tmp_path):
    "What the cases below spoil is good before"
    imgs = fer(write_zip(tmp_path/'a.zip', tree()), tmp_path)
    assert imgs.counts()['all'].tolist() == [100, 100] and imgs.about['broken'] == []

@pytest.mark.parametrize('keep', [.2, .5, .9, .999])
def test_truncated_zip(tmp_path, keep):
    b = write_zip(tmp_path/'a.zip', tree()).read_bytes()
    (tmp_path/'a.zip').write_bytes(b[:int(keep*len(b))])
    refused('a.zip is a truncated or damaged zip', fer, tmp_path/'a.zip', tmp_path)
    assert nothing_finished(tmp_path)

def test_locked_zip(tmp_path):
    b = bytearray(write_zip(tmp_path/'a.zip', tree(8)).read_bytes())
    at = -1
    while (at := b.find(b'PK\1\2', at+1)) >= 0: b[at+8] |= 1  # bit 0 of the flags: encrypted
    (tmp_path/'a.zip').write_bytes(b)
    refused('locked with a password', fer, tmp_path/'a.zip', tmp_path)

@pytest.mark.parametrize('name', ['../x.png', 'train/../../x.png', '/etc/x.png', 'C:/x.png', 'train\\..\\x.png'])
def test_climbing_zip(tmp_path, name):
    refused('points out of the archive', fer, write_zip(tmp_path/'a.zip', tree(8) | {name: picture()}), tmp_path)

def test_climbing_tar(tmp_path):
    with tarfile.open(tmp_path/'a.tar.gz', 'w:gz') as t:
        i = tarfile.TarInfo('../fer2013.csv'); i.size = 5; t.addfile(i, io.BytesIO(b'hello'))
    refused('points out of the archive', fer, tmp_path/'a.tar.gz', tmp_path)

def test_links(tmp_path):
    link = 'fer2013/train/sad/Training_9.png', '/etc/passwd'
    refused('holds the link', fer, write_zip(tmp_path/'a.zip', tree(8), [link]), tmp_path)
    with zipfile.ZipFile(write_zip(tmp_path/'b.zip', tree(8))) as z: z.extractall(tmp_path/'b')
    os.symlink('/etc/passwd', tmp_path/'b/fer2013/train/sad/Training_9.png')
    refused('is a link to /etc/passwd', fer, tmp_path/'b', tmp_path)

def test_missing_wrong_and_empty(tmp_path):
    refused('there is no file or folder', fer, tmp_path/'a.zip', tmp_path)
    refused('needs a path', prepare, 'fer2013', root=tmp_path/'runs')
    (tmp_path/'a.zip').write_bytes(b'no zip at all')
    refused('neither a folder nor a zip or tar', fer, tmp_path/'a.zip', tmp_path)
    (tmp_path/'empty').mkdir()
    refused('holds no images', prepare, 'folder', tmp_path/'empty', root=tmp_path/'runs')
    write_zip(tmp_path/'b.zip', {'train/cat/1.png': picture()})
    refused("has the class 'cat', which is not in FER-2013", fer, tmp_path/'b.zip', tmp_path)
    refused("there is no class 'fear': choose from happy (100), sad (100)", prepare, 'fer2013',
            write_zip(tmp_path/'c.zip', tree()), root=tmp_path/'runs')

# --- broken images

damage = dict(empty=b'', text=b'hello', cut=picture()[:500], size=picture((64, 64)), mode=picture(mode='RGB'))

@pytest.mark.parametrize('kind,reason', [('empty', 'is empty (0 bytes)'), ('text', 'is not an image'),
                                         ('cut', 'is damaged'), ('size', 'is 64x64 L instead of 48x48 L'),
                                         ('mode', 'is 48x48 RGB instead of 48x48 L')])
def test_one_broken_image_is_skipped_and_named(tmp_path, capsys, kind, reason):
    files = tree(); name = 'fer2013/train/sad/Training_7.png'
    imgs = fer(write_zip(tmp_path/'a.zip', files | {name: damage[kind]}), tmp_path)
    assert len(imgs) == 199 and name not in imgs.names
    assert [o['name'] for o in imgs.about['broken']] == [name] and reason in imgs.about['broken'][0]['reason']
    assert '1 of 200 images skipped' in capsys.readouterr().out
    for i in (0, 50, 198):  # rows and names still belong together
        assert (imgs.x[i,0].numpy() == np.asarray(Image.open(io.BytesIO(files[imgs.names[i]])))).all()

def test_a_few_are_taken_and_more_are_not(tmp_path):
    names = [f'fer2013/train/sad/Training_{i}.png' for i in range(6)]
    assert len(fer(write_zip(tmp_path/'a.zip', tree() | dict.fromkeys(names[:5], b'')), tmp_path)) == 195
    write_zip(tmp_path/'b.zip', tree() | dict.fromkeys(names, b''))
    said = refused('more than 1 % of all 200', fer, tmp_path/'b.zip', tmp_path)
    assert names[0] in said and 'is empty' in said

def test_other_size_throughout_points_to_folder(tmp_path):
    files = {k: picture((64, 64)) for k in tree(40)}
    refused("data='folder' converts it", fer, write_zip(tmp_path/'a.zip', files), tmp_path)
    assert prepare('folder', tmp_path/'a.zip', root=tmp_path/'runs').x.shape == (40, 1, 64, 64)

def test_bombs(tmp_path):
    "A small file that claims 40,000 x 40,000 pixels costs no memory"
    def chunk(kind, b): return struct.pack('>I', len(b)) + kind + b + struct.pack('>I', zlib.crc32(kind + b))
    head = struct.pack('>IIBBBBB', 40_000, 40_000, 8, 0, 0, 0, 0)
    bomb = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IEND', b'')
    files = tree() | {'fer2013/train/sad/Training_7.png': bomb}
    imgs = prepare('folder', write_zip(tmp_path/'a.zip', files), root=tmp_path/'runs')
    assert len(imgs) == 199 and 'pixels' in imgs.about['broken'][0]['reason']

def test_damaged_member_of_a_whole_zip(tmp_path):
    files = tree(); write_zip(tmp_path/'a.zip', files)
    b = bytearray((tmp_path/'a.zip').read_bytes()); at = b.find(b'Training_7.png') + 400
    b[at:at+50] = bytes(50)
    (tmp_path/'a.zip').write_bytes(b)
    imgs = fer(tmp_path/'a.zip', tmp_path)
    assert len(imgs) == 199 and 'is damaged' in imgs.about['broken'][0]['reason']

# --- the CSV

def rows(n=300, **bad):
    "Lines of the CSV; `bad` gives another line for row `i<number>`"
    px = lambda: ' '.join(map(str, rng.integers(0, 256, 2304)))
    lines = [f"{(3, 4)[i%2]},{px()},{'Training' if i < .8*n else 'PublicTest'}" for i in range(n)]
    for k,f in bad.items(): lines[int(k[1:])] = f(lines[int(k[1:])])
    return '\n'.join(['emotion,pixels,Usage', *lines, '']).encode()

short = lambda line: ' '.join(line.split(',')[1].split()[:-1]).join([line.split(',')[0]+',', ','+line.split(',')[2]])

@pytest.mark.parametrize('spoil,reason', [
    (short, 'has 2,303 pixels instead of 2,304'),
    (lambda l: l.replace(',Training', ' 7,Training'), 'has 2,305 pixels'),
    (lambda l: '3,256 ' + l.split(' ', 1)[1], 'not whole numbers from 0 to 255'),
    (lambda l: '3,-1 ' + l.split(' ', 1)[1], 'not whole numbers from 0 to 255'),
    (lambda l: '3,1.5 ' + l.split(' ', 1)[1], 'not whole numbers'),
    (lambda l: '9' + l[1:], "has the emotion '9'"),
    (lambda l: l.replace('Training', 'Trial'), "has the Usage 'Trial'"),
    (lambda l: l.split(',')[0], 'has too few columns')])
def test_broken_row(tmp_path, spoil, reason):
    (tmp_path/'a.csv').write_bytes(rows(i5=spoil))
    imgs = fer(tmp_path/'a.csv', tmp_path)
    assert len(imgs) == 299 and [o['name'] for o in imgs.about['broken']] == ['row 6']
    assert reason in imgs.about['broken'][0]['reason']
    assert 'Training_5' not in imgs.names and 'Training_6' in imgs.names
    (tmp_path/'b.csv').write_bytes(rows(**{f'i{i}': spoil for i in range(6)}))
    refused('more than 1 % of all 300', fer, tmp_path/'b.csv', tmp_path)

@pytest.mark.parametrize('keep', [.02, .5, .95])
def test_truncated_tar(tmp_path, keep):
    with tarfile.open(tmp_path/'a.tar.gz', 'w:gz') as t:
        b = rows(); i = tarfile.TarInfo('fer2013/fer2013.csv'); i.size = len(b); t.addfile(i, io.BytesIO(b))
    b = (tmp_path/'a.tar.gz').read_bytes()
    assert len(fer(tmp_path/'a.tar.gz', tmp_path)) == 300
    (tmp_path/'b.tar.gz').write_bytes(b[:int(keep*len(b))])
    refused('b.tar.gz is truncated or damaged', fer, tmp_path/'b.tar.gz', tmp_path)

def test_csv_without_columns(tmp_path):
    (tmp_path/'a.csv').write_text('emotion,Usage\n3,Training\n')
    refused('no CSV with the columns emotion, pixels and Usage', fer, tmp_path/'a.csv', tmp_path)

# --- nothing already written is damaged

def test_failure_leaves_the_old_array(tmp_path):
    decode_files(list_images(write_zip(tmp_path/'a.zip', tree())), tmp_path/'x.npy')
    before = (tmp_path/'x.npy').read_bytes()
    refused('too damaged', decode_files, list_images(write_zip(tmp_path/'b.zip', {k: b'' for k in tree()})), tmp_path/'x.npy')
    (tmp_path/'c.csv').write_text('emotion,pixels,Usage\n' + 6*'3,1,Training\n')
    refused('too damaged', read_fer_csv, tmp_path/'c.csv', tmp_path/'x.npy')
    assert (tmp_path/'x.npy').read_bytes() == before
    assert sorted(o.name for o in tmp_path.iterdir()) == ['a.zip', 'b.zip', 'c.csv', 'x.npy']

def _slow_prepare(path, root, started, q=None):
    import synthrob.data.files as files
    fast = files._decode_image
    def slow(*args):
        started.set(); time.sleep(.01)
        return fast(*args)
    files._decode_image = slow
    imgs = prepare('fer2013', path, vocab=['sad','happy'], root=root)
    if q: q.put((os.getpid(), imgs.hash))

@pytest.mark.e2e
def test_killed_while_decoding_leaves_no_damaged_cache(tmp_path):
    path, ctx = write_zip(tmp_path/'a.zip', tree(400)), mp.get_context('spawn')
    started = ctx.Event()
    p = ctx.Process(target=_slow_prepare, args=(path, tmp_path/'runs', started)); p.start()
    assert started.wait(60)
    time.sleep(.3); os.kill(p.pid, signal.SIGKILL); p.join()
    assert p.exitcode == -signal.SIGKILL and nothing_finished(tmp_path)
    assert list(tmp_path.glob('runs/data/*/params.json')) and list(tmp_path.glob('runs/data/*/images.rows'))
    assert len(fer(path, tmp_path)) == 400
    assert not list(tmp_path.glob('runs/data/*/images.rows'))

@pytest.mark.e2e
def test_two_processes_prepare_once(tmp_path):
    path, ctx = write_zip(tmp_path/'a.zip', tree(400)), mp.get_context('spawn')
    started, q = [ctx.Event() for _ in range(2)], ctx.Queue()
    ps = [ctx.Process(target=_slow_prepare, args=(path, tmp_path/'runs', s, q)) for s in started]
    for p in ps: p.start()
    got = [q.get(timeout=120) for _ in ps]
    for p in ps: p.join()
    assert [p.exitcode for p in ps] == [0, 0] and len({h for _,h in got}) == 1
    assert sum(s.is_set() for s in started) == 1  # only one of them decoded
    assert len(list(tmp_path.glob('runs/data/*/record.json'))) == 1
    assert read_array(next(tmp_path.glob('runs/data/*/images.npy'))).shape == (400, 1, 48, 48)
