"Explorers: what they show against what it is made from; and in a browser, moved by keyboard alone"
from __future__ import annotations
import asyncio, json, os, shutil, socket, subprocess, sys, time
from base64 import b64decode
from html.parser import HTMLParser
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from synthrob.sweep.results import conclude, results, simulate_runs
from synthrob.core.basics import BadInput, write_json
from synthrob.data.dataset import Dataset
from synthrob.data.splits import splits
from synthrob.explore.core import CorruptionExplorer, DataExplorer, Explorers, GANExplorer, SplitExplorer
from synthrob.explore.data import fate, finished_run, groups_of
from synthrob.data.faces import draw_faces, emotions
from synthrob.gan.learner import save_gan
from synthrob.explore.panels import Explorer, Seen, choice, slider, tile

class Pictures(HTMLParser):
    "Attributes of the pictures in a page"
    def __init__(self, html):
        super().__init__()
        self.all = []
        self.feed(html); self.close()
    def handle_starttag(self, tag, attrs):
        if tag == 'img': self.all.append(dict(attrs))

def pictures(seen): return Pictures(seen._repr_html_()).all
def pixels(img): return np.asarray(Image.open(BytesIO(b64decode(img['src'].split(',', 1)[1]))))

@pytest.fixture(scope='session')
def images() -> Images:
    "A hundred faces, of which 4 pairs are equal: one across parts, one with two labels, two within training"
    y = torch.arange(100) % 5
    x, part = draw_faces(y, size=32, seed=2, progress=False), np.where(np.arange(100) < 80, 'train', 'test')
    for a, b in ((0, 90), (1, 11), (2, 12), (3, 13)): x[a], y[a] = x[b], y[b]
    y[3] = (y[3] + 1) % 5
    return Dataset(x, y, emotions, part)

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
    write_json(at/'record.json', dict(hash=at.name, params=dict(vocab=emotions), finished='2026-01-01', failure=None,
                                      curve=dict(epoch=[10], images=[640], intra_fid=[7.5])))
    return at

def test_every_picture_has_words_and_every_control_a_name(images, sweep, gan):
    for e in (DataExplorer(images), CorruptionExplorer(images), GANExplorer(gan), SplitExplorer(sweep)):
        found = pictures(e.seen)
        assert found and all(len(o['alt']) > 3 and o['width'] and o['height'] for o in found), e
        assert all(c.description and c.tooltip for c in e.controls.values()), e

def test_data_groups(images):
    s = splits(images)
    found, what = groups_of(images, s), fate(s, 100)
    pairs = lambda k: sorted(tuple(sorted(g.tolist())) for g in found[k])
    assert pairs('copies') == [(0, 90), (1, 11), (2, 12), (3, 13)]
    assert pairs('leaks') == pairs('removed: leak') == [(0, 90)] and what[0] == 'removed: leak' and what[90] == 'test'
    assert pairs('conflicting labels') == pairs('removed: conflict') == [(3, 13)]
    assert set(what[[3, 13]]) == {'removed: conflict'}
    assert pairs('removed: repeated') == [(1, 11), (2, 12)] and not found['removed: flat']
    assert (what == 'train').sum() == len(s.train) and (what == 'valid').sum() == len(s.valid)

def test_data_shows_the_images_it_names(images):
    e = DataExplorer(images)
    for img in pictures(e.see(what='copies')):
        name, rest = img['alt'].split(': ', 1)
        i = int(name)
        assert (pixels(img) == images.x[i, 0].numpy()).all() and rest.startswith(emotions[images.y[i]])

def test_data_pages_hold_every_image_once(images):
    e = DataExplorer(images)
    for label in (-1, 2):
        n, names = e.reach('classes', label, 1)['page']['max'], []
        for page in range(1, n + 1):
            shown = pictures(e.see(what='classes', label=label, page=page))
            assert 0 < len(shown) <= e.most
            names += [int(o['alt'].split(':')[0]) for o in shown]
        want = [i for i in range(100) if label < 0 or images.y[i] == label]
        assert sorted(names) == want

def test_corruption_without_a_classifier(images):
    "The clean image stays, the other one is what `corrupt` makes of it with its own position"
    from synthrob.cnn.corruptions import corrupt
    e = CorruptionExplorer(images)
    clean, bad = pictures(e.see(name='gaussian_noise', severity=4, image=17))
    assert (pixels(clean) == images.x[17, 0].numpy()).all()
    assert (pixels(bad) == corrupt(images.x, 'gaussian_noise', 4)[17, 0].numpy()).all()
    clean, same = pictures(e.see(severity=0, image=17))
    assert clean['src'] == same['src']

def test_a_classifier_comes_from_its_run(faces, tmp_path):
    "With the test images and the answers of its record; changed images are refused"
    from conftest import TOY
    from synthrob.split.core import run_split
    run = run_split(**TOY, path=faces, out=str(tmp_path), ratio=0.)
    net, test, flip = finished_run(out=tmp_path)
    e = CorruptionExplorer(test, net, flip)
    probs = run.evaluation('test').probs.numpy()
    for i in (0, len(test) - 1): assert e.answers('', 0, i) == pytest.approx(probs[i], abs=1e-3)
    assert f"says {run.images.vocab[probs[3].argmax()]} (" in e.see(severity=0, image=3).said
    f = run.artefact.file('record.json')
    said = json.loads(f.read_text())
    said['params']['data'] = 'f'*16
    f.write_text(json.dumps(said))
    with pytest.raises(BadInput, match='are not those at .* now: bring them back'): finished_run(run.artefact.path, tmp_path)

def test_looking_never_trains(tmp_path):
    "Where nothing is finished, explorers make data at most"
    e = Explorers(tmp_path)
    for k in e.make:
        e.which.value = k
        assert e.place.children == (e.made[k].box,)
    assert {p.name for p in tmp_path.iterdir()} == {'data'} and set(e.made) == set(e.make)
    assert 'untrained' in e.made['GAN'].page.value and 'SIMULATED' in e.made['sweep'].page.value
    assert 'No classifier' in e.made['corruptions'].page.value and '<img' in e.made['data'].page.value

def test_gan_sheets_and_quality(gan):
    e = GANExplorer(gan)
    shades = {ep: pixels(pictures(e.see(epoch=ep))[-1])[0, 0] for ep in (1, 11)}
    assert shades == {1: 60, 11: 200} and 'intra_fid 7.5 (epoch 10)' in e.see(epoch=1)._repr_html_()

def test_gan_ends_and_middle(gan):
    "At the ends of the way are the faces of the two seeds, whatever the path; between them the paths part"
    e = GANExplorer(gan)
    here = lambda **kw: pictures(e.see(**kw))[e.steps]['src']
    assert here(a=1, b=2, way=0.) == here(a=1, b=9, way=0.) == here(a=5, b=1, way=1.)
    assert here(a=1, b=2, way=1., path='linear') == here(a=1, b=2, way=1.)
    assert here(a=1, b=2, way=.5, path='linear') != here(a=1, b=2, way=.5)

def test_split_says_what_the_report_says(sweep):
    t, e = conclude(results(sweep)), SplitExplorer(sweep)
    top = t[t.headline].iloc[0]
    assert e.values['ratio'] == top.ratio == .2 and e.seen.said.startswith('Better: 20 % synthetic images added')
    curve, confusion, recall, severity = (o['alt'] for o in pictures(e.seen))
    assert f'{100*top.value:.1f} at 0.2' in curve and f'{100*top.baseline:.1f} at 0' in curve
    records = [json.loads(p.read_text()) for p in sweep.glob('split/*/record.json')]
    of = lambda *arm: [r['test']['per_class']['sad']['recall'] for r in records if (r['given']['ratio'], r['given']['how']) == arm]
    assert f'sad {100*np.mean(of(0, "replace")):.1f} to {100*np.mean(of(.2, "add")):.1f}' in recall
    assert 'severities 1, 3, 5' in severity and 'taken for' in confusion

def test_a_step_computes_nothing(sweep, monkeypatch):
    "What is shown is read once: with the records gone, every picture that was read can still be drawn"
    e = SplitExplorer(sweep)
    monkeypatch.setattr('synthrob.explore.split.differences', None)
    monkeypatch.setattr('synthrob.explore.split.conclude', None)
    shown = {r: e.see(ratio=r)._repr_html_() for r in (0., .2, .4)}
    monkeypatch.setattr('synthrob.explore.split.read_json', None)
    e.panel.cache_clear()
    assert shown == {r: e.see(ratio=r)._repr_html_() for r in (0., .2, .4)} and len(set(shown.values())) == 3

def test_other_ratios_are_drawn_ahead(sweep):
    "In a kernel, whose loop is idle between steps; elsewhere nothing is left running"
    e = SplitExplorer(sweep)
    assert e.panel.cache_info().currsize == 4
    async def kernel():
        e = SplitExplorer(sweep)
        for _ in range(200):
            await asyncio.sleep(.05)
            if e.panel.cache_info().currsize == 12: break
        drawn, hits = e.panel.cache_info().currsize, e.panel.cache_info().hits
        e.controls['ratio'].value = .4
        return drawn, e.panel.cache_info().hits - hits, e.panel.cache_info().currsize
    assert asyncio.run(kernel()) == (12, 4, 12)       # three ratios of one arm; a step finds its four pictures

def test_split_with_holes(tmp_path):
    "A missing run, a control, arms with different ratios: the slider follows the arm"
    simulate_runs(tmp_path, ratios=(0, .2, .4), hows=('add',), treatments=('synthetic', 'oversample'), cnn_seeds=range(3), n=100)
    given = {p.parent: json.loads(p.read_text())['given'] for p in tmp_path.glob('split/*/record.json')}
    for p, g in given.items():
        a_run = (g['ratio'], g['treatment'], g['cnn_seed']) == (.2, 'synthetic', 0)
        if a_run or (g['ratio'], g['treatment']) == (.4, 'oversample'): shutil.rmtree(p)
    e = SplitExplorer(tmp_path)
    e.controls['arm'].value = 'poster: add, synthetic'
    e.controls['ratio'].value = .2
    assert '200 answers' in e.seen._repr_html_()       # of two seeds: the third has no pair here
    e.controls['ratio'].value = .4
    e.controls['arm'].value = 'poster: add, oversample'
    assert e.values['ratio'] == .2 and [o[1] for o in e.controls['ratio'].options] == [0., .2]
    assert e.seen.said.startswith('Control, oversampled real images, at ratio 0.2')

def test_what_cannot_be_drawn_is_said():
    class Odd(Explorer):
        def __init__(self): super().__init__(n=slider('N', 0, 3, 0), k=choice('K', ['a', 'b']))
        def draw(self, n, k):
            if n == 1: raise BadInput('Not one: <choose> two.')
            return Seen(f'{n}{k}', [tile(torch.zeros(1, 4, 4, dtype=torch.uint8), 'black')])
    e = Odd()
    e.controls['n'].value = 1
    assert 'Not one: &lt;choose&gt; two.' in e.page.value and '<img' not in e.page.value
    e.controls['n'].value = 2
    assert e.seen.said == '2a' and '<img' in e.page.value
    with pytest.raises(BadInput, match="n=4 is not between 0 and 3"): e.see(n=4)
    with pytest.raises(BadInput, match="did you mean 'n'"): e.see(nn=1)

def test_labels_cannot_break_the_page(images):
    odd = Dataset(images.x, images.y, ['<b>', '"q" & \'p\'', 'c', 'd', 'e'], images.part)
    found = pictures(DataExplorer(odd).see(what='classes'))
    assert len(found) == 30 and any(o['alt'].split(': ')[1].startswith('<b>') for o in found)
    assert "<h4><b>" not in DataExplorer(odd).page.value

# --- in a browser ---

def browser():
    "Chromium, where there is one: `$SYNTHROB_CHROMIUM`, or that of the system"
    names = ('chromium', 'chromium-browser', 'google-chrome')
    return os.environ.get('SYNTHROB_CHROMIUM') or next((p for o in names if (p := shutil.which(o))), None)

def missing():
    "Why there can be no test in a browser; None where there can be one"
    for module in ('voila', 'playwright'):
        if find_spec(module) is None: return f"{module} is not installed: pip install -c constraints.txt -e '.[dev]'"
    return None if browser() else 'there is no Chromium: apt-get install chromium, or set SYNTHROB_CHROMIUM to its path'

PAGE = '''
import torch, synthrob.explore.core as ex
from synthrob.data.dataset import Dataset
from synthrob.data.faces import draw_faces, emotions
y = torch.arange(60) % 5
x = draw_faces(y, size=32, seed=2, progress=False)
x[0], y[0] = x[10], y[10]
images = Dataset(x, y, emotions)
shown = ex.DataExplorer(images), ex.CorruptionExplorer(images), ex.GANExplorer({gan!r}), ex.SplitExplorer({sweep!r})
display(*shown)
'''
PLACE = dict(data=0, damage=1, gan=2, sweep=3)       # of an explorer on the page
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
    "The page in a browser, when all explorers are there"
    from playwright.sync_api import sync_playwright
    root = hasattr(os, 'geteuid') and os.geteuid() == 0
    with sync_playwright() as pw:
        b = pw.chromium.launch(executable_path=browser(), args=['--no-sandbox'] if root else [])
        page = b.new_page(viewport=dict(width=1280, height=900))
        page.goto(served, timeout=120_000)
        page.wait_for_function("document.querySelectorAll('.synthrob-see').length == 4", timeout=120_000)
        page.wait_for_timeout(500)
        yield page
        b.close()

PICTURES = "[...document.querySelectorAll('.synthrob-see')[k].querySelectorAll('img')].map(o => o.src)"

def press(page, k, control, key):
    "Move a control of explorer number `k` with one key; seconds until its pictures have changed"
    before = page.evaluate(f'k => {PICTURES}', k)
    box = page.locator('.widget-vbox').filter(has=page.locator('.synthrob-see')).nth(k)
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
    ('damage', 'Severity', 'ArrowRight'), ('damage', 'Image', 'ArrowRight'), ('damage', 'Corruption', 'ArrowDown'),
    ('gan', 'Way', 'ArrowRight'), ('gan', 'Spread', 'ArrowLeft'), ('gan', 'From seed', 'ArrowRight'),
    ('gan', 'Truncate', 'ArrowRight'), ('gan', 'Epoch', 'ArrowLeft'), ('gan', 'Class', 'ArrowDown'),
    ('sweep', 'Ratio', 'ArrowLeft'), ('sweep', 'Corruption', 'ArrowDown'), ('sweep', 'Arm', 'ArrowDown')])
def test_a_key_moves_the_picture(page, explorer, control, key, record_property):
    took = press(page, PLACE[explorer], control, key)
    record_property('seconds', took)
    print(f'{explorer}, {control}: {1e3*took:.0f} ms from the key to the new picture')

@pytest.mark.browser
def test_the_tabulator_reaches_every_control(page):
    "One after another, from the top, and none twice"
    page.evaluate("document.activeElement.blur(); window.getSelection().removeAllRanges(); window.scrollTo(0, 0)")
    page.mouse.click(2, 2)
    seen = []
    for _ in range(100):                             # the numbers beside sliders are stops, too: one can type there
        if sum(map(bool, seen)) == N_CONTROLS: break
        page.keyboard.press('Tab')
        seen.append(page.evaluate("""() => { const o = document.activeElement, row = o.closest('.widget-inline-hbox');
            return row && o.matches('.noUi-handle, select') ? row.querySelector('label').innerText : null }"""))
    assert [o for o in seen if o] == [
        'Show', 'Class', 'Page', 'Corruption', 'Severity', 'Image', 'Class', 'From seed', 'To seed', 'Way', 'Path', 'Spread',
        'Truncate', 'Epoch', 'Arm', 'Ratio', 'Corruption']

@pytest.mark.browser
@pytest.mark.parametrize('width', [390, 1280])
def test_nothing_is_wider_than_the_page(page, width):
    "On a telephone and on a desk: every picture is there, has words, and ends before the page does"
    page.set_viewport_size(dict(width=width, height=900))
    page.wait_for_timeout(300)
    found = page.evaluate("""[...document.querySelectorAll('.synthrob-see img')].map(o => ({alt: o.alt, drawn: o.naturalWidth,
        wide: o.getBoundingClientRect().width, right: o.getBoundingClientRect().right}))""")
    assert len(found) > 30 and all(o['alt'] and o['drawn'] and o['wide'] >= 30 and o['right'] <= width for o in found)
    controls = page.evaluate("""[...document.querySelectorAll('.widget-inline-hbox:has(.noUi-handle, select)')]
        .map(o => o.getBoundingClientRect().right)""")
    assert len(controls) == N_CONTROLS and max(controls) <= width

def test_charts_do_not_depend_on_how_figures_are_saved():
    "A page, or a user's matplotlibrc, may set `savefig`: charts failed under it"
    import matplotlib
    from synthrob.explore.panels import chart
    draw = lambda: str(chart(lambda ax: ax.plot([1, 2]), 'a line'))
    as_usual = draw()
    with matplotlib.rc_context({'savefig.dpi': 50, 'savefig.bbox': 'tight'}): assert draw() == as_usual
