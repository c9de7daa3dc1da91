"Nets that cannot learn get no verdict, whatever the metric; added real images do good, and copies do nothing"
from __future__ import annotations
from dataclasses import replace
import numpy as np, pandas as pd, pytest, torch
from conftest import drawn_faces
from fastai.callback.core import Callback
from PIL import Image
from synthrob.cnn.evaluation import Confusion
from synthrob.cnn.learner import cnn_learner, evaluate, learning_problem, recipe, recipes
from synthrob.cnn.robustness import evaluate_robustness
from synthrob.core.basics import BadInput, generator
from synthrob.data.dataset import Dataset
from synthrob.data.faces import emotions
from synthrob.data.loaders import device_dls
from synthrob.gan.learner import gan_learner
from synthrob.gan.memorization import evaluate_pool
from synthrob.gan.metrics import gan_test
from synthrob.split.core import run_split
from synthrob.split.mixture import mix
from synthrob.split.params import check_params
from synthrob.split.run import SplitRun
from synthrob.sweep.report import headline
from synthrob.sweep.results import conclude, results

METRICS = 'accuracy', 'balanced_accuracy', 'macro_f1', 'recall:rising'

def draw(top, n, kind='lines', seed=0):
    "`n` images of rising and of falling lines in folders, clear or noisy; or the same picture for both; or flat ones"
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:16, :16]
    for name, sign in dict(rising=1, falling=-1).items():
        (top/name).mkdir(parents=True)
        for i in range(n):
            lines = np.sin(.8*(x + sign*y) + rng.uniform(0, 6.3))
            wave = dict(same=np.sin(.8*x), flat=0*x).get(kind, lines)
            image = 128 + 60*wave + rng.normal(0, dict(lines=25, noisy=100, same=2, flat=0)[kind], (16, 16))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(top/name/f'{i}.png')
    return str(top)

def verdicts(data, pool, out, seeds=2, **more):
    "The conclusion about one arm on each metric, as `{metric: (verdict, sentence)}`"
    given = dict(data='folder', path=data, ratio=.5, size=16, copies='exact', folds=1, robustness='none', how='add', pool=pool, min_steps=150)
    for seed in range(seeds):
        for arm in (dict(ratio=0), {}): run_split(**given | dict(cnn_seed=seed, out=str(out)) | more | arm)
    frame = results(out)
    top = {m: conclude(frame, metric=m).query('headline').iloc[0] for m in METRICS}
    return {m: (o.verdict, headline(o, .02)) for m, o in top.items()}

def shuffle(top):
    "Deal the images of both classes out at random"
    files = sorted(top.glob('*/*.png'))
    for i, k in enumerate(np.random.default_rng(1).permutation(len(files))): files[k].rename(top/f'{i}.png')
    for i in range(len(files)): (top/f'{i}.png').rename(top/('rising' if i % 2 else 'falling')/f'{i}.png')

@pytest.mark.parametrize('what', ('shuffled labels', 'lr 0', 'one step', 'same images'))
def test_no_verdict_on_nets_that_cannot_learn(what, tmp_path, monkeypatch):
    kind = 'same' if what == 'same images' else 'lines'
    data, pool = draw(tmp_path/'data', 60, kind), draw(tmp_path/'pool', 60, kind, 1)
    if what == 'shuffled labels': shuffle(tmp_path/'data')
    if what == 'lr 0': monkeypatch.setitem(recipes, 'poster', replace(recipes['poster'], lr=0.))
    more = dict(real_share=.1, cnn_epochs=1, min_steps=0) if what == 'one step' else {}
    for metric, (verdict, sentence) in verdicts(data, pool, tmp_path/'runs', **more).items():
        how = 'are in doubt' if what == 'shuffled labels' else 'failed'
        assert verdict == 'none' and sentence.startswith('No verdict') and f': 2 of 2 baselines {how}. ' in sentence, (metric, sentence)
        assert ('no better than chance' in sentence) == (what == 'shuffled labels'), sentence

def test_a_verdict_on_nets_that_learn(tmp_path):
    found = verdicts(draw(tmp_path/'data', 60), draw(tmp_path/'pool', 60, seed=1), tmp_path/'runs')
    assert all(sentence.startswith('Undecided: ') for _, sentence in found.values()), found       # two seeds decide nothing

def test_flat_images_are_refused(tmp_path):
    with pytest.raises(BadInput, match="class '(rising|falling)' has no training image"):
        verdicts(draw(tmp_path/'data', 60, 'flat'), None, tmp_path/'runs')

FEW = dict(real_share=.07, ratio=.9, seeds=6)                                     # 15 real images, 135 added ones

def test_classes_in_another_order(toy_cnn, toy_gan):
    "A folder sorts its classes, FER-2013 does not: each label would mean another class, and the accuracy be that of confusion"
    here, there = drawn_faces(50, 3), drawn_faces(50, 3).select(sorted(emotions))
    pool = toy_gan.sample_pool(10, progress=False)
    turned = pool.select(sorted(emotions))
    assert torch.equal(there.x, here.x) and not torch.equal(there.y, here.y)
    for work in (lambda: evaluate(toy_cnn, there), lambda: device_dls(here, there), lambda: evaluate_robustness(toy_cnn, there, progress=False),
                 lambda: evaluate_robustness(toy_cnn.model, here, valid=there, progress=False), lambda: mix(here, turned, .5),
                 lambda: gan_test(toy_cnn, turned), lambda: evaluate_pool(turned, there, there, toy_cnn, progress=False)):
        with pytest.raises(BadInput, match='`select` the same classes, in one order'): work()
    numbered = Dataset(here.x, here.y)                                                  # without names there is nothing to compare
    assert evaluate(toy_cnn, numbered).accuracy == evaluate(toy_cnn, here).accuracy == evaluate(toy_cnn, there.select(emotions)).accuracy
    assert len(mix(here, toy_gan.sample_pool(10, vocab=None, progress=False), .5)) == 50

def test_learners_leave_loaders_alone():
    "Loaders that several learners share: the balance of one and the augmentation of another reach nobody else"
    dls = device_dls(drawn_faces(64, 1), drawn_faces(10, 2), bs=16, seed=7, device='cpu')
    before = {k: v for k, v in vars(dls.train).items() if k != 'rng'}
    gan, cnn = gan_learner(dls, nf=8, nz=8), cnn_learner(dls, arch='strong', seed=1)
    with gan.no_bar(), gan.no_logging(): gan.fit_gan(64)
    assert {k: v for k, v in vars(dls.train).items() if k != 'rng'} == before
    own = gan.dls.train, cnn.dls.train, gan_learner(cnn.dls, nf=8, nz=8).dls.train
    assert cnn.dls.train.augment and own[2].augment is None is cnn_learner(cnn.dls, arch='poster').dls.train.augment
    assert [(o.balanced, o.seed, len(o)) for o in own] == [(True, 0, 20), (False, 1, 4), (True, 0, 4)]
    assert gan.dls.train.dataset.x.data_ptr() == dls.train.dataset.x.data_ptr(), 'a second copy of the images'

def test_a_mixture_has_the_batches_of_its_baseline(toy_gan):
    real, pool = drawn_faces(100, 1), toy_gan.sample_pool(10, progress=False)
    alone, mixed = (device_dls(o, device='cpu').train for o in (real, mix(real, pool, .3)))
    assert (alone.bs, len(alone)) == (mixed.bs, len(mixed)) == (100, 1)

def test_figures_of_other_classes_are_refused(toy_cnn):
    "More classes than names would be counted in the cells of others"
    some = drawn_faces(10, 3)
    with pytest.raises(BadInput, match=r'10 items of 2 classes need \(10, 2\)'): evaluate(toy_cnn.model, Dataset(some.x, some.y % 2, ['a', 'b']))
    t = pd.crosstab(pd.Series(list('abc')), pd.Series(list('abd')))
    with pytest.raises(BadInput, match='different names or another order'): Confusion(t)
    assert Confusion(t.reindex(columns=list('abc'), fill_value=0)).accuracy == 1

def test_mixed_twice_is_refused(toy_gan):
    "The synthetic items of the first mixture would count as authentic in the second"
    real, pool = drawn_faces(50, 1), toy_gan.sample_pool(10, progress=False)
    with pytest.raises(BadInput, match='hold synthetic ones'): mix(mix(real, pool, .3), pool, .3)

def test_class_weights_give_up_accuracy():
    "A net that finds the rare class at the price of some frequent items has learned, as its weighted loss says"
    y = (torch.arange(100) < 8).long()
    data = Dataset(drawn_faces(100, 1).x, y, ['often', 'rare'])
    learn = cnn_learner(data, arch=recipe('poster', epochs=1, bs=5), class_weights='balanced', device='cpu')
    class Net(torch.nn.Module):                                                       # right for all rare ones and 83 of 92
        def forward(self, x): return torch.stack([torch.zeros(len(x)), torch.where(self.found[:len(x)], 9., -9.)], 1)
    net = learn.model = Net()
    net.p = torch.nn.Parameter(torch.zeros(1))
    learn.history = [dict(train_loss=1.), dict(train_loss=.1)]
    rows = torch.randperm(100, generator=generator('learned'))
    net.found = ((torch.arange(100) < 17))[rows]
    assert learning_problem(learn) == ''
@pytest.mark.slow
def test_held_back_real_images_as_pool_are_better(tmp_path):
    "'Perfect synthetic' images"
    found = verdicts(draw(tmp_path/'data', 150, 'noisy'), draw(tmp_path/'more', 150, 'noisy', 1), tmp_path/'runs', **FEW)
    assert all(kind == 'better' for m, (kind, _) in found.items() if m != 'recall:rising'), found

@pytest.mark.slow
def test_training_images_as_pool_are_not(tmp_path):
    "Exact copies are refused, and copies that differ by a few grey levels change nothing"
    data, out = draw(tmp_path/'data', 150, 'noisy'), tmp_path/'runs'
    run = SplitRun(check_params(dict(data='folder', path=data, size=16, copies='exact', folds=1, robustness='none', real_share=.07, out=str(out))))
    run.make('parts')
    train = run.part('train')
    for change in range(-6, 7):                                                    # 12 altered copies of each, and an exact one
        for i, (x, k) in enumerate(zip(train.x, train.y)):
            folder = tmp_path/('altered' if change else 'exact')/train.vocab[k]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((x[0].float() + change).clip(0, 255).byte().numpy()).save(folder/f'{i}_{change}.png')
    with pytest.raises(BadInput, match='15 of the 15 images of the pool are copies of real ones'): verdicts(data, str(tmp_path/'exact'), out, **FEW)
    found = verdicts(data, str(tmp_path/'altered'), out, **FEW)
    assert len(train) == 15 and all(kind in ('equivalent', 'undecided') for kind, _ in found.values()), found

def test_a_second_training_sees_other_batches():
    "A second `fit_recipe` drew the order and the augmentation of the first again"
    d = drawn_faces(100, 3)
    class First(Callback):
        run_valid = False
        def before_fit(self): self.of = []
        def before_batch(self): self.of.append(self.x.clone())
    def fit(learn):
        first = First()
        with learn.no_bar(), learn.no_logging(): learn.fit_recipe(1, cbs=[first])
        return first.of[0]
    one, other = (cnn_learner(d, d, recipe('strong', epochs=1), seed=1, device='cpu') for _ in range(2))
    before, after = fit(one), fit(one)
    assert not torch.equal(before, after) and torch.equal(before, fit(other)) and torch.equal(after, fit(other))
