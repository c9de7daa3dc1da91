"Near copies: found, kept in one part, and taken out of pools"
import pandas as pd, pytest, torch
from PIL import Image
from near_worth import main as near_worth
from synthrob.core.basics import BadInput, read_json
from synthrob.data.core import main
from synthrob.data.duplicates import _Descriptors, _grey, _Register, _verify, near_duplicates
from synthrob.data.faces import draw_faces, emotions
from synthrob.data.splits import check_held_out
from synthrob.split.params import check_params
from synthrob.split.run import SplitRun

def textures(n, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.interpolate(torch.rand(n, 1, 12, 12, generator=g), 48, mode='bicubic')
    return (x*255).clamp(0, 255).byte()

def write(folder, x, classes='ab'):
    for i,o in enumerate(x):
        f = folder/classes[i % len(classes)]/f'{i}.png'
        f.parent.mkdir(parents=True, exist_ok=True); Image.fromarray(o[0].numpy()).save(f)

def test_copies_of_all_kinds_are_found_and_nothing_else():
    x = textures(60, 0)
    zoomed = torch.nn.functional.interpolate(x[16:20,:,4:44,4:44].float(), 48, mode='bicubic').clamp(0, 255).byte()
    copies = torch.cat([x[:4].flip(-1), x[4:8].roll(3, -2), (x[8:12]*.5 + 50).byte(), x[12:16], zoomed])
    found = near_duplicates(torch.cat([x, copies]))
    assert set(zip(found.a, found.b)) == {(i, 60 + i) for i in range(20)}
    assert set(found.a[found.mirror]) == set(range(4))

def test_a_pair_is_registered_the_same_in_any_company():
    "Pairs that share a picture, mirrored or not, are prepared together: each one alone gives the same"
    x = textures(12, 8)
    grey = _grey(torch.cat([x, x[:6].flip(-1), x[6:].roll(2, -1)]))
    d, register = _Descriptors(grey), _Register(grey)
    a, b = torch.cat([torch.cartesian_prod(torch.arange(6), torch.arange(12, 24)), torch.stack([torch.arange(12), torch.arange(12, 24)], 1)]).T
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(0))
    together = _verify(d, register, grey, grey, a[order], b[order])[order.argsort()]
    alone = torch.cat([_verify(d, register, grey, grey, i, j) for i, j in zip(a.split(1), b.split(1))])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert (together[-12:,0] > .9).all() and together[-12:,4].tolist() == [1]*6 + [0]*6 and together[-12:-6,2:4].abs().max() <= 1

def test_pictures_of_one_kind_do_not_leak():
    "In a small set that looks alike, the threshold counts what is alike by chance, and the last check does not stop training"
    g, at = torch.Generator().manual_seed(5), torch.arange(40)
    def disc():                                                                # a bright disc, a little elsewhere each time
        y, x, r = (20 + 4*torch.randn((), generator=g), 20 + 4*torch.randn((), generator=g), 11 + torch.randn((), generator=g))
        im = 60 + 140*(((at[:,None] - y)**2 + (at - x)**2).sqrt() < r) + 3*torch.randn(40, 40, generator=g)
        return im.clamp(0, 255).byte()[None]
    x = torch.stack([disc() for _ in range(60)])
    assert near_duplicates(x).attrs['threshold'] > .6
    check_held_out(x[:44], x[44:], 1000)
    with pytest.raises(RuntimeError, match='near copies of validation or test'):
        check_held_out(torch.cat([textures(30, 6), textures(20, 7)]), textures(30, 6).flip(-1), 1000)

def test_parts_and_pools_lose_near_copies_of_test_images(tmp_path):
    x, new = textures(120, 1), textures(20, 2)
    write(tmp_path/'data'/'train', torch.cat([x[:80], x[80:86].flip(-1)])); write(tmp_path/'data'/'test', x[80:])
    given = dict(data='folder', path=str(tmp_path/'data'), size=48, robustness='none', out=str(tmp_path/'runs'))
    run = SplitRun(check_params(given)); run.make('parts')
    assert run.splits.report['removed']['near'] == 6 and len(run.splits.test) == 40
    write(tmp_path/'pool', torch.cat([new, x[90:96].roll(2, -1)])); write(tmp_path/'bad', x[90:96].flip(-1))
    run = SplitRun(check_params(given | dict(ratio=.2, pool=str(tmp_path/'pool')))); run.make('pool')
    assert run.stages['pool'].record['near_copies_removed'] == 6 and len(run.pool) == 20
    with pytest.raises(BadInput, match='near copies of validation or test'):
        SplitRun(check_params(given | dict(ratio=.2, pool=str(tmp_path/'bad')))).make('pool')

def test_classes_have_pairs_of_their_own_and_none_leaks(tmp_path):
    x = textures(60, 3)
    write(tmp_path/'data'/'train', torch.cat([x[:40], x[40:46].flip(-1), x[46:49]]), 'abc'); write(tmp_path/'data'/'test', x[40:], 'abc')
    given = dict(data='folder', path=str(tmp_path/'data'), size=48, robustness='none', out=str(tmp_path/'runs'))
    hashes = {SplitRun(check_params(given | o)).stages['copies'].hash for o in ({}, dict(vocab='a,b'), dict(vocab='a,b,c'), dict(vocab='c,a,b'))}
    assert len(hashes) == 3                                             # the order of classes does not matter
    run = SplitRun(check_params(given | dict(copies='none'))); run.make('parts')
    assert 'copies' not in run.stages and not any(run.splits.report['removed'].values()) and run.splits.report['test_leaked'] > 0
    with pytest.raises(BadInput, match="groups does not go with copies='none'"):
        check_params(dict(copies='none', groups='(.+)_'))

def test_the_command_writes_pairs(tmp_path, capsys):
    x = textures(60, 4)
    write(tmp_path/'data'/'train', torch.cat([x[:40], x[40:46].flip(-1)])); write(tmp_path/'data'/'test', x[40:])
    assert main(['folder', str(tmp_path/'data'), '--size', '48', '--out', str(tmp_path/'runs'),
                 '--pairs', str(tmp_path/'pairs.csv'), str(tmp_path/'pairs.png')]) == 0
    t = pd.read_csv(tmp_path/'pairs.csv')
    assert len(t) == 6 and t.mirror.all() and {'name_a', 'label_b', 'same_label'} <= set(t) and Image.open(tmp_path/'pairs.png').width > 100
    assert 'near copies: 6 groups' in capsys.readouterr().out

@pytest.mark.slow
def test_what_copies_are_worth(tmp_path):
    "benchmarks/near_worth.py: equal sizes, an interval around each worth, finished trainings found again; mirror images of test images leak"
    y = torch.arange(300) % 5
    for i, (im, k) in enumerate(zip(draw_faces(y, size=32, seed=5, progress=False), y)):
        def write(name, part, im, label):
            f = tmp_path/'data'/part/emotions[label]/f'{name}.png'
            f.parent.mkdir(parents=True, exist_ok=True); Image.fromarray(im).save(f)
        write(i, 'test' if i >= 240 else 'train', im[0].numpy(), k)
        if i >= 270: write(f'{i}c', 'train', im[0].flip(-1).numpy(), (k + 1) % 5)
    words = [str(tmp_path/'worth.parquet'), *'--epochs 4 --seeds 2 --data folder --size 32'.split(), '--path', str(tmp_path/'data'), '--root', str(tmp_path/'runs')]
    table = near_worth(words)
    assert table.n['copied'] >= 20 and table.n['copied'] + table.n['not copied'] == table.n['all'] == 60
    assert table.worth['copied, other label'] < .05 and (table.low <= table.worth).all() and (table.worth <= table.high).all()
    assert table.worth['copied less not copied'] == pytest.approx(table.worth['copied'] - table.worth['not copied'])
    records = sorted((tmp_path/'runs'/'copies_worth').glob('*/record.json'))
    sizes, before = {read_json(f)['n_train'] for f in records}, [f.stat().st_mtime for f in records]
    assert len(records) == 4 and len(sizes) == 1 and near_worth(words).equals(table) and [f.stat().st_mtime for f in records] == before
