"The benchmarks are fair: both sides do the same work, to the bit where that is possible; the command prints what it measured"
from __future__ import annotations
import json, time
from functools import partial
import bench, pytest, torch
from fastai.callback.core import Callback
from synthrob.core.basics import BadInput
from synthrob.gan.trainer import GANRecipe

QUICK = '--quick --json --data faces --device cpu'.split()

@pytest.fixture(scope='module')
def s():
    with bench.setting('faces', quick=True, device='cpu') as s: yield s

def rows(capsys, *args):
    assert bench.main([*args, *QUICK]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]         # nothing but JSON

def test_they_take_turns(s):
    calls = []
    def nap(name, seconds): calls.append(name); time.sleep(seconds); return 'slept'
    pairs = bench.duel(partial(nap, 'a', .01), partial(nap, 'b', .03), s)
    assert calls == list('ababab') and all(a >= .01 and b >= .03 for a, b in pairs)     # a warm-up, then two rounds
    assert bench.fastest({'slow': partial(nap, 'b', .2), 'quick': partial(nap, 'a', 0)}, s) == 'quick'
    with pytest.raises(RuntimeError, match='not the same work: 512 and 500'): bench.duel(lambda: 512, lambda: 500, s)

def test_a_row():
    row = bench.Row('nap', 'a short nap', 'a long nap', [(1., 3.), (2., 4.), (1., 5.)], target=2.5, note='on a train')
    d = row.to_dict()
    assert (d['ratio'], d['spread'], d['n'], d['met'], d['ours'], d['theirs']) == (3., [2., 5.], 3, True, 1., 4.)
    assert 'target 2.5: met' in str(row) and str(row).endswith('on a train')

def test_loaders_bring_the_same(s):
    seen = [bench.walk(dl, 'cpu') for dl in (s.dls().train, bench.file_loader(s, 0), bench.file_loader(s, 2))]
    assert seen == [(384, (64, 1, 48, 48), torch.float32)]*3
    x, y = bench.FileSet(s.files, s.train.y, 1)[7]
    assert (x - s.train.x[7]/255).abs().mean() < .02 and y == s.train.y[7]              # JPEG is not exact
    dl = bench.fastai_loader(s, 0)
    assert list(dl.vocab) == sorted(s.train.vocab) and len(dl.dataset) == len(s.train)
    first, again = (dl.after_batch(dl.do_batch([dl.do_item(3)]))[0] for _ in range(2))
    assert first.ne(again).any(), 'it augments'

class KeepLoss(Callback):
    def __init__(self): self.kept = []
    def after_batch(self): self.kept.append(self.learn.loss.detach())

def test_bare_cnn_is_the_same_training(s):
    theirs, ours = [], KeepLoss()
    (learn, epoch), (net, bare_epoch) = bench.our_cnn(s, cbs=[ours]), bench.bare_cnn(s, losses=theirs)
    assert epoch() == bare_epoch() and len(theirs) == 6
    assert torch.allclose(torch.stack(theirs), torch.stack(ours.kept), atol=1e-5)
    for a, b in zip(net.parameters(), learn.model.parameters()): assert torch.allclose(a, b, atol=1e-5)

ODD = GANRecipe(loss='nonsaturating', penalty='r1', gamma_end=.01, lazy=2, lecam=.1, n_critic=2, augment='ada', lr_d=3e-4,
                attention=(12,))

@pytest.mark.parametrize('recipe', [*bench.image_gans, ODD], ids=[*bench.image_gans, 'odd'])
def test_bare_gan_is_the_same_training(s, recipe):
    learn, steps = bench.our_gan(s, recipe)
    pair, bare_steps = bench.bare_gan(s, learn)
    assert steps() == bare_steps()
    for (k, a), b in zip(learn.model.state_dict().items(), pair.state_dict().values()):
        assert torch.allclose(a.float(), b.float(), atol=1e-6), k

def test_fastai_gan_trains_both_nets(s):
    like = bench.our_gan(s, loss='nonsaturating', penalty=None)[0]
    assert like.recipe.penalty is None
    learn, steps = bench.fastai_gan(s, like)
    before = [p.detach().clone() for p in learn.model.parameters()]
    n = steps()
    assert [len(o) for o in (learn.gan_trainer.crit_losses, learn.gan_trainer.gen_losses)] == [n, n]
    assert sum(not torch.equal(a, b) for a, b in zip(before, learn.model.parameters())) > .9*len(before)

def test_memory_is_counted():
    m = bench.measure_peak('import numpy as np', "n = np.ones(args['mb']*125_000).nbytes", mb=64)
    assert m['n'] == 64_000_000 and 6e7 < m['peak'] - m['before'] < 9e7

def test_the_command(capsys):
    found = rows(capsys, 'loader', 'quality')
    assert [o['name'] for o in found] == ['loader', 'quality']
    for o in found:
        assert 0 < o['spread'][0] <= o['ratio'] <= o['spread'][1] and o['n'] == 2 and o['met'] == (o['ratio'] >= o['target'])
        assert o['device'].startswith('cpu') and o['versions']['torch']

@pytest.mark.slow
def test_every_other_benchmark_runs(capsys):
    names = [o for o in bench.benches if o not in ('loader', 'quality', 'large', 'large_peak')]
    assert [o['name'] for o in rows(capsys, *names, '--repeats', '1')] == names
    assert [o['name'] for o in rows(capsys, 'loader', '--bigger-than-memory', '--repeats', '1')] == ['large', 'large_peak']

def test_bad_input(capsys, monkeypatch):
    assert bench.main(['nap']) == 2 and "There is no benchmark 'nap'" in capsys.readouterr().err
    monkeypatch.setattr(bench, 'benches', dict(bench.benches))
    bench.bench(2, 'ours', 'nothing', name='lonely', needs='no_such_package')(None)
    with pytest.raises(BadInput, match="'lonely' needs no_such_package"): bench.run_benches(['lonely'])
    for bad, reason in [(dict(data='cats'), 'choose fer2013 or faces'), (dict(data='faces', path='a.zip'), 'needs no path'),
                        (dict(repeats=0), 'at least 1')]:
        with pytest.raises(BadInput, match=reason), bench.setting(**bad): pass
