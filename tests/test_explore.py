"Explorers: the views against the data they show, and in a browser by keyboard alone"
from __future__ import annotations
import json, os, re, shutil, socket, subprocess, sys, time
from base64 import b64decode
from html.parser import HTMLParser
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from synthrob.sweep.results import conclude, results
from synthrob.core.basics import BadInput, write_json
from synthrob.data.core import prepare
from synthrob.data.dataset import Dataset
from synthrob.data.faces import draw_faces, emotions
from synthrob.data.splits import splits
from synthrob.explore import CorruptionExplorer, DataExplorer, GANExplorer, SplitExplorer, explore
from synthrob.explore.data import finished_run, _image_groups
from synthrob.explore.panels import View
from synthrob.gan.learner import save_gan
from simulate import simulate_runs

class Pictures(HTMLParser):
    "Attributes of the pictures in a page"
    def __init__(self, html):
        super().__init__()
        self.all = []
        self.feed(html); self.close()
    def handle_starttag(self, tag, attrs):
        if tag == 'img': self.all.append(dict(attrs))

def pictures(view): return Pictures(view._repr_html_()).all
def pixels(img): return np.asarray(Image.open(BytesIO(b64decode(img['src'].split(',', 1)[1]))))

@pytest.fixture(scope='session')
def images() -> Dataset:
    "A hundred faces, of which 4 pairs are equal: one across parts, one with two labels, two within training"
    y = torch.arange(100) % 5
    x, part = draw_faces(y, size=32, seed=2, progress=False), np.where(np.arange(100) < 80, 'train', 'test')
    for a, b in ((0, 90), (1, 11), (2, 12), (3, 13)): x[a], y[a] = x[b], y[b]
    y[3] = (y[3] + 1) % 5
    return Dataset(x, y, emotions, dict(part=part))

@pytest.fixture(scope='session')
def sweep(tmp_path_factory) -> Path:
    "Ratios 0, .2 and .4, added and replaced, six seeds; adding 20 % is worth eight points"
    root = tmp_path_factory.mktemp('sweep')
    simulate_runs(root, lambda o: .08*((o['how'], o['ratio']) == ('add', .2)), ratios=(0, .2, .4), n=300)
    return root

@pytest.fixture(scope='session')
def gan(toy_gan, tmp_path_factory) -> Path:
    "The folder of a GAN with two sample sheets, as a training leaves it"
    at = tmp_path_factory.mktemp('runs')/'gan'/'0123456789abcdef'
    (at/'samples').mkdir(parents=True)
    save_gan(toy_gan.model, at/'gan.safetensors')
    for epoch, level in ((1, 60), (11, 200)): Image.new('L', (40, 30), level).save(at/'samples'/f'epoch_{epoch:04d}.png')
    write_json(at/'record.json', dict(hash=at.name, vocab=emotions, finished='2026-01-01', failure=None,
                                      curve=dict(epoch=[10], images=[640], intra_fid=[7.5])))
    return at

def test_pictures_have_alternatives_and_controls_names(images, sweep, gan):
    for e in (DataExplorer(images), CorruptionExplorer(images), GANExplorer(gan), SplitExplorer(sweep)):
        found = pictures(e.view)
        assert found and all(len(o['alt']) > 3 and o['width'] and o['height'] for o in found), e
        assert all(c.description and c.tooltip for c in e.controls.values()), e

def test_arms_that_differ_by_the_use_of_their_images(tmp_path):
    "Each can be chosen; names of classes may hold dollar signs"
    names = 'a$_$', 'b $x_{$ y', 'c'
    for use in ({}, dict(synthetic_weight=.5), dict(schedule='pretrain')):
        simulate_runs(tmp_path, ratios=(0, .3), hows=('add',), n=99, cnn_seeds=range(2), vocab=names, **use)
    e = SplitExplorer(tmp_path)
    arms = e.controls['arm'].options
    assert sorted(o.rpartition(', ')[2] for o in arms) == ['of weight 0.5', 'synthetic', 'trained on first']
    assert len(pictures(e.show(arm=arms[2], ratio=.3))) == 4

def test_severities_of_pairs_that_were_evaluated(tmp_path):
    simulate_runs(tmp_path, ratios=(0, .3), hows=('add',), n=100, gan_seeds=range(2), cnn_seeds=range(3))
    f = results(tmp_path)
    bare = f[(f.gan_seed == 1) | (f.cnn_seed == 2) & (f.ratio == 0)].run.unique()
    f = f[~(f.run.isin(bare) & f.metric.str.startswith('corruption'))]
    view = SplitExplorer(f).show(ratio=.3)
    assert 'means and range over 2 runs' in view._repr_html_()

def test_data_groups(images):
    s = splits(images)
    found, status = _image_groups(images, s), DataExplorer(images).status
    pairs = lambda k: sorted(tuple(sorted(g.tolist())) for g in found[k])
    assert pairs('copies') == [(0, 90), (1, 11), (2, 12), (3, 13)]
    assert pairs('leaks') == [(0, 90)] and status[0] == 'removed: leak' and status[90] == 'test'
    assert pairs('conflicting labels') == [(3, 13)] and set(status[[3, 13]]) == {'removed: conflict'}
    assert (status == 'removed: repeated').sum() == 2 and not found['flat'] and not found['near copies']
    assert (status == 'train').sum() == len(s.train) and (status == 'valid').sum() == len(s.valid)

def test_data_shows_the_images_it_names(images):
    for img in pictures(DataExplorer(images).show(what='copies')):
        name, rest = img['alt'].split(': ', 1)
        i = int(name)
        assert (pixels(img) == images.x[i, 0].numpy()).all() and rest.startswith(emotions[images.y[i]])

def test_data_pages_hold_every_image_once(images):
    e = DataExplorer(images)
    for label in (-1, 2):
        e.show(what='classes', label=label)
        names = []
        for page in range(1, e.controls['page'].max + 1):
            shown = pictures(e.show(page=page))
            assert 0 < len(shown) <= 6*e.page_size
            names += [int(o['alt'].split(':')[0]) for o in shown]
        assert sorted(names) == [i for i in range(100) if label < 0 or images.y[i] == label]

def test_corruption_without_a_classifier(images):
    "The clean image, and the one that `corrupt` makes of it with its own index"
    from synthrob.cnn.corruptions import corrupt
    e = CorruptionExplorer(images)
    clean, bad = pictures(e.show(name='gaussian_noise', severity=4, image=17))
    assert (pixels(clean) == images.x[17, 0].numpy()).all()
    assert (pixels(bad) == corrupt(images.x, 'gaussian_noise', 4)[17, 0].numpy()).all()
    clean, same = pictures(e.show(severity=0, image=17))
    assert clean['src'] == same['src']

def test_a_classifier_comes_from_its_run(faces, tmp_path):
    "With its test images and predictions; a folder that was moved is refused"
    from conftest import TOY
    from synthrob.split.core import run_split
    run = run_split(**TOY, path=faces, out=str(tmp_path), ratio=0.)
    e, ev = CorruptionExplorer(out=tmp_path), run.evaluation('test')
    for i in (0, len(e.images) - 1):
        text = e.show(severity=0, image=i).text
        assert f'is {ev.vocab[ev.y[i]]}.' in text and f'clean image: {ev.vocab[ev.pred[i]]} ({ev.probs[i].max():.0%})' in text
    moved = tmp_path/'split'/'0123456789abcdef'
    shutil.copytree(run.stages['split'].path, moved)
    with pytest.raises(BadInput, match='is damaged'): finished_run(moved)

def test_a_run_beside_other_data_of_its_name(faces, tmp_path):
    "Which of two folders `faces` a run was made from is found out, also where the other lacks its classes"
    from conftest import TOY
    from synthrob.split.core import run_split
    here, there = (shutil.copytree(faces, tmp_path/o/'faces') for o in 'ab')
    for c in 'fear', 'sad': shutil.rmtree(here/c)
    out = tmp_path/'runs'
    for o in here, there: prepare('folder', o, size=32, root=out)
    run = run_split(**TOY | dict(path=str(there), out=str(out), ratio=0., vocab='fear,sad'))
    assert finished_run(out=out).stages['split'].hash == run.stages['split'].hash

def test_exploring_never_trains(tmp_path):
    "Without finished runs, explorers make data at most"
    which, place = explore(tmp_path).children
    shown = {}
    for k in which.options:
        which.value = k
        shown[k] = place.children[0].value if k == 'sweep' else place.children[0].children[-1].value
    assert {p.name for p in tmp_path.iterdir()} == {'data'}
    assert 'untrained' in shown['GAN'] and 'synthrob_sweep' in shown['sweep']
    assert 'No classifier' in shown['corruptions'] and '<img' in shown['data']

def test_gan_sheets_and_quality(gan):
    e = GANExplorer(gan)
    shades = {ep: pixels(pictures(e.show(epoch=ep))[-1])[0, 0] for ep in (1, 11)}
    assert shades == {1: 60, 11: 200} and 'intra_fid 7.5 (epoch 10)' in e.show(epoch=1)._repr_html_()

def test_gan_ends_and_middle(gan):
    "At both ends the faces of the two seeds, whatever the path; between them the paths differ"
    e = GANExplorer(gan)
    here = lambda **kw: pictures(e.show(**kw))[e.steps]['src']
    assert here(a=1, b=2, t=0.) == here(a=1, b=9, t=0.) == here(a=5, b=1, t=1.)
    assert here(a=1, b=2, t=1., path='linear') == here(path='spherical')
    assert here(t=.5) != here(path='linear')

def test_split_agrees_with_the_report(sweep):
    t, e = conclude(results(sweep)), SplitExplorer(sweep)
    top = t[t.headline].iloc[0]
    assert e.values['ratio'] == top.ratio == .2 and e.view.text.startswith('Better: 20 % synthetic images added')
    curve, confusion, recall, severity = (o['alt'] for o in pictures(e.view))
    assert f'{100*top.value:.1f} at 0.2' in curve and f'{100*top.baseline:.1f} at 0' in curve
    records = [json.loads(p.read_text()) for p in sweep.glob('split/*/record.json')]
    of = lambda *arm: [r['test']['per_class']['sad']['recall'] for r in records if (r['given']['ratio'], r['given']['how']) == arm]
    assert f'sad {100*np.mean(of(0, "replace")):.1f} to {100*np.mean(of(.2, "add")):.1f}' in recall
    assert 'severities 1, 3, 5' in severity and 'taken for' in confusion

def test_a_step_computes_nothing(sweep, monkeypatch):
    "Records are read once: charts can be drawn again without them"
    e, ratios = SplitExplorer(sweep), (0., .2, .4)
    for name in ('differences', 'conclude'): monkeypatch.setattr(f'synthrob.explore.split.{name}', None)
    shown = [e.show(ratio=r)._repr_html_() for r in ratios]
    monkeypatch.setattr('synthrob.explore.split.read_record', None)
    e.chart.cache_clear()
    assert shown == [e.show(ratio=r)._repr_html_() for r in ratios] and len(set(shown)) == 3

def test_split_with_holes(tmp_path):
    "A missing run, a control, arms with different ratios: the slider follows the arm"
    simulate_runs(tmp_path, ratios=(0, .2, .4), hows=('add',), treatments=('synthetic', 'oversample'), cnn_seeds=range(3), n=100)
    given = {p.parent: json.loads(p.read_text())['given'] for p in tmp_path.glob('split/*/record.json')}
    for p, g in given.items():
        a_run = (g['ratio'], g['treatment'], g['cnn_seed']) == (.2, 'synthetic', 0)
        if a_run or (g['ratio'], g['treatment']) == (.4, 'oversample'): shutil.rmtree(p)
    e = SplitExplorer(tmp_path)
    e.controls['arm'].value = "small CNN (the study's): add, synthetic"
    e.controls['ratio'].value = .2
    assert '200 predictions' in e.page.value          # of two seeds: the third has no pair here
    e.controls['ratio'].value = .4
    e.controls['arm'].value = "small CNN (the study's): add, oversample"
    assert e.values['ratio'] == .2 and e.controls['ratio'].options == (0., .2)
    assert e.view.text.startswith('Control, oversampled real images, at ratio 0.2')

def test_labels_cannot_break_the_page(images):
    odd = Dataset(images.x, images.y, ['<b>', '"q" & \'p\'', 'c', 'd', 'e'], dict(part=images.part))
    found = pictures(DataExplorer(odd).show(what='classes'))
    assert len(found) == 36 and any(o['alt'].split(': ')[1].startswith('<b>') for o in found)
    assert "<h4><b>" not in DataExplorer(odd).page.value
    assert '&lt;choose&gt;' in View('', [], 'n=1: <choose> two.')._repr_html_()

# --- in a browser ---

def browser():
    "Chromium: `$SYNTHROB_CHROMIUM`, or that of the system; None if there is none"
    names = ('chromium', 'chromium-browser', 'google-chrome')
    return os.environ.get('SYNTHROB_CHROMIUM') or next((p for o in names if (p := shutil.which(o))), None)

def missing():
    "Why no test can run in a browser; None if it can"
    for module in ('voila', 'playwright'):
        if find_spec(module) is None: return f"{module} is not installed: pip install -c constraints.txt -e '.[dev]'"
    return None if browser() else 'there is no Chromium: apt-get install chromium, or set SYNTHROB_CHROMIUM to its path'

PAGE = '''
import torch, synthrob.explore as ex
from synthrob.data.dataset import Dataset
from synthrob.data.faces import draw_faces, emotions
y = torch.arange(60) % 5
x = draw_faces(y, size=32, seed=2, progress=False)
x[0], y[0] = x[10], y[10]
images = Dataset(x, y, emotions)
shown = ex.DataExplorer(images), ex.CorruptionExplorer(images), ex.GANExplorer({gan!r}), ex.SplitExplorer({sweep!r})
display(*shown)
'''
PLACE = dict(data=0, corruption=1, gan=2, sweep=3)   # of an explorer on the page
N_CONTROLS = 3 + 3 + 8 + 3

@pytest.fixture(scope='module')
def served(sweep, gan, tmp_path_factory):
    "The address of a page with all explorers, served by Voila"
    if why := missing():
        if os.environ.get('SYNTHROB_BROWSER'): pytest.fail(f'SYNTHROB_BROWSER is set, but {why}')
        pytest.skip(why)
    import nbformat
    at = tmp_path_factory.mktemp('page')
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PAGE.format(gan=str(gan), sweep=str(sweep)))])
    nb.metadata.kernelspec = dict(name='python3', display_name='python3', language='python')
    nbformat.write(nb, at/'page.ipynb')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    about = (Path(__file__).parent.parent/'nbs'/'explore'/'01_explore.ipynb').read_text(encoding='utf-8')
    text = ''.join(s for c in json.loads(about)['cells'] for s in c['source'])
    (at/'voila.json').write_text(re.search(r'```json\n(.*?)```', text, re.S)[1])            # as the page says
    command = [sys.executable, '-m', 'voila', 'page.ipynb', '--no-browser', f'--port={port}', '--Voila.ip=127.0.0.1']
    with open(at/'log', 'w') as log:
        p = subprocess.Popen(command, cwd=at, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(300):
                if p.poll() is not None: break
                try: socket.create_connection(('127.0.0.1', port), 1).close(); break
                except OSError: time.sleep(.2)
            if p.poll() is not None: pytest.fail(f"Voila ended: {(at/'log').read_text()[-2000:]}")
            yield f'http://127.0.0.1:{port}/'
        finally:
            p.terminate()
            p.wait(20)

@pytest.fixture(scope='module')
def page(served):
    "The page in a browser, once all explorers are shown"
    from playwright.sync_api import sync_playwright
    root = hasattr(os, 'geteuid') and os.geteuid() == 0
    with sync_playwright() as pw:
        b = pw.chromium.launch(executable_path=browser(), args=['--no-sandbox'] if root else [])
        page = b.new_page(viewport=dict(width=1280, height=900))
        page.asked = []
        page.on('response', lambda r: page.asked.append(r.url))
        page.goto(served, timeout=120_000)
        page.wait_for_function("document.querySelectorAll('.synthrob-view').length == 4", timeout=120_000)
        page.wait_for_timeout(500)
        yield page
        b.close()

PICTURES = "[...document.querySelectorAll('.synthrob-view')[k].querySelectorAll('img')].map(o => o.src)"

def press(page, k, control, key):
    "Move a control of explorer number `k` with one key; seconds until its pictures have changed"
    before = page.evaluate(f'k => {PICTURES}', k)
    box = page.locator('.widget-vbox').filter(has=page.locator('.synthrob-view')).nth(k)
    row = box.locator('.widget-inline-hbox').filter(has=page.get_by_text(control, exact=True))
    row.locator('.noUi-handle, select').first.focus()
    t = time.perf_counter()
    page.keyboard.press(key)
    changed = f"([k, was]) => {{ const now = {PICTURES}; return now.length && JSON.stringify(now) != JSON.stringify(was) }}"
    page.wait_for_function(changed, arg=[k, before], timeout=20_000)
    return time.perf_counter() - t

@pytest.mark.browser
@pytest.mark.parametrize('explorer, control, key', [
    ('data', 'Page', 'ArrowRight'), ('data', 'Class', 'ArrowDown'),
    ('corruption', 'Severity', 'ArrowRight'), ('corruption', 'Image', 'ArrowRight'), ('corruption', 'Corruption', 'ArrowDown'),
    ('gan', 'Position', 'ArrowRight'), ('gan', 'Noise std', 'ArrowLeft'), ('gan', 'From seed', 'ArrowRight'),
    ('gan', 'Truncate', 'ArrowRight'), ('gan', 'Epoch', 'ArrowLeft'), ('gan', 'Class', 'ArrowDown'),
    ('sweep', 'Ratio', 'ArrowLeft'), ('sweep', 'Corruption', 'ArrowDown'), ('sweep', 'Arm', 'ArrowDown')])
def test_a_key_moves_the_picture(page, explorer, control, key, record_property):
    took = press(page, PLACE[explorer], control, key)
    record_property('seconds', took)
    print(f'{explorer}, {control}: {1e3*took:.0f} ms from the key to the new picture')

@pytest.mark.browser
def test_nothing_comes_from_elsewhere(page, served):
    "Voila's template links to a CDN; the page's own `voila.json` forbids it"
    far = [o for o in page.asked if not o.startswith((served, 'data:', 'blob:'))]
    assert len(page.asked) > 5 and not far, far

@pytest.mark.browser
def test_the_tabulator_reaches_every_control(page):
    "One after another, from the top, each once"
    page.evaluate("document.activeElement.blur(); window.getSelection().removeAllRanges(); window.scrollTo(0, 0)")
    page.mouse.click(2, 2)
    seen = []
    for _ in range(100):                             # the numbers beside sliders are stops, too: one can type there
        if sum(map(bool, seen)) == N_CONTROLS: break
        page.keyboard.press('Tab')
        seen.append(page.evaluate("""() => { const o = document.activeElement, row = o.closest('.widget-inline-hbox');
            return row && o.matches('.noUi-handle, select') ? row.querySelector('label').innerText : null }"""))
    assert [o for o in seen if o] == [
        'Show', 'Class', 'Page', 'Corruption', 'Severity', 'Image', 'Class', 'From seed', 'To seed', 'Position', 'Path', 'Noise std',
        'Truncate', 'Epoch', 'Arm', 'Ratio', 'Corruption']

@pytest.mark.browser
@pytest.mark.parametrize('width', [390, 1280])
def test_nothing_is_wider_than_the_page(page, width):
    "On a phone and a desktop: every picture is shown, has a text alternative and fits the page"
    page.set_viewport_size(dict(width=width, height=900))
    page.wait_for_timeout(300)
    found = page.evaluate("""[...document.querySelectorAll('.synthrob-view img')].map(o => ({alt: o.alt, drawn: o.naturalWidth,
        wide: o.getBoundingClientRect().width, right: o.getBoundingClientRect().right}))""")
    assert len(found) > 30 and all(o['alt'] and o['drawn'] and o['wide'] >= 30 and o['right'] <= width for o in found)
    controls = page.evaluate("""[...document.querySelectorAll('.widget-inline-hbox:has(.noUi-handle, select)')]
        .map(o => o.getBoundingClientRect().right)""")
    assert len(controls) == N_CONTROLS and max(controls) <= width

def test_charts_do_not_depend_on_how_figures_are_saved():
    "A page, or a user's matplotlibrc, may set `savefig`"
    import matplotlib
    from synthrob.explore.panels import chart
    draw = lambda: str(chart(lambda ax: ax.plot([1, 2]), 'a line'))
    as_usual = draw()
    with matplotlib.rc_context({'savefig.dpi': 50, 'savefig.bbox': 'tight'}): assert draw() == as_usual
