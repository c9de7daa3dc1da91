"The eight lines of the README, on a folder of images"
from __future__ import annotations
import re, subprocess, sys
import pandas as pd, pytest
from synthrob.data.faces import emotions

SCRIPT = """from synthrob.all import *
images = prepare('folder', 'my_images', size=32)
train, valid, test = images.split(near=near_duplicates(images))
gan = gan_learner(train, nf=32);      gan.fit_gan(n_images=30_000)
pool = gan.sample_pool(1000)          # of each class
mixed = mix(train, pool, ratio=.3, how='add')
learn = cnn_learner(mixed, valid);    learn.fit_recipe()
evaluate(learn, test).table"""

@pytest.mark.slow
def test_eight_lines(faces, tmp_path, monkeypatch):
    "Word for word, with a shorter training"
    (tmp_path/'my_images').symlink_to(faces)
    monkeypatch.chdir(tmp_path)
    script = SCRIPT.replace('30_000', '640').replace('fit_recipe()', 'fit_recipe(2)')
    names = {}
    *lines, last = script.splitlines()
    exec('\n'.join(lines), names)
    table = eval(last, names)
    assert isinstance(table, pd.DataFrame) and set(emotions) <= set(table.index)
    learn, mixed, train = names['learn'], names['mixed'], names['train']
    assert mixed.epoch_len == len(train) and len(learn.dls.train) == max(1, len(train)//learn.dls.train.bs)
    assert len(learn.history) == 2 and len(names['gan'].history) > 0

def test_the_readme_shows_these_lines(repo):
    readme = (repo/'README.md').read_text(encoding='utf-8')
    assert re.sub(r'\s+', ' ', SCRIPT) in re.sub(r'\s+', ' ', readme)

def test_what_is_slow_to_import_waits_for_its_use():
    "A command that finds everything finished takes as long as its imports"
    code = """import sys
from synthrob.all import *
import synthrob.sweep.command
check_params({})
print(*{'torch._dynamo', 'torchvision', 'torchmetrics', 'nbformat', 'papermill'} & set(sys.modules))"""
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert r.returncode == 0 and not r.stdout.strip(), r.stdout + r.stderr[-2000:]
