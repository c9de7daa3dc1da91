"Options through every door: what is given is what runs, what differs is kept apart, and what is printed does what it says"
from __future__ import annotations
import json, re, shlex
from itertools import product
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest
from PIL import Image
from synthrob.core.basics import BadInput, write_json
from synthrob.data.core import main as data_command, preview
from synthrob.split.params import check_params
from synthrob.sweep.command import _grids_of, main
from synthrob.sweep.grid import Costs, Sweep, _combinations, values
from synthrob.sweep.report import _tables, by_setting, report
from synthrob.sweep.results import _cells, _distinct, _problem, paired_runs, results
from simulate import simulate_runs

SMALL = dict(ratios=(0, .4), hows=('add',), n=100)

@pytest.fixture
def animals(tmp_path):
    "A folder with other classes than the faces'"
    rng = np.random.default_rng(0)
    for c in 'cat', 'dog':
        (tmp_path/'animals'/c).mkdir(parents=True)
        for i in range(40): Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(tmp_path/'animals'/c/f'{i}.png')
    return dict(data='folder', path=str(tmp_path/'animals'), copies='exact', robustness='none')

def test_a_number_of_seeds_or_which():
    assert values('cnn_seed', 3) == [0, 1, 2] and values('gan_seed', '2') == [0, 1]
    assert values('split_seed', 7) == [7] and values('pool_seed', 3) == [3], 'of these it says which'

def test_one_class_is_refused_before_work(animals, capsys):
    for given in animals | dict(vocab='cat'), dict(vocab='happy'), dict(data='torchvision', vocab='Bag'):
        with pytest.raises(BadInput, match='is the only class: a classifier needs two'): check_params(given | dict(ratio=.5))
    assert data_command(['faces', '--vocab', 'sad']) == 2 and "'sad' is the only class" in capsys.readouterr().err

@pytest.mark.parametrize('more', ['faces --size 32 --metric robust_accuracy', 'folder {path} --copies exact --size 112', 'folder {path} --copies exact --size 24'])
def test_the_command_that_synthrob_data_prints_can_be_run(more, animals, tmp_path, capsys):
    assert data_command([*more.format(**animals).split(), '--out', str(tmp_path)]) == 0
    flags = re.search('synthrob_sweep(.*?) --dry_run', capsys.readouterr().out)[1]
    assert main([*shlex.split(flags), '--dry_run', '--ratio', '0,.3']) == 0 and ('.0157' in flags) == ('metric' in more)

@pytest.mark.parametrize('size', [0, 8, 20, 104, 256])
def test_synthrob_data_takes_no_size_that_an_experiment_refuses(size, capsys):
    assert data_command(['faces', '--size', str(size)]) == 2 and f'--size {size} does not suit' in capsys.readouterr().err
    with pytest.raises(BadInput): check_params(dict(size=size, ratio=.3, robustness='none'))

def test_values_are_refused_only_where_none_works(animals, tmp_path):
    cells = lambda **grid: Sweep(animals | dict(folds=1) | grid, out=tmp_path/'runs')
    assert {(c.p.ratio, c.p.equal) for c in cells(ratio=[0, .3], how='add', equal='epochs').cells} == {(0, 'steps'), (.3, 'epochs')}
    for eps in [0, .01], [.01, 0]: assert len(cells(ratio=[0, .3], training=['standard', 'adversarial'], attack_eps=eps).cells) == 6
    for bad, why in (dict(how='replace', equal='epochs'), 'changes nothing'), (dict(cnn=['poster', 'stong']), 'stong'):
        with pytest.raises(BadInput, match=why): _combinations(animals | dict(ratio=[0, .3]) | bad)

def test_the_metric_is_about_the_classes_of_the_data(animals, tmp_path):
    assert Sweep(animals | dict(ratio=[0, .3], folds=1), metric='recall:cat', out=tmp_path/'runs').metric == 'recall:cat'
    with pytest.raises(BadInput, match='names no class of the data'): Sweep(animals | dict(ratio=.3, folds=1), metric='recall:sad', out=tmp_path/'runs')

    for unknown in 'acuracy', 'accuracy:cat':
        with pytest.raises(BadInput, match='is unknown: choose accuracy'): Sweep(animals | dict(ratio=.3, folds=1), metric=unknown, out=tmp_path/'runs')

def test_a_name_and_its_other_name():
    for spec in dict(ratio=0, ratios=[0, .3]), dict(grids=[dict(seeds=2, cnn_seed=3)]):
        with pytest.raises(BadInput, match='has both .*: give one of the two'): _grids_of(spec)

def test_each_combination_has_its_own_folds(animals, tmp_path):
    folds = lambda **grid: sorted((c.p.folds, c.p.fold) for c in Sweep(animals | dict(ratio=0) | grid, out=tmp_path/'runs').cells)
    assert folds(folds=[1, 3]) == [(1, 0), (3, 0), (3, 1), (3, 2)] and folds(folds=3, fold=1) == [(3, 1)]

def test_official_validation_counts_for_no_fold(tmp_path):
    "240 images of a class can be tested, whatever else there is for validation"
    for (part, n), c in product((('train', 240), ('val', 20)), 'ab'):
        (tmp_path/part/c).mkdir(parents=True)
        for i in range(n): Image.new('L', (32, 32)).save(tmp_path/part/c/f'{i}.png')
    assert preview('folder', tmp_path) == (5, False)

def test_equal_epochs_cost_what_they_take():
    costs, stage = Costs(), lambda ratio: SimpleNamespace(kind='split', params=dict(ratio=ratio, equal='epochs'), spec=dict(inputs={}))
    costs.add(dict(kind='split', hash='a', params=stage(.5).params, inputs={}, seconds=60, resumed=False, device='cpu'))
    assert costs.of([stage(.5)])[0] == 60 and costs.of([stage(.9)])[1].total() == 1

def test_a_flag_is_stronger_than_the_file(animals, tmp_path, capsys):
    (tmp_path/'sweep.yaml').write_text(json.dumps(animals | dict(ratio=0, folds=1, cnn_epochs=1, dry_run=False, out=str(tmp_path/'runs'))))
    assert main([str(tmp_path/'sweep.yaml'), '--dry_run']) == 0 and '1 to run' in capsys.readouterr().out
    assert not (tmp_path/'runs'/'split').exists()
    (tmp_path/'sweep.yaml').write_text(json.dumps(animals | dict(ratio=0, folds=1, cnn_epochs=1, dry_run=True, out=str(tmp_path/'runs'))))
    assert main([str(tmp_path/'sweep.yaml')]) == 0, 'a plan has not failed'

def test_the_metric_of_a_sweep(tmp_path):
    write_json(tmp_path/'sweep'/'a'/'sweep.json', dict(hash='a', margin=.05, metric='macro_f1', declared='2026-01-01', finished_before=0, cells=[]))
    assert _cells(tmp_path, 'a')[3]['metric'] == 'macro_f1'

def test_pools_and_gans_of_one_name():
    t = pd.DataFrame(dict(pool=['images', 'images', 'other', None], pool_of=['1234567890', '2', '3', None],
                          gan_arch=[None, None, 'default', 'default'], gan_of=[False, False, True, False]))
    assert _distinct(t).pool.tolist()[:3] == ['images (12345678)', 'images (2)', 'other']
    assert _distinct(t).gan_arch.tolist()[2:] == ['default (saw test images)', 'default']

def test_problems_come_from_all_that_a_run_depends_on():
    made = {k: dict(inputs=i) for k, i in dict(pool=dict(gan='gan'), gan=dict(judge='judge'), parts={}).items()} | dict(judge=dict(inputs={}, problem='No.'))
    run = dict(inputs=dict(pool='pool', train='parts'), valid={}, test={})
    assert _problem(run, made) == 'No.' and _problem(run | dict(inputs=dict(train='parts')), made) == ''

def test_a_control_is_used_as_the_arm_is(tmp_path):
    for use in 'mixed', 'pretrain': simulate_runs(tmp_path, treatments=('synthetic', 'noise'), schedule=use, training='adversarial', attack_eps=.01, **SMALL)
    frame = results(tmp_path)
    runs = frame.drop_duplicates('run').set_index('run')
    for p in paired_runs(frame, against='noise'): assert set(runs.loc[p.base_runs].schedule) == {p.arm['schedule']}
    page = str(report(frame, progress=False)._repr_html_())
    assert 'add, trained on first: accuracy minus that at ratio 0' in page and 'add: accuracy minus that at ratio 0' in page, 'a map each'

def test_metrics_that_some_runs_lack(tmp_path):
    "Their columns stay with their arms, and what is missing is empty"
    for epochs, effect in (10, .2), (20, 0.): simulate_runs(tmp_path, lambda o: effect, cnn_epochs=epochs, min_steps=0, **SMALL)
    for f in tmp_path.glob('split/*/record.json'):
        r = json.loads(f.read_text())
        if r['given']['cnn_epochs'] == 20: write_json(f, r | {k: r[k] | dict(robust_accuracy=r[k]['accuracy']/2) for k in ('valid', 'test')})
    rep = report(tmp_path, progress=False)
    metrics, *_ = _tables(rep.frame, rep.table, .02, .05, False)
    for k, t in metrics.items(): assert t.cnn_epochs.tolist() == rep.table.cnn_epochs.tolist(), k
    assert metrics['robust_accuracy']['diff'].isna().tolist() == [n == 10 for n in rep.table.cnn_epochs]
    assert len(rep.table) == 2 and 'There is one classifier' not in rep.html
    assert report(tmp_path, progress=False, metric='robust_accuracy').table.verdict.notna().any()

def test_what_differs_is_named_and_can_be_run_again(tmp_path, capsys):
    simulate_runs(tmp_path, ratios=(0, .4), hows=('add',), n=400, data='folder', path='x', cnn_seeds=(2, 3, 5), margin=.01)
    simulate_runs(tmp_path, ratios=(0, .4), hows=('add',), n=400, data='folder', path='x', cnn_seeds=(2, 3, 5), margin=.01, vocab=('cat', 'dog'))
    assert len({name for name, _ in by_setting(results(tmp_path))}) == 2
    said = next(o for o in report(tmp_path, progress=False).html.split('There is no control with ') if o.startswith('oversampled'))
    words = shlex.split(said.split(': ', 1)[1].split('<')[0])
    flags = dict(zip(words[1::2], words[2::2]))
    assert {'--folds': '1', '--margin': '0.01', '--seeds': '2,3,5', '--path': 'PATH', '--treatment': 'oversample'}.items() <= flags.items()

def test_more_folds_than_images(animals, capsys):
    assert data_command(['folder', animals['path'], '--copies', 'exact', '--folds', '60']) == 2
    assert '60 folds need at least 60 of each class' in capsys.readouterr().err
