"Ways to use the pool: soft labels, synthetic first, weights, epochs, adversarial training, each recorded and resumed exactly"
from __future__ import annotations
import json, subprocess, sys
import pytest, torch
from synthrob.core.basics import BadInput
from synthrob.core.training import Checkpoint
from synthrob.split.params import check_params
from synthrob.split.run import SplitRun
from synthrob.sweep.command import main
from synthrob.sweep.grid import Sweep, default_grid
from synthrob.sweep.report import report
from synthrob.sweep.results import differences, results
from test_split import SMALL, face_folder                                    # noqa: F401, a fixture

USES = dict(plain={}, pretrain=dict(schedule='pretrain'), weight=dict(synthetic_weight=.3), epochs=dict(how='add', equal='epochs'),
            soft=dict(labels='soft', temperature=3.), adversarial=dict(training='adversarial', attack_eps=.01))

def toy(folder, out, **more):
    return SplitRun(check_params(dict(path=str(folder), out=str(out), pool_seed=0, ratio=.5, **SMALL) | more)).fit()

@pytest.fixture(scope='module')
def runs(face_folder, tmp_path_factory):                                     # noqa: F811
    "A run of each use, and the baselines of two seeds"
    out = tmp_path_factory.mktemp('uses')
    made = {k: toy(face_folder, out, **o) for k, o in USES.items()}
    for o in {}, USES['adversarial']: made[f'zero {bool(o)}'] = toy(face_folder, out, ratio=0, **o)
    made['soft zero'] = toy(face_folder, out, ratio=0, **USES['soft'])
    made['noise'] = toy(face_folder, out, treatment='noise', **USES['adversarial'])
    return made, out

def test_a_teacher_is_no_missing_run(runs):
    "The baseline of the next seed, which gives soft labels, has no arm and needs none"
    frame = results(runs[1])
    assert frame[frame.ratio == 0].cnn_seed.nunique() == 2 and (differences(frame).missing == 0).all()

def test_each_use_is_a_run_of_its_own(runs):
    made, _ = runs
    assert len({r.stages['split'].hash for r in made.values()}) == len(made)
    assert len({r.stages['gan'].hash for r in made.values() if 'gan' in r.stages}) == 1, 'the GAN and the pool are shared'
    steps = {k: r.record['steps'] for k, r in made.items()}
    assert steps.pop('epochs') == 2*steps['plain'] and len(set(steps.values())) == 1
    teacher = made['soft'].record['inputs']['teacher']
    assert teacher == made['soft zero'].record['inputs']['teacher'] != made['zero False'].record['hash']
    assert made['soft'].record['params']['temperature'] == 3. and made['soft'].record['test']['n'] == 100
    assert 'schedule' not in made['plain'].record['params'], 'defaults are no part of the hash'

def test_a_gan_that_matches_classes(runs, face_folder):                        # noqa: F811
    "Its classifier is that of ratio 0 and seed 1, made once; not the judge, and no GAN without matching depends on it"
    made, out = runs
    r, guide = toy(face_folder, out, gan_arch='matched'), toy(face_folder, out, ratio=0, cnn_seed=1)
    assert r.stages['gan'].record['inputs']['guide'] == guide.record['hash'] != r.judge.stages['split'].hash
    assert 'guide' not in made['plain'].stages['gan'].record['inputs'] and r.record['test']['n'] == 100
    made_by = json.loads((r.stages['gan'].path/'record.json').read_text())['params']
    assert made_by['gan_arch']['matching'] == 1. and 'matching' not in made['plain'].stages['gan'].record['params']['gan_arch']
    with pytest.raises(BadInput, match="choose a GAN for vectors"): check_params(dict(gan_arch='matched', space='feature'))

def test_robust_accuracy_has_a_verdict(runs, tmp_path):
    made, out = runs
    r = made['adversarial'].record
    assert 0 <= r['test']['robust_accuracy'] <= r['test']['accuracy'] and 'robust_accuracy' not in made['plain'].record['test']
    frame = results(out).assign(problem='', doubt='')                                    # three epochs teach nothing
    t = differences(frame, 'robust_accuracy')
    assert set(t.treatment) == {'synthetic', 'noise'} and (t.training == 'adversarial').all()
    against = differences(frame, 'robust_accuracy', against='noise')
    assert len(against) == 1 and against['diff'].iloc[0] == pytest.approx(
        r['test']['robust_accuracy'] - made['noise'].record['test']['robust_accuracy'])
    frame['value'] = frame.value.mask(frame.metric == 'robust_accuracy', frame.value + .5)   # better than a constant answer
    page = report(frame[frame.training == 'adversarial'], tmp_path/'report', metric='robust_accuracy', progress=False)
    assert "robust accuracy of the small CNN (the study's), trained and attacked within 2.55/255 " in str(page)
    text = str(report(frame[frame.training == 'standard'], tmp_path/'all', progress=False))
    assert 'soft labels, temperature 3' in text
    assert 'trained on first' in (tmp_path/'all'/'report.html').read_text() and 'of weight 0.3' in (tmp_path/'all'/'report.html').read_text()

@pytest.mark.e2e
@pytest.mark.parametrize('use', ['pretrain', 'soft', 'adversarial'])
def test_stopped_and_started_again(runs, face_folder, tmp_path, use, monkeypatch):        # noqa: F811
    "A training that is stopped after an epoch ends like one that was not"
    made, _ = runs
    code = """import sys, json, os
import synthrob.cnn.learner as m
from synthrob.core.training import Checkpoint
class Stop(Checkpoint):
    def after_epoch(self): super().after_epoch(); os._exit(9) if self.tag and self.epoch == 1 else None
m.Checkpoint = lambda path, every, tag: Stop(path, 0, tag) if STUDENT in str(path) else Checkpoint(path, 0, tag)
from synthrob.split.core import run_split
run_split(**json.loads(sys.argv[1]))"""
    p = dict(path=str(face_folder), out=str(tmp_path), pool_seed=0, ratio=.5, **SMALL) | USES[use]
    student = SplitRun(check_params(p)).stages['split'].hash
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code.replace('STUDENT', repr(student)), json.dumps(p)], capture_output=True, text=True)
    assert r.returncode == 9, r.stderr[-2000:]
    starts, load = [], Checkpoint._load
    monkeypatch.setattr(Checkpoint, '_load', lambda self: (load(self), starts.append(self.start)))
    again = SplitRun(check_params(p)).fit()
    assert 2 in starts and again.record['resumed'] and again.record['history'] == made[use].record['history']
    assert torch.equal(again.evaluation().probs, made[use].evaluation().probs)

def test_sweeps(face_folder, tmp_path, capsys):                                   # noqa: F811
    "Controls come with the default grid; a metric without its figure is refused before anything runs"
    base = dict(data='folder', path=str(face_folder), robustness='none')
    grid = default_grid(base | dict(labels='soft'), tmp_path)
    cells = Sweep(grid, out=tmp_path).cells
    assert any(c.p.ratio == 0 and c.p.labels == 'soft' for c in cells), 'the teacher labels real images, too'
    grid = default_grid(base | dict(training='adversarial', attack_eps=.01), tmp_path)
    assert {c.p.treatment for c in Sweep(grid, metric='robust_accuracy', out=tmp_path).cells} == {'synthetic', 'oversample', 'noise'}
    with pytest.raises(BadInput, match='needs attack_eps'): Sweep(dict(ratio=[0, .5]), metric='robust_accuracy', out=tmp_path)
    flags = '--data', 'folder', '--path', str(face_folder), '--out', str(tmp_path), '--ratios', '0,.5', '--metric', 'robust_accuracy', '--dry_run'
    assert main([*flags, '--attack_eps', '.01']) == 0 and main(flags) == 2 and 'needs attack_eps' in capsys.readouterr().err
