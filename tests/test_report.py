"The report on simulated records: with an effect, without one, and with missing or damaged files"
from __future__ import annotations
import json, re, shutil
from itertools import product
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
import numpy as np, pandas as pd, pytest
from fastcore.xml import Div, to_xml
from synthrob.core.basics import BadInput, write_json
from synthrob.cnn.learner import Evaluation
from synthrob.core.stages import Stage
from synthrob.sweep.report import (INK, costs, _by_cluster, _exchange, _for_other_images, _verdict_part, by_setting, corruption_table, _image_differences, limits, main,
                                   plot_corruptions, plot_ratio, report)
from synthrob.sweep.results import (CLASSIFIER, SETTING, SYNTHESIS, VALUE, PairedRuns, _judge, _wall, conclude, declared_margin, declared_metric,
                                    differences, exchange_rate, paired_runs, results)
from synthrob.sweep.stats import image_se, joint_p, verdict
from simulate import simulate_runs

def planted(o): return .035 if (o['how'], o['treatment'], o['ratio']) == ('add', 'synthetic', .4) else 0.
def fragile(o, corruption): return -.1 if corruption == 'fog' and o['how'] == 'replace' and o['ratio'] == .5 else 0.

@pytest.fixture(scope='session')
def grid(tmp_path_factory) -> Path:
    "6 ratios x 2 hows x 6 seeds x 2 classifiers, with a control; adding 40 % gains 3.5 points"
    root = tmp_path_factory.mktemp('grid')
    assert simulate_runs(root, planted, fragile, treatments=('synthetic', 'oversample'), cnns=('poster', 'strong'), n=800) == 252
    return root

@pytest.fixture(scope='session')
def page(grid): return report(grid, progress=False)

@pytest.fixture(scope='session')
def few_made(tmp_path_factory) -> Path:
    simulate_runs(root := tmp_path_factory.mktemp('few'), ratios=(0, .3, .5), hows=('add',), cnn_seeds=range(3), n=200)
    return root

@pytest.fixture
def few(few_made, tmp_path) -> Path:
    "Ratios 0, .3 and .5, added, three seeds, no effect: a copy to change"
    return shutil.copytree(few_made, tmp_path/'runs')

def records(root): return {p.parent: json.loads(p.read_text()) for p in Path(root).glob('split/*/record.json')}

def remove(root, file=None, **given):
    "Delete the runs with these parameters, or one file of each; return their number"
    gone = [d for d, r in records(root).items() if given.items() <= r['given'].items()]
    for d in gone: (d/file).unlink() if file else shutil.rmtree(d)
    return len(gone)

def test_the_planted_effect_is_found(page):
    t = page.table
    assert [(r.how, r.ratio, r.treatment, r.verdict) for r in t[t.headline].itertuples()] == [('add', .4, 'synthetic', 'better')]*2
    assert len(page.sentences) == 2 and all(s.startswith('Better: 40 % synthetic images added') for s in page.sentences)
    assert ((t[t.headline].low < .035) & (.035 < t[t.headline].high)).all(), 'the interval covers the truth'
    others = t[~((t.how == 'add') & (t.ratio == .4) & (t.treatment == 'synthetic'))]
    found = others.verdict.isin(['better', 'worse'])
    assert len(others) == 38 and found.sum() <= 1, 'something else is found in 1 of 20 tables'
    assert set(t[t.headline].among) == {10} and set(others.among) == {20}

def test_a_planted_weakness_is_found(grid):
    frame = results(grid)
    assert frame[frame.metric == 'attack_accuracy'].eps.min() > 0, 'without attack it is the accuracy'
    heat = corruption_table(frame)
    worst = heat[heat.kind == 'corruption'].sort_values('diff').head(2)
    assert set(zip(worst.corruption, worst.how, worst.ratio, worst.treatment)) <= {('fog', 'replace', .5, 'synthetic'), ('fog', 'replace', .5, 'oversample')}
    assert (worst['diff'] + .1).abs().max() < .03

def test_numbers_are_those_of_the_records(grid, page):
    "One arm recomputed from the JSON files"
    acc = {(r['given']['cnn'], r['given']['how'], r['given']['treatment'], r['given']['ratio'], r['given']['cnn_seed']): r['test']['accuracy']
           for r in records(grid).values()}
    d = [acc['strong', 'add', 'synthetic', .4, s] - acc['strong', 'replace', 'synthetic', 0, s] for s in range(6)]
    v, row = verdict(d), page.table[page.table.headline & (page.table.cnn == 'strong')].iloc[0]
    assert (row['diff'], row.low, row.high, row.p) == pytest.approx((np.mean(d), v.low, v.high, v.p), abs=1e-12)
    assert row.sentence == str(v).replace('points', 'points of accuracy', 1)[:-1] + ' (corrected for 10 arms).'

def test_the_choice_ignores_test_images(grid):
    "Inverted test accuracies change the verdict, not the choice; inverted validation accuracies change the choice"
    f = results(grid, cnn='poster')
    def turned(part):
        g, at = f.copy(), (f.metric == 'accuracy') & (f.part == part)
        g.loc[at, 'value'] = 1 - g.loc[at, 'value']
        return conclude(g)
    a, test, valid = conclude(f), turned('test'), turned('valid')
    assert (a.chosen == test.chosen).all() and (a.headline == test.headline).all() and (a.chosen != valid.chosen).any()
    assert set(test[test.headline].verdict) == {'worse'}

def frame(acc):
    "A frame as from `results`, with accuracies {(part, ratio, seed): accuracy} and nothing else"
    rows = [dict(part=p, metric='accuracy', ratio=r, cnn_seed=s, value=v, run=f'{r} {s}') for (p, r, s), v in acc.items()]
    given = dict(data='faces', content='d', size=32, real_share=1., split_seed=42, leak=False, space='pixel', cnn='poster', cnn_epochs=20,
                 gan_arch='default', gan_images=1, gan_bs=1, gan_width=1, gan_pick='last', pool_seed=0, reject=0., noise_std=1.,
                 refresh_every=0, gan_seed=0, margin=.02, declared_metric='accuracy', problem='', doubt='', fold=0,
                 pool_hash=None, recipe_hash=None, finished='')
    f = pd.DataFrame(rows).assign(**dict.fromkeys((*SETTING, *SYNTHESIS, *CLASSIFIER)) | given)
    zero = f.ratio == 0
    for k, v in dict(how='add', classes='prior', treatment='synthetic', schedule='mixed', synthetic_weight=1., equal='steps').items(): f[k] = pd.Series(v, f.index, dtype=object).where(~zero)
    for k in (*SYNTHESIS, 'gan_seed'): f[k] = f[k].where(~zero)
    return f

@pytest.mark.slow
def test_without_effect_verdicts_are_rare():
    "100 sweeps of 4 ratios without an effect: at most 5 false headlines in 100, up to Monte Carlo error"
    rng, false, n = np.random.default_rng(0), 0, 100
    for _ in range(n):
        luck = rng.normal(0, .01, 6)
        acc = {(p, r, s): .6 + luck[s] + rng.normal(0, .01) for p in ('valid', 'test') for r in (0, .2, .4, .6, .8) for s in range(6)}
        t = conclude(frame(acc))
        false += t[t.headline].verdict.isin(['better', 'worse']).item()
    assert false <= 9, f'{false} false verdicts'                     # 97 % of binomial(100, .05)

def constant(root, which):
    "Change the records of the runs `which(given)` to those of nets that call everything 'angry'"
    for d, r in records(root).items():
        if not which(r['given']): continue
        for part in ('valid', 'test'):
            m = np.array(r[part]['confusion'])
            m = np.where(np.arange(len(m)) == r[part]['vocab'].index('angry'), m.sum(1)[:, None], 0)
            r[part] |= dict(confusion=m.tolist(), accuracy=m.trace()/m.sum())
        write_json(d/'record.json', r)

@pytest.mark.parametrize('which, said', [(lambda o: True, '6 of 6 baselines failed.'), (lambda o: not o['ratio'], '6 of 6 baselines failed.'),
                                         (lambda o: o['ratio'] and o['cnn_seed'] == 2, '1 of 6 runs failed.')])
def test_nets_that_learned_nothing(tmp_path, which, said):
    "Eight constant nets were 'Equivalent, +0.0 points, TOST p = 0'"
    simulate_runs(tmp_path, ratios=(0, .3), hows=('add',), n=200)
    constant(tmp_path, which)
    f = results(tmp_path)
    for metric in 'accuracy', 'balanced_accuracy', 'macro_f1', 'recall:angry':
        t = conclude(f, metric=metric)
        assert (t.verdict == 'none').all() and t.low.isna().all() and t.p.isna().all(), metric
        assert t.problem.item() == f"{said} All test images were called 'angry' (20.0 %): train for more steps.", metric

def test_nets_that_diverged(tmp_path):
    "Their records, with accuracy null, were left out as damaged, and the others judged: 'Better'"
    simulate_runs(tmp_path, lambda o: .05, ratios=(0, .3), hows=('add',), cnn_seeds=range(8), n=200)
    def diverge(*seeds):
        for d, r in records(tmp_path).items():
            if r['given']['ratio'] and r['given']['cnn_seed'] in seeds:
                gone = Evaluation(np.full((200, 5), np.nan), np.arange(200) % 5, r['test']['vocab']).to_dict()
                write_json(d/'record.json', r | dict(valid=gone, test=gone | dict(accuracy=None, ece=None)))
    diverge(3)
    t = conclude(results(tmp_path))
    assert t.pairs.item() == 8 and t.problem.item() == '' and t.note.item().startswith('1 of 8 runs failed. The classifier diverged')
    diverge(3, 5)
    for metric in 'accuracy', 'balanced_accuracy', 'macro_f1', 'recall:angry':
        t = conclude(f := results(tmp_path), metric=metric)
        assert t.verdict.item() == 'none' and t.problem.item().startswith('2 of 8 runs failed. The classifier diverged'), metric
    assert f.attrs['skipped']['damaged'] == 0
    for d, r in [*records(tmp_path).items()][:1]: write_json(d/'record.json', r | dict(test=r['test'] | dict(n=200, accuracy=None)))
    assert results(tmp_path).attrs['skipped']['damaged'] == 1, 'null without a cause is damage'

def test_a_problem_of_a_stage_reaches_the_report(few):
    for p in few.glob('gan/*/record.json'): write_json(p, json.loads(p.read_text()) | dict(problem='The GAN diverged: train it anew.'))
    rep = report(few, progress=False)
    assert set(rep.frame.problem) == {'', 'The GAN diverged: train it anew.'}
    assert str(rep) == 'No verdict on the small CNN (the study\'s): 3 of 3 runs failed. The GAN diverged: train it anew.'
    assert '✕\xa0no verdict' in rep.html and 'Equivalent' not in rep.html.split('What cannot')[0]

def test_an_accuracy_that_its_confusion_matrix_contradicts(few):
    for d, r in list(records(few).items())[:2]: write_json(d/'record.json', r | dict(test=r['test'] | dict(accuracy=r['test']['accuracy'] + .1)))
    f = results(few)
    assert (f.run.nunique(), f.attrs['skipped']['damaged']) == (7, 2)

def test_equal_predictions_are_no_equivalence(tmp_path):
    "The same net six times over"
    simulate_runs(tmp_path, ratios=(0, .3), hows=('add',), n=200)
    of = {r['given']['cnn_seed']: r for r in records(tmp_path).values() if not r['given']['ratio']}
    for d, r in records(tmp_path).items(): write_json(d/'record.json', r | {k: of[r['given']['cnn_seed']][k] for k in ('valid', 'test')})
    rep = report(tmp_path, progress=False)
    assert rep.table.verdict.item() == 'undecided' and 'in each of 6 pairs, as if one net were run again' in str(rep)

def test_other_metrics_are_those_of_the_records(few):
    f = results(few)
    for metric, of in {'balanced_accuracy': lambda e: np.mean([v['recall'] for v in e['per_class'].values()]), 'macro_f1': lambda e: e['macro_f1'],
                       'recall:happy': lambda e: e['per_class']['happy']['recall']}.items():
        t, values = conclude(f, metric=metric), {}
        for r in records(few).values(): values.setdefault(r['given']['ratio'], []).append(of(r['test']))
        assert t.set_index('ratio')['diff'].to_dict() == pytest.approx({k: np.mean(values[k]) - np.mean(values[0]) for k in (.3, .5)})
    assert 'the recall of happy of the small CNN' in str(report(few, metric='recall:happy', progress=False))
    for d, r in records(few).items(): write_json(d/'record.json', r | dict(given=r['given'] | dict(metric='macro_f1')))
    assert set(conclude(results(few)).metric) == {'macro_f1'}
    assert main([str(few), '--metric', 'recall:glad']) == 2

def test_folds(tmp_path):
    "Nothing is found where there is nothing; a large effect is; the page says folds"
    simulate_runs(tmp_path/'0', ratios=(0, .3), hows=('add',), folds=5, cnn_seeds=range(2), n=100)
    simulate_runs(tmp_path/'1', lambda o: .2, ratios=(0, .3), hows=('add',), folds=5, cnn_seeds=range(2), n=100)
    assert conclude(results(tmp_path/'0')).verdict.item() in ('undecided', 'equivalent')
    rep = report(tmp_path/'1', progress=False)
    row = rep.table.iloc[0]
    assert (row.verdict, row.n_folds, row.cnn_seeds) == ('better', 5, 10) and 'each tested in one of the folds' in rep.html
    assert '5 folds x 1 GAN x 2 classifier seeds' in rep.html and 'one trained GAN' not in rep.html
    assert remove(tmp_path/'1', fold=3, cnn_seed=1, ratio=.3) == 1, 'a seed without all its folds is left out'
    pairs, = paired_runs(results(tmp_path/'1'))
    assert pairs.diffs.shape == (5, 1) and pairs.missing[0] == 'GAN seed 0, fold 3, classifier seed 1'

def test_probability_of_improvement():
    "Of runs of one fold, tested on the same images; of errors, smaller is better"
    base = np.array([.6, .61, .5, .51])
    pairs = PairedRuns({}, base[None] + .02, base, [0], [(f, s) for f in (0, 1) for s in (0, 1)], None, None, folds=2)
    assert [_judge([pairs], .02, .05, lower).improvement.item() for lower in (False, True)] == [1., 0.]

def test_several_gans(tmp_path):
    "The headline of each kind of GAN pays for the arms of all"
    for arch in 'default', 'sngan': simulate_runs(tmp_path, ratios=(0, .3, .5), hows=('add',), n=100, gan_arch=arch)
    t = conclude(results(tmp_path))
    assert t.headline.sum() == 2 and set(t.among) == {4}

def test_a_gan_for_each_classifier_seed(tmp_path):
    "A nested design is judged as such: six pairs, and a claim about GANs trained this way"
    simulate_runs(tmp_path, ratios=(0,), cnn_seeds=range(7), n=300)
    for i in range(6): simulate_runs(tmp_path, planted, ratios=(.4,), hows=('add',), gan_seeds=[i], cnn_seeds=[i], n=300)
    pairs, = paired_runs(results(tmp_path), 'accuracy')
    assert pairs.nested and pairs.gan_seeds == [*range(6)] and len(pairs) == 6 and '6 GANs, each with a classifier seed' in repr(pairs)
    rep = report(tmp_path, progress=False)
    top, = rep.table.itertuples()
    assert (top.verdict, top.gan_seeds, top.pairs) == ('better', 6, 6) and 'each with its own generator' in top.sentence
    assert 'a GAN each x 6 classifier seeds' in rep.html and '6, own GANs' in rep.html and 'The claim is about' not in rep.html
    simulate_runs(tmp_path, planted, ratios=(.4,), hows=('add',), gan_seeds=[0], cnn_seeds=[1], n=300)
    assert not paired_runs(results(tmp_path), 'accuracy')[0].nested

def test_fresh_seeds(tmp_path):
    "The choice sees the first seeds, the verdict the fresh ones"
    simulate_runs(tmp_path, ratios=(0, .2, .4), hows=('add', 'replace'), cnn_seeds=range(12), n=300)
    rep = report(tmp_path, confirm=6, progress=False)
    top = rep.table[rep.table.headline].iloc[0]
    assert top.among == 1 and top.pairs == 6 and 'its p is corrected' not in rep.html
    assert rep.table.chosen.tolist() == conclude(results(tmp_path, cnn_seed=range(6))).chosen.tolist()

def test_only_fresh_seeds_confirm(tmp_path):
    "Without any the headline has no verdict; with them the lines below it are about them alone"
    simulate_runs(tmp_path, planted, ratios=(0, .4), hows=('add',), cnn_seeds=range(6), n=200)
    simulate_runs(tmp_path, ratios=(0,), cnn_seeds=range(6, 12), n=200)
    simulate_runs(tmp_path, ratios=(.2,), hows=('add',), cnn_seeds=range(12), n=200)
    t = conclude(results(tmp_path), confirm=6)
    assert t[t.headline].ratio.item() == .4 and t[t.headline].verdict.item() == 'none' and 'no classifier seeds from 6' in t[t.headline].problem.item()
    assert t[t.headline][['low', 'p', 'p_alone', 'effect', 'sentence']].isna().all(None), 'nothing of all seeds is left'
    simulate_runs(tmp_path, planted, ratios=(.4,), hows=('add',), cnn_seeds=range(6, 12), n=200)
    f = results(tmp_path)
    body, late = report(f, confirm=6, progress=False).body, report(f[f.cnn_seed >= 6], progress=False).body
    said = lambda html: re.findall('Including the choice of test images[^<]*', html)
    assert said(body) == said(late) != said(report(f, progress=False).body) and 'Recall by class' in body
    simulate_runs(tmp_path, ratios=(.3,), hows=('add',), cnn_seeds=range(6), n=200)        # the sweep that was advised has one ratio
    assert 'Recall by class' in report(tmp_path, confirm=6, progress=False).body
    assert 'at this ratio with seeds from 6:' in report(tmp_path, confirm=6, progress=False).body

def test_nothing_fresh_elsewhere(tmp_path):
    "A setting without fresh seeds says so, and keeps its section"
    simulate_runs(tmp_path, planted, ratios=(0, .4), hows=('add',), cnn_seeds=range(12), n=200)
    simulate_runs(tmp_path, planted, ratios=(0, .4), hows=('add',), cnn_seeds=range(6), n=200, real_share=.5)
    rep = report(tmp_path, confirm=6, progress=False)
    assert [o.startswith('real share 0.5: No verdict') and 'no classifier seeds from 6' in o for o in rep.sentences] == [True, False]
    assert len(rep.table) == 2 and rep.body.count('Metrics by ratio') == 2
    f = results(tmp_path); f.attrs['wall'] = 90.                             # simulated runs take no time
    assert 'By the clock, stages of the runs of all settings' in report(f, confirm=6, progress=False).body

def test_a_metric_by_hand_settles_a_disagreement(few):
    f = results(few)
    f['declared_metric'] = np.where(f.ratio == .3, 'macro_f1', 'accuracy')
    with pytest.raises(BadInput, match='different metrics'): report(f, progress=False)
    assert '(the runs declare macro-F1)' in report(f, metric='accuracy', progress=False).body

def test_a_sweep_that_leaves_the_metric_to_the_balance(few):
    "Its runs were declared by another sweep"
    f = results(few).assign(declared_metric='macro_f1')
    assert declared_metric(f) == 'macro_f1'
    f.attrs['declared'] = dict(hash='a', margin=.03, metric=None, declared='2026-01-01', finished_before=0)
    f.loc[f.ratio == 0, 'margin'] = .01
    assert declared_metric(f) == 'accuracy' and 'given by hand' not in report(f, progress=False).body

def test_recalls_are_corrected_for_all_classes(tmp_path):
    "Those that are shown were picked by their effect on the same images"
    classes = [f'class {i:02}' for i in range(20)]
    simulate_runs(tmp_path, ratios=(0, .4), hows=('add',), vocab=classes, n=400)
    body, f = report(tmp_path, progress=False).body, results(tmp_path)
    table = body.split('Recall by class, ')[-1]
    assert 'p is corrected for 20 classes' in table and 'The 12 of 20 classes' in body
    at = {c: differences(f, 'recall', class_=c).iloc[0] for c in classes}
    p = dict(zip(classes, joint_p([np.reshape(o.singles, (-1, o.cnn_seeds)).mean(0) for o in at.values()])))
    shown = re.findall(r'>(class \d+)</th>.*?<td[^>]*>([^<]*)</td></tr>', table)
    assert len(shown) == 12 and all(abs(float(v) - p[c]) < .001 for c, v in shown if v[0] != '<'), shown

def test_one_gan_is_said_beside_an_arm_without_pairs(few):
    for d, r in records(few).items():                                    # its seeds have no baseline
        if r['given']['ratio'] == .5 and r['given']['cnn_seed'] < 2: shutil.rmtree(d)
    remove(few, ratio=0, cnn_seed=2)
    f = results(few)
    t = conclude(f)
    assert t.gan_seeds.tolist() == [1, 0] and any('one trained GAN' in o for o in limits(f, t))

def test_fresh_seeds_for_a_small_level(tmp_path):
    "As many as can decide at the level of the page, and a command that judges at it"
    simulate_runs(tmp_path, planted, ratios=(0, .1, .2, .3, .4), hows=('add',), cnn_seeds=range(9), n=150)
    f = results(tmp_path)
    t = conclude(f, alpha=.01)
    t.loc[t.headline, ['verdict', 'p_alone', 'p']] = 'undecided', .005, .02
    said = to_xml(Div(*_verdict_part(f, t, .02, .01)), indent=False)
    assert '--seeds 9..16' in said.replace('--cnn_seed', '--seeds') and '--confirm 9 --alpha 0.01' in said, said

def test_a_level_by_the_command(few, capsys):
    level = results(few).level.dropna().unique()[0]
    assert main([str(few), '--only', f'level={level}']) == 0 and 'Undecided' in capsys.readouterr().out

def test_one_recipe_and_one_pool(tmp_path):
    "Runs of an earlier recipe, or with an earlier pool of the same name, are not averaged with the others"
    simulate_runs(tmp_path, ratios=(0, .5), hows=('add',), n=200)
    f = results(tmp_path)
    arm, late = f.ratio > 0, f.cnn_seed > 2
    new = f.assign(finished=f.finished.astype(str).where(~late, '2027'))
    pools = new.assign(pool_hash=f.pool_hash.astype(object).where(~(arm & late), 'another'))
    p, = paired_runs(pools)
    assert p.cnn_seeds == [3, 4, 5] and '3 runs with another pool' in p.missing
    recipes = new.assign(recipe_hash=f.recipe_hash.astype(object).where(~late, 'another'))
    p, = paired_runs(recipes)
    assert p.cnn_seeds == [3, 4, 5] and '6 runs of another recipe' in p.missing
    splits = new.assign(train_hash=f.train_hash.astype(object).where(~late, 'another'))
    p, = paired_runs(splits)
    assert p.cnn_seeds == [3, 4, 5] and '6 runs of another split or extractor' in p.missing
    p, = paired_runs(new.assign(train_hash=f.train_hash.astype(object).where(~arm, 'another')))
    assert not len(p) and len(paired_runs(f.drop(columns='train_hash'))[0]) == 6, 'old tables have none'
    p, = paired_runs(new.assign(recipe_hash=f.recipe_hash.astype(object).where(~arm, 'another')))
    assert not len(p) and set(conclude(recipes).verdict) == {'undecided'}

def test_folds_are_a_setting(tmp_path):
    "Arms with five folds and baselines with three are no pairs"
    for folds, ratios in ((3, (0, .5)), (5, (.3,))): simulate_runs(tmp_path, ratios=ratios, hows=('add',), cnn_seeds=range(2), folds=folds, n=60)
    five, three = paired_runs(results(tmp_path))[::-1]
    assert (five.arm['ratio'], len(five)) == (.3, 0) and (three.arm['ratio'], three.folds, len(three)) == (.5, 3, 6)

def test_many_classes_or_folds_are_paid_for(tmp_path):
    "The p of a recall in a cross-validation is at least Bonferroni's of the corrected t-test"
    simulate_runs(tmp_path, planted, ratios=(0, .4), hows=('add',), cnn_seeds=range(3), folds=4, n=100)
    f = results(tmp_path)
    own = {c: differences(f, 'recall', class_=c).p.item() for c in f['class'].dropna().unique()}
    table = report(f, progress=False).body.split('p is corrected for')[-1]
    shown = [re.search(f'>{c}</th>.*?<td[^>]*>([^<]*)</td></tr>', table)[1] for c in own]
    assert all(o == '<0.001' or float(o) >= min(1, len(own)*p) - .001 for o, p in zip(shown, own.values())), shown

def test_generators_are_flipped_too(tmp_path):
    "With six GANs p is not below that of the means of the GANs"
    simulate_runs(tmp_path, planted, ratios=(0, .2, .4), hows=('add',), gan_seeds=range(6), n=100)
    f = results(tmp_path)
    t, pairs = conclude(f), paired_runs(f)
    least = joint_p([(p.value - p.base).mean(1) for p in pairs])
    assert (t.p.to_numpy(float) >= least - 1e-12)[~t.headline].all() and len(pairs) == 2
    assert not any('trained GAN' in o for o in limits(f, t))
    f['ratio'] = f.ratio.where((f.ratio < .4) | (f.gan_seed < 5), .3)                       # one arm with fewer GANs, and a control
    simulate_runs(tmp_path/'more', ratios=(.2,), hows=('add',), treatments=('oversample',), n=100)
    f = pd.concat([f[f.ratio != .3], results(tmp_path/'more')])
    t, pairs = conclude(f), paired_runs(f)
    i, = np.flatnonzero((t.ratio == .2) & (t.treatment == 'synthetic'))
    assert t.p[i] >= joint_p([(pairs[i].value - pairs[i].base).mean(1)])[0] - 1e-12 and sorted(t.gan_seeds) == [1, 5, 6]

def test_declared_by_some_runs_only(few):
    "Runs that declare no metric mean the one by balance: where others declare another, there is no verdict"
    f = results(few)
    assert declared_metric(f) == 'accuracy'
    named = f.assign(declared_metric=f.declared_metric.astype(object).where(f.cnn_seed > 0, 'macro_f1'))
    with pytest.raises(BadInput, match='different metrics'): conclude(named)
    f['declared_metric'] = np.where(f.ratio > 0, 'macro_f1', None)                          # as with a judge's or a teacher's run
    assert declared_metric(f) == 'macro_f1'

def test_robustness_of_one_side(few):
    "The verdict stands where only arms, or only baselines, were evaluated under corruptions"
    whole = report(few, progress=False).sentences
    for d, r in records(few).items():
        if r['given']['ratio']: continue
        for p in few.glob('robustness/*/record.json'):
            if json.loads(p.read_text())['inputs']['split'] == d.name: shutil.rmtree(p.parent)
    rep = report(few, progress=False)
    assert rep.sentences == whole and 'evaluated for one side of each pair only' in rep.html

def test_a_control_that_cannot_be_compared(tmp_path):
    "It is not called missing"
    simulate_runs(tmp_path, ratios=(0, .3), hows=('add',), n=100)
    simulate_runs(tmp_path, ratios=(.3,), hows=('add',), treatments=('oversample',), cnn_seeds=[0], n=100)
    html = report(tmp_path, progress=False).html
    assert 'one pair decides nothing' in html and 'no control with oversampled' not in html and 'no control with class weights' in html

def test_no_exchange_rate_from_failed_runs(tmp_path):
    for share in .25, .5, 1.: simulate_runs(tmp_path, ratios=(0, .5), hows=('add',), n=200, real_share=share)
    f = results(tmp_path)
    assert len(exchange_rate(f)) == 1 and len(exchange_rate(f.assign(problem='It did not learn.'))) == 0

def test_an_exchange_rate_is_not_that_of_longer_training(tmp_path):
    "More epochs at one share, with mixtures or without, are no synthetic images"
    grow = lambda given: .1*np.log(given['real_share']) + .06*(given['cnn_epochs'] > 20)
    for share in (.1, .3, 1.): simulate_runs(tmp_path, grow, ratios=(0,), n=400, real_share=share)
    simulate_runs(tmp_path, grow, ratios=(.3,), hows=('add',), n=400, real_share=.1, cnn_epochs=60)
    assert len(exchange_rate(results(tmp_path))) == 1, 'of shares .3 and 1, and mixtures at .1: the baseline at .1 is another training'
    shares = exchange_rate(results(tmp_path)).shares[0]
    simulate_runs(tmp_path, grow, ratios=(0,), n=400, real_share=.1, cnn_epochs=60)
    simulate_runs(tmp_path, grow, ratios=(0,), n=400, real_share=.3, cnn_epochs=60)
    o, = exchange_rate(results(tmp_path)).to_dict('records')
    assert (shares, o['shares']) == (2, 2), 'share .3 has two lengths'
    simulate_runs(tmp_path, ratios=(0, .3), hows=('add',), n=200, space='feature', head='linear', head_epochs=10)
    assert exchange_rate(results(tmp_path)).shares.tolist() == [2], 'runs on vectors in the same folder'

def test_exchange_rates_say_whose_they_are(tmp_path):
    for share, arch in product((.25, .5, 1.), ('default', 'sngan')):
        simulate_runs(tmp_path, ratios=(0, .5), hows=('add',), n=200, real_share=share, gan_arch=arch)
    said = ' '.join(_exchange(exchange_rate(results(tmp_path)), .05))
    assert all(f"Exchange rate, small CNN (the study's), gan arch {k}:" in said for k in ('default', 'sngan'))

def test_arms_of_unequal_seeds(tmp_path):
    "Those with enough seeds compete for the headline, by their gain if none is common; caption and table agree"
    simulate_runs(tmp_path, ratios=(0,), cnn_seeds=range(12), n=200)
    simulate_runs(tmp_path, ratios=(.2,), hows=('add',), cnn_seeds=range(6), n=200)
    simulate_runs(tmp_path, planted, ratios=(.4,), hows=('add',), cnn_seeds=range(6, 12), n=200)
    simulate_runs(tmp_path, planted, ratios=(.5,), hows=('add',), cnn_seeds=range(2), n=200)
    rep = report(tmp_path, progress=False)
    assert rep.table[rep.table.headline].ratio.tolist() == [.4] and len(rep.sentences) == 1 and 'no verdict.' not in rep.html
    base = rep.table.baseline.mean()
    assert f'Ratio 0: {100*base:.1f} %' in rep.html and 'a point is ratio 0 plus the paired difference' in rep.html

def test_heads_on_extractors_of_unequal_training(tmp_path):
    "Each has its own name and figures"
    for epochs in (5, 20): simulate_runs(tmp_path, ratios=(0, .3), hows=('add',), n=200, space='feature', head='linear',
                                         head_epochs=10, cnn_epochs=epochs)
    rep = report(tmp_path, progress=False)
    assert all(f'its extractor {e}' in s for e, s in zip((5, 20), sorted(rep.sentences, key=lambda s: 'extractor 20' in s)))

def test_alpha_reaches_the_tables(tmp_path):
    "Six seeds decide nothing at the level .01, five something at .1"
    simulate_runs(tmp_path, planted, ratios=(0, .4), hows=('add',), n=200)
    rep = report(tmp_path, alpha=.01, progress=False)
    assert '6 classifier seeds decide nothing' in str(rep) and '99 % intervals' not in rep.html
    five = report(results(tmp_path, cnn_seed=range(5)), alpha=.1, progress=False)
    assert '90 % intervals of the paired difference' in five.html

def test_clusters_of_images(tmp_path):
    "Near copies and subjects count as one image each"
    simulate_runs(tmp_path, ratios=(0, .5), hows=('add',), n=120)
    f, file = results(tmp_path), next(tmp_path.glob('parts/*/parts.parquet'))
    p, = paired_runs(f)
    x = _image_differences(p, tmp_path)
    assert (_by_cluster(x, p.base_runs[0], tmp_path) == x).all()
    t = pd.read_parquet(file)
    t.assign(near=np.arange(120)//6, subject=[f'p{i//12}' for i in range(120)]).to_parquet(file)
    c = _by_cluster(x, p.base_runs[0], tmp_path)
    assert c.shape[-1] == 10 and np.allclose(c.mean(-1), x.mean(-1)) and np.allclose(c[0, 0, 0], x[0, 0, :12].sum()/12)
    same = np.repeat(np.random.default_rng(0).normal(size=(1, 6, 10)) + np.arange(10)/5, 12, -1)
    assert image_se(_by_cluster(same, p.base_runs[0], tmp_path)) > 3*image_se(same)

def test_few_subjects_say_little_about_other_images(tmp_path):
    "Two subjects have one degree of freedom; one says nothing at all"
    simulate_runs(tmp_path, lambda given: np.array([0, 0, .3, .3, .3]), ratios=(0, .4), hows=('add',), n=300)
    f, file = results(tmp_path), next(tmp_path.glob('parts/*/parts.parquet'))
    t, r = pd.read_parquet(file), conclude(f).iloc[0]
    def said(subject):
        t.assign(subject=[subject(i) for i in range(300)]).to_parquet(file)
        return ' '.join(_for_other_images(f, r, .02, .05))
    def width(text): return float.__rsub__(*(float(o.replace('−', '-')) for o in re.search(r'is (\S+) to (\S+) points', text).groups()))
    two, many = said(lambda i: f'{i % 5 > 1}'), said(str)
    assert '(300 in 2 groups)' in two and '(300)' in many and width(two) == pytest.approx(100) and width(many) < 20
    assert 'not for others' in two and said(lambda i: 'me').startswith('All test images belong together')

def test_what_holds_for_these_images_only(grid, monkeypatch):
    f = results(grid, cnn='poster')
    said = 'is shown for these test images, and not for others'
    assert said not in report(f, progress=False).body
    monkeypatch.setattr('synthrob.sweep.report.image_se', lambda x: .05)
    assert f"So 'better' {said}".replace("'", '&#x27;') in report(f, progress=False).body.replace('&#39;', '&#x27;').replace("'", '&#x27;')

def test_a_margin_given_by_hand(few):
    assert 'given by hand; the runs declare 2' in report(few, margin=.06, progress=False).body
    assert '(the runs declare accuracy)' in report(few, metric='macro_f1', progress=False).body
    assert 'by hand' not in report(few, progress=False).body

def test_what_was_left_out_of_the_data(few):
    for p in few.glob('data/*/record.json'):
        write_json(p, json.loads(p.read_text()) | dict(ignored=[dict(label='sad', reason='masks', n=3, name='x_mask.png')]))
    assert '>3 of sad: masks</td>' in report(few, progress=False).html

def test_what_was_left_out_is_that_of_the_setting(few):
    "Another treatment of copies in the same folder leaves out other images"
    own, = few.glob('parts/*/record.json')
    r = json.loads(own.read_text())
    other = own.parent.with_name('f'*16)/own.name
    write_json(own, r | dict(report=dict(removed=dict(leak=2))))
    write_json(other, r | dict(hash='f'*16, report=dict(removed=dict(near=7))))
    assert '>2 copies of held-out images</td>' in report(few, progress=False).html

def test_resumed_stages_have_no_time(few):
    "Theirs is that of the last part only"
    total = costs(results(few)).total.iloc[-1]
    gan, = few.glob('gan/*/record.json')
    write_json(gan, json.loads(gan.read_text()) | dict(resumed=True, seconds=1.))
    f = results(few)
    assert total - costs(f).total.iloc[-1] == 100 and 'interrupted and resumed: 1.' in report(f, progress=False).html
    assert costs(f[~f.metric.str.contains('seconds')]).made.isna().all(), 'all of them were'

def test_commands_for_missing_controls(tmp_path):
    import shlex
    from synthrob.sweep.command import parser
    simulate_runs(tmp_path, ratios=(0, .3), hows=('add',), n=100)
    html = report(tmp_path, progress=False).html
    found = re.findall(r'synthrob_sweep ([^<]+)', html)
    assert [parser().parse_args(shlex.split(o)).treatment for o in found] == ['oversample', 'class_weights']

def test_a_run_is_missing(few):
    assert remove(few, ratio=.3, cnn_seed=1) == 1
    rep = report(few, progress=False)
    row = rep.table.set_index('ratio').loc[.3]
    assert (row.pairs, row.missing) == (2, 1) and '1 of 2 arms lack runs' in rep.html
    pairs, = (p for p in paired_runs(results(few)) if p.arm['ratio'] == .3)
    assert pairs.missing == ['GAN seed 0, classifier seed 1'] and pairs.cnn_seeds == [0, 2]

def test_a_baseline_is_missing(few):
    assert remove(few, ratio=0, cnn_seed=2) == 1
    assert report(few, progress=False).table.pairs.tolist() == [2, 2]
    assert [p.missing for p in paired_runs(results(few))] == [['baseline with classifier seed 2']]*2

def test_holes_in_a_grid_of_seeds(tmp_path):
    simulate_runs(tmp_path, ratios=(0, .5), hows=('add',), gan_seeds=range(3), cnn_seeds=range(4), n=100)
    remove(tmp_path, ratio=.5, gan_seed=1, cnn_seed=0), remove(tmp_path, ratio=.5, gan_seed=1, cnn_seed=3)
    p, = paired_runs(results(tmp_path))
    assert p.gan_seeds == [0, 2] and p.cnn_seeds == [0, 1, 2, 3] and not np.isnan(p.diffs).any()
    assert len(p.missing) == 3 and p.missing[-1].startswith('2 complete pairs dropped')

def test_times_missing_in_records_of_other_stages():
    assert _wall([dict(started='2026-01-01T00:00:00+00:00', finished='2026-01-01T00:01:00+00:00'), {}, dict(started='x')]) == 60

def test_unfinished_and_damaged_runs_cost_only_themselves(few):
    whole = results(few)
    a, b, c, d = list(records(few))[:4]
    (a/'record.json').unlink()
    (b/'record.json').write_bytes(b'\x00\xff')
    (c/'record.json').write_text(json.dumps(json.loads((c/'record.json').read_text()) | dict(test=None)))
    robust = {json.loads(p.read_text())['inputs']['split']: p.parent for p in few.glob('robustness/*/record.json')}
    (robust[d.name]/'corruptions.parquet').write_bytes(b'not parquet')
    f = results(few)
    assert {k: v for k, v in f.attrs['skipped'].items() if v} == dict(unfinished=1, damaged=2, robustness_damaged=1)
    assert set(f.run) == set(whole.run) - {a.name, b.name, c.name}
    assert d.name not in set(f[f.metric == 'corruption_accuracy'].run) and d.name in set(f[f.metric == 'accuracy'].run)
    same = whole[whole.run.isin(f.run) & (whole.metric == 'accuracy')]
    assert sorted(same.value) == sorted(f[f.metric == 'accuracy'].value)

def test_predictions_that_cannot_be_read(grid, page, tmp_path):
    assert page.html.count('Including the choice of test images (800), the 95 % interval is +') == 2
    root = tmp_path/'runs'
    simulate_runs(root, ratios=(0, .5), hows=('add',), n=100)
    assert remove(root, file='predictions.parquet', ratio=0) == 6
    assert 'predictions of these runs cannot be read' in report(root, progress=False).html

def test_images_are_matched_by_index(grid):
    pairs = paired_runs(results(grid, cnn='poster', how='add', treatment='synthetic', ratio=[0, .4]))[0]
    right = _image_differences(pairs, grid)
    assert right.shape == (1, 6, 800) and right.mean(-1)[0] == pytest.approx(pairs.diffs)
    p = grid/'split'/pairs.runs[0, 0]/'predictions.parquet'
    t, kept = pd.read_parquet(p), p.read_bytes()
    try:
        t.sample(frac=1, random_state=0).to_parquet(p)
        assert (_image_differences(pairs, grid) == right).all()
        t[t['index'] > 0].to_parquet(p)
        with pytest.raises(ValueError, match='different images'): _image_differences(pairs, grid)
    finally: p.write_bytes(kept)

def test_one_seed(few):
    rep = report(few, progress=False, cnn_seed=0)
    assert rep.table.verdict.isna().all() and rep.table.low.isna().all()
    assert rep.sentences[0].startswith('Undecided') and 'There is 1 classifier seed.' in rep.html

def test_few_seeds_are_reported(few):
    rep = report(few, progress=False)
    assert rep.sentences[0].startswith('Undecided') and 'its smallest p-value here is 0.25' in rep.html

def test_one_ratio(few):
    rep = report(few, progress=False, ratio=[0, .5])
    assert rep.table.chosen.tolist() == [True] and 'only one ratio was run' in rep.html

def test_a_control_only_with_few_images(tmp_path):
    simulate_runs(tmp_path, ratios=(0, .3), hows=("add",), treatments=("oversample",), real_share=.1, n=100)
    f = results(tmp_path)
    assert any("one sample of those" in o for o in limits(f, conclude(f)))

def test_one_ratio_of_control_only(tmp_path):
    simulate_runs(tmp_path, ratios=(0, .5), hows=('add',), treatments=('oversample',), cnn_seeds=range(2), n=100)
    rep = report(tmp_path, progress=False)
    assert rep.sentences == [] and 'there is no verdict' in rep.html and 'controls only' in rep.html

@pytest.mark.parametrize('where, sentence', [
    (dict(ratio=[.3, .5]), 'There is no run at ratio 0, the baseline: run ratio=0'),
    (dict(ratio=0), 'All runs are at ratio 0: run another ratio'),
    (dict(ratio=.9), 'ratio=0.9 has no runs: choose from 0.0, 0.3, 0.5.'),
    (dict(raito=.3), "did you mean 'ratio'?"),
    (dict(alpha=95), 'alpha=95'), (dict(margin=3), 'margin=3')])
def test_one_clear_sentence(few, where, sentence):
    with pytest.raises(BadInput) as e: report(few, progress=False, **where)
    assert sentence in str(e.value) and '\n' not in str(e.value)

def test_nothing_there(tmp_path, capsys):
    for folder, sentence in ((tmp_path/'no', 'There is no folder'), (tmp_path, 'There is no finished run')):
        with pytest.raises(BadInput, match=sentence): results(folder)
        assert main([str(folder)]) == 2
        assert capsys.readouterr().err.startswith(f'synthrob_report: {sentence}')
    assert not list(tmp_path.iterdir()), 'nothing is written'

def test_margins_that_disagree(few):
    simulate_runs(few, ratios=(.7,), hows=('add',), cnn_seeds=range(3), n=200, margin=.01)
    with pytest.raises(BadInput, match=r'different equivalence margins \(0.01, 0.02\)'): report(few, progress=False)
    assert 'given by hand' in report(few, margin=.01, progress=False).html
    assert declared_margin(results(few, ratio=[0, .7]), .03) == .03

@pytest.mark.slow
def test_settings_are_kept_apart(few):
    "Runs with a tenth of the images, three epochs or another GAN are never paired with the others"
    more = dict(hows=('add',), cnn_seeds=range(3), n=200)
    simulate_runs(few, ratios=(0, .5), real_share=.1, **more)
    simulate_runs(few, ratios=(0, .5), cnn_epochs=3, **more)
    simulate_runs(few, ratios=(.5,), gan_width=64, **more)
    f, of = results(few), records(few)
    for p in paired_runs(f):
        for run, zero in zip(p.runs[0], p.base_runs):
            a, b = (of[few/'split'/h]['given'] for h in (run, zero))
            assert [a[k] for k in ('real_share', 'cnn_epochs', 'cnn_seed')] == [b[k] for k in ('real_share', 'cnn_epochs', 'cnn_seed')]
    assert [name for name, _ in by_setting(f)] == ['real share 0.1, gan width 32', 'real share 1, gan width 32', 'real share 1, gan width 64']
    rep = report(few, progress=False)
    assert rep.html.count('<h2>Setting: ') == 3 and "small CNN (the study's), 3 epochs" in rep.html
    assert len(rep.sentences) == 4 and sum(s.startswith('real share 1, gan width 32: ') for s in rep.sentences) == 2

def test_settings_with_metrics_of_their_own(tmp_path):
    for data, metric in ('faces', None), ('fer2013', 'macro_f1'): simulate_runs(tmp_path, ratios=(0, .4), hows=('add',), n=100, data=data, metric=metric)
    rep = report(tmp_path, progress=False)
    assert len(rep.sentences) == 2 and set(rep.table.metric) == {'accuracy', 'macro_f1'}

def test_vectors_and_images_are_kept_apart(tmp_path):
    "Heads are compared with heads; the extractor, trained at ratio 0, is no baseline and no setting of its own"
    few = dict(hows=('add',), cnn_seeds=range(3), n=200)
    simulate_runs(tmp_path, ratios=(0,), **few)
    simulate_runs(tmp_path, ratios=(0, .5), space='feature', head='linear', head_epochs=10, **few)
    rep = report(tmp_path, progress=False)
    pairs, = paired_runs(rep.frame)
    assert (pairs.arm['space'], pairs.arm['head'], pairs.arm['cnn'], len(pairs)) == ('feature', 'linear', 'poster', 3)
    assert len(rep.sentences) == 1 and 'linear head on the small CNN' in rep.sentences[0] and 'Setting' not in rep.html
    simulate_runs(tmp_path, ratios=(.5,), **few)
    assert [p.arm['space'] for p in paired_runs(results(tmp_path))] == ['feature', 'pixel'] and len(by_setting(results(tmp_path))) == 2

def test_a_pool_made_elsewhere(tmp_path):
    simulate_runs(tmp_path, ratios=(0, .5), hows=('add',), cnn_seeds=range(2), n=200, pool='my_pool')
    html = report(tmp_path, progress=False).html
    assert 'one pool that was made elsewhere' in html and 'one trained GAN' not in html

def test_level_of_robustness(few):
    "Three runs evaluated at a second level: the level of most runs is the default, each can be selected"
    for d, r in list(records(few).items())[:3]:
        fast, = (p.parent for p in few.glob('robustness/*/record.json') if json.loads(p.read_text())['inputs']['split'] == d.name)
        said = json.loads((fast/'record.json').read_text())
        stage = Stage('robustness', dict(level=dict(said['params']['level'], n=7)), out=few, version=r['hash'])
        shutil.copytree(fast, stage.path)
        about = said['about'] | dict(level=said['about']['level'] | dict(name='full'))
        write_json(stage.file('record.json'), said | dict(hash=stage.hash, params=stage.params, about=about))
    n = lambda **kw: results(few, **kw).query("metric == 'mca'").run.nunique()
    assert (n(), n(level='fast'), n(level='full')) == (9, 9, 3)
    with pytest.raises(BadInput, match="level='enough' has no runs"): results(few, level='enough')

def test_without_robustness(few):
    shutil.rmtree(few/'robustness')
    rep = report(few, progress=False)
    assert 'Robustness was not evaluated.' in rep.html and 'mean corruption accuracy' not in rep.html

@pytest.mark.slow
def test_cells_of_a_sweep(few):
    "Only the runs of the cells; failed cells are counted, with their errors"
    cells = []
    for i, (d, r) in enumerate(records(few).items()):
        cell = Stage('cell', dict(i=i), out=few)
        if r['given']['ratio'] != .3: write_json(cell.file('record.json'), dict(hash=cell.hash, split=r['hash']))
        elif r['given']['cnn_seed']: write_json(cell.file('error.json'), dict(error='ValueError: <no> luck'))
        cells.append(cell)
    f = results(few, cells=cells)
    assert sorted(f.ratio.unique()) == [0, .5]
    assert (f.attrs['skipped']['cells_failed'], f.attrs['skipped']['cells_open']) == (2, 1)
    html = report(few, cells=[c.hash for c in cells], progress=False).html
    assert 'A cell failed with: ValueError: &lt;no&gt; luck' in html and '2 failed cells, 1 open cells' in html
    said = dict(hash='abc', declared='2026-02-03T04:05:06+00:00', finished_before=0, margin=.05, cells=[dict(hash=c.hash) for c in cells])
    write_json(few/'sweep'/'abc'/'sweep.json', said)
    rep = report(few, cells='abc', progress=False)
    assert rep.frame.run.nunique() == 6, 'the margin of the sweep overrides that of older runs'
    assert 'Equivalence margin: 5 points of accuracy, declared on 2026-02-03 by the sweep abc, when 0 of its runs were done' in rep.html
    with pytest.raises(BadInput, match="There is no sweep 'xyz' in .*: choose one of abc."): results(few, cells='xyz')
    assert main([str(few), '--sweep', 'abc', '--out', str(few/'page')]) == 0

def test_a_real_sweep(tmp_path):
    "Cells written by `synthrob_sweep` lead to their runs, and its declared margin is used"
    from synthrob.sweep.grid import Sweep
    few = dict(ratios=(0, .3), hows=('add',), cnn_seeds=range(2), n=100)
    simulate_runs(tmp_path, **few)
    sweep = Sweep(dict(ratio=[0, .3], how='add', cnn_seed=2), out=str(tmp_path), margin=.04)
    runs = {(r['given']['ratio'], r['given']['cnn_seed']): r['hash'] for r in records(tmp_path).values()}
    for c in sweep.cells[:-1]:
        write_json(c.stage.file('record.json'), dict(hash=c.hash, split=runs[c.given['ratio'], c.given['cnn_seed']]))
    sweep.declare()
    rep = report(tmp_path, cells=sweep, progress=False)
    assert rep.frame.run.nunique() == len(sweep.cells) - 1 == 3 and rep.frame.attrs['skipped']['cells_open'] == 1
    assert declared_margin(rep.frame) == .04 and set(rep.frame.margin) == {.02}

def test_controls_have_no_gan(tmp_path):
    "A control is compared with every GAN, at the same ratio"
    simulate_runs(tmp_path, ratios=(0, .5), hows=('add',), treatments=('synthetic', 'oversample'), gan_seeds=(0, 1), cnn_seeds=range(2), n=100)
    syn, control = paired_runs(results(tmp_path))
    assert (syn.value.shape, control.value.shape, control.gan_seeds) == ((2, 2), (1, 2), [None])
    against, = paired_runs(results(tmp_path), against='oversample')
    assert against.diffs == pytest.approx(syn.diffs - control.diffs)

def test_smaller_is_better_for_calibration_error(grid):
    up, ece = differences(results(grid, cnn='poster')), differences(results(grid, cnn='poster'), 'ece')
    at = up.verdict == 'better'
    assert at.any() and (ece[at]['diff'] < 0).all() and 'worse' not in set(ece[at].verdict)

def test_figures_leave_the_notebook_as_it_was(grid, monkeypatch):
    "A notebook sets `interactive` with its first figure; our style must not undo it"
    import matplotlib as mpl, matplotlib.pyplot as plt
    f = results(grid, cnn='poster', how='add')
    def first(*args, real=plt.figure, **kwargs):
        mpl.rcParams['interactive'] = True
        return real(*args, **kwargs)
    monkeypatch.setattr(plt, 'figure', first)
    for plot, t in ((plot_ratio, differences(f)), (plot_corruptions, corruption_table(f))):
        try:
            plot(t)
            assert mpl.rcParams['interactive'] and mpl.rcParams['text.color'] != INK
        finally: mpl.rcParams['interactive'] = False; plt.close('all')

class Page(HTMLParser):
    "Tags of a page and their attributes; raises if a tag is not closed"
    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attrs = [], Counter(), []
        self.feed(html); self.close()
        assert not self.open, f'left open: {self.open}'
    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1; self.attrs.append((tag, dict(attrs)))
        if tag != 'meta': self.open.append(tag)
    def handle_startendtag(self, tag, attrs): self.tags[tag] += 1; self.attrs.append((tag, dict(attrs)))
    def handle_endtag(self, tag): assert self.open.pop() == tag, f'</{tag}> closes something else'

def test_the_page_stands_alone(page):
    html = page.html
    p = Page(html)
    assert not re.findall(r'https?:|url\((?!#)|@import', html) and not p.tags['script'] + p.tags['link'] + p.tags['img']
    ids = [a['id'] for _, a in p.attrs if 'id' in a]
    assert len(ids) == len(set(ids)) and set(re.findall(r'(?:href="|url\()#([\w-]+)', html)) == set(ids)
    drawn = [a for t, a in p.attrs if t == 'svg']
    assert len(drawn) == 2*(1 + 4 + 1 + 5 + 2) and all(a['role'] == 'img' and len(a['aria-label']) > 30 for a in drawn)
    assert p.tags['figure'] == p.tags['figcaption'] == 2*(4 + 5 + 2) and p.tags['table'] == p.tags['caption']
    assert 'width=device-width' in html and 'prefers-color-scheme:dark' in html and len(html) < 1_000_000

def test_the_order_of_the_page(page):
    want = ['Better: 40 %', 'Runs', 'Metrics by ratio', 'Recall by class', 'Corruptions and attacks', 'Cost', 'All arms',
            'What cannot be claimed']
    at = [page.body.index(o) for o in want]
    assert at == sorted(at)
    assert 'These runs are simulated' in page.body and 'SIMULATED' in page.body

def test_names_are_escaped(tmp_path):
    names = ('<img src=x onerror=alert(1)>', '"quoted" & \'single\'', '$broken', 'grade 1.25750')
    simulate_runs(tmp_path, ratios=(0, .5), hows=('add',), cnn_seeds=range(2), vocab=names, n=80)
    rep = report(tmp_path, progress=False)
    p = Page(rep.html)
    assert not p.tags['img'] and not any('onerror' in a for _, a in p.attrs)
    shown = [a['aria-label'] for t, a in p.attrs if t == 'svg']
    for name in names: assert any(f'recall of {name} ' in o for o in shown), 'and can be read'
    assert 'recall of grade 1.25750 (%)' in rep.html, 'only drawings are rounded'

def test_many_classes(tmp_path):
    names = tuple(f'class {i:02}' for i in range(15))
    simulate_runs(tmp_path, ratios=(0, .5), hows=('add',), cnn_seeds=range(2), vocab=names, n=150)
    html = report(tmp_path, progress=False).html
    assert 'The 12 of 15 classes whose recall changed most.' in html
    assert len({o for o in names if f'recall of {o} in per cent' in html}) == 12

def test_written_files(few, tmp_path, capsys):
    out = tmp_path/'page'
    assert main([str(few), '--out', str(out), '--only', 'ratio=0,.5', 'how=add']) == 0
    said = capsys.readouterr().out
    assert 'Undecided' in said and str(out/'report.html') in said and 'What cannot be claimed' in said
    f, csv, v = pd.read_parquet(out/'results.parquet'), pd.read_csv(out/'results.csv'), pd.read_csv(out/'verdicts.csv')
    assert sorted(f.ratio.unique()) == [0, .5] and len(f) == len(csv) and v.ratio.tolist() == [.5]
    assert not f.duplicated(['run', *VALUE[:-2]]).any(), 'a row per run and metric'
    assert csv.value.to_numpy() == pytest.approx(f.value.to_numpy(), nan_ok=True)
    assert (out/'report.html').read_text(encoding='utf-8').startswith('<!doctype html>')
    assert main([str(few), '--only', 'ratio']) == 2 and 'write a name and its values' in capsys.readouterr().err

def test_the_design_has_limits(tmp_path):
    "Two GANs, a part of the images, exact copies only, several settings"
    for n in (1000, 2000): simulate_runs(tmp_path, ratios=(0, .5), hows=('add',), gan_seeds=(0, 1), n=100, real_share=.1, copies='exact', gan_pick='best', gan_images=n)
    f = by_setting(results(tmp_path))
    said = ' '.join(limits(f[0][1], conclude(f[0][1]), settings=len(f)))
    for o in ('2 trained GANs', 'one sample of those', 'validation images, more than', 'Near copies were not looked for', 'There are 2 settings'): assert o in said, o
    assert 'The claim is about these 2 GANs.' in report(results(tmp_path), progress=False).body

def test_what_cannot_be_claimed(grid, few):
    f = results(grid)
    said = limits(f, conclude(f))
    for part in ('one trained GAN', 'up to 8 of 100 cases', 'on these 800 test images', 'Each classifier is judged on its own'):
        assert sum(part in o for o in said) == 1, part
    f = results(few)
    said = limits(f, conclude(f))
    for part in ('No control was run', 'There is one classifier, the small CNN', 'Undecided does not mean equal'): assert any(part in o for o in said), part
    f = f.assign(device=np.where(f.ratio == 0, 'cpu', 'cuda'))
    assert any('2 kinds of hardware' in o for o in limits(f, conclude(f)))

def test_an_arm_of_few_seeds_costs_the_others_nothing(tmp_path):
    simulate_runs(tmp_path, planted, ratios=(0, .2, .4), hows=('add',), n=400)
    alone = conclude(results(tmp_path))
    simulate_runs(tmp_path, ratios=(.5,), hows=('add',), cnn_seeds=range(2), n=400)
    both = conclude(results(tmp_path))
    few = both.ratio == .5
    assert both[few].verdict.item() == 'undecided' and 'at least 6 seeds' in both[few].sentence.item()
    for k in ('p', 'p_equivalence', 'verdict', 'among'): assert both[~few][k].tolist() == alone[k].tolist(), k

def test_a_judge_declares_no_margin(few):
    "It has the default, whatever its user declared"
    f = results(few)
    f['margin'] = np.where(f.ratio == 0, .02, .01)
    assert declared_margin(f) == .01 and 'given by hand' not in report(f, progress=False).body

def test_checks_that_asked_too_much_or_too_little():
    "A level with fewer seeds shows its interval; a size that only a GAN minds, and commas in a pattern, are no errors"
    from synthrob.split.params import check_params
    from synthrob.sweep.grid import values
    from synthrob.sweep.report import _interval
    row = pd.Series(dict(low=.01, high=.03, cnn_seeds=5, baseline=.5))
    assert _interval(row, .1) == '+1.0 to +3.0' and _interval(row) == ''
    assert check_params(dict(ratio=0, size=36, cnn='poster')).size == 36
    with pytest.raises(BadInput, match='size=36'): check_params(dict(ratio=.3, size=36, cnn='poster'))
    assert values('groups', r'(p\d{1,3})_') == [r'(p\d{1,3})_']
