"The project holds together: imports are required and run downwards, requirements are pinned, every page is there"
from __future__ import annotations
import ast, json, re, subprocess, sys
from configparser import ConfigParser
from graphlib import TopologicalSorter
from pathlib import Path
import pytest, yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LIB, NBS = ROOT/'synthrob', ROOT/'nbs'
DISTRIBUTION = dict(sklearn='scikit-learn', PIL='pillow', plum='plum-dispatch', yaml='pyyaml', IPython='ipython',
                    art='adversarial-robustness-toolbox')   # where the import has another name
CHAPTER = {}   # of each module, the number of its notebook: a letter marks a room beside its stage
for p in sorted(NBS.glob('*.ipynb')):
    cells = json.loads(p.read_text(encoding='utf-8'))['cells']
    src = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code')
    if m := re.search(r'^#\|\s*default_exp\s+(\S+)', src, re.M): CHAPTER[m[1]] = p.name.split('_')[0]
MODULES = sorted(CHAPTER)

def settings():
    ini = ConfigParser(delimiters='=')
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']

def imports(name):
    "Modules that `synthrob/name.py` imports, as (other libraries, ours)"
    others, ours = set(), set()
    for node in ast.walk(ast.parse((LIB/f'{name}.py').read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): mods = [a.name for a in node.names]
        elif not isinstance(node, ast.ImportFrom): continue
        elif node.module in (None, 'synthrob'): mods = [f'synthrob.{a.name}' for a in node.names]
        else: mods = [f'synthrob.{node.module}' if node.level else node.module]
        for m in mods:
            top, *rest = m.split('.')
            if top == 'synthrob': ours.update(rest[:1])
            elif top not in sys.stdlib_module_names: others.add(top)
    return others, ours - {'__version__'}

def may_import(above, below):
    "Chapters import themselves and earlier ones; a stage stands on some of its rooms, and others go on from it"
    chapter = lambda o: int(re.match(r'\d+', o)[0])
    return chapter(below) <= chapter(above)

def test_may_import():
    assert may_import('03', '00a') and may_import('01', '01b') and may_import('02a', '02')
    assert not may_import('00', '01b') and not may_import('01c', '02')

def test_imports_have_no_cycle():
    list(TopologicalSorter({name: imports(name)[1] for name in MODULES}).static_order())    # raises CycleError

@pytest.mark.parametrize('name', MODULES)
def test_imports_are_required(name):
    ini = settings()
    required = {canonicalize_name(Requirement(r).name) for k in ini if k.endswith('requirements') and k != 'dev_requirements'
                for r in ini[k].split()}
    missing = {o for o in imports(name)[0] if canonicalize_name(DISTRIBUTION.get(o, o)) not in required}
    assert not missing, f'synthrob.{name} imports {missing}, which settings.ini does not require'

@pytest.mark.parametrize('name', MODULES)
def test_imports_run_downwards(name):
    up = {o for o in imports(name)[1] if not may_import(CHAPTER[name], CHAPTER[o])}
    assert not up, f'{CHAPTER[name]} ({name}) imports {up} from a later chapter'

def test_every_module_has_its_notebook():
    assert {p.stem for p in LIB.glob('[!_]*.py')} == set(MODULES)

def test_requirements_are_pinned_and_allowed():
    lines = [l for l in (ROOT/'constraints.txt').read_text().splitlines() if l and not l.startswith('#')]
    pins = [Requirement(l) for l in lines]
    for python in settings()['min_python'], '3.11', '3.12':
        apply = [p for p in pins if not p.marker or p.marker.evaluate(dict(python_version=python))]
        here = {canonicalize_name(p.name): p for p in apply}
        assert len(here) == len(apply), f'constraints.txt pins something twice for Python {python}'
        for r in map(Requirement, ' '.join(v for k, v in settings().items() if k.endswith('requirements')).split()):
            pin = here.get(canonicalize_name(r.name))
            assert pin, f'{r.name} is not pinned in constraints.txt for Python {python}'
            version = str(pin.specifier).removeprefix('==')
            assert version in r.specifier, f'constraints.txt pins {r.name} {version}, settings.ini wants {r.specifier}'

def test_requirements_have_a_reason():
    table = (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8').split('\n## Dependencies')[1]
    table = set(re.findall(r'^\| `([\w-]+)`', table, re.M))
    required = {Requirement(r).name for k in ('requirements', 'dev_requirements') for r in settings()[k].split()}
    assert table == required

def test_site_is_driven_from_the_top():
    assert (NBS/'_quarto.yml').resolve() == ROOT/'_quarto.yml'
    site = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
    assert site['format']['html']['keep-md'] is True and 'commonmark' in site['format']   # else the render fails
    pages = [o['href'] for o in site['website']['navbar']['left']] + [site['format']['html']['css']]
    for p in pages: assert (NBS/p).is_file(), f'_quarto.yml leads to {p}, which is not in nbs/'
    assert site['metadata-files'] == ['nbdev.yml', 'sidebar.yml']

def test_broken_links_are_found(tmp_path):
    "What `.ci/run site` asks of the rendered site"
    (tmp_path/'sub').mkdir()
    (tmp_path/'index.html').write_text('<h1 id="a"></h1><a href="#a"></a><a href="sub/p.html#c"></a><a href="https://x.y/z"></a>')
    (tmp_path/'sub'/'p.html').write_text('<p id="c"><a href="../index.html#a"></a></p>')
    run = lambda: subprocess.run([sys.executable, ROOT/'.ci'/'links.py', tmp_path], capture_output=True, text=True)
    assert run().returncode == 0
    (tmp_path/'sub'/'q.html').write_text('<a href="../index.html#b"></a><img src="no.png">')
    res = run()
    assert res.returncode == 1 and 'sub/q.html: ../index.html#b' in res.stdout and 'sub/q.html: no.png' in res.stdout

def test_index_lists_every_notebook():
    index = (NBS/'index.ipynb').read_text(encoding='utf-8')
    listed = re.findall(r'^\s*"\| \[[\w]+\]\((\w+\.ipynb)\)', index, re.M)
    assert listed == sorted(listed) and set(listed) == {p.name for p in NBS.glob('*.ipynb')} - {'index.ipynb'}

def test_version_is_one():
    version = settings()['version']
    assert f'__version__ = "{version}"' in (LIB/'__init__.py').read_text()
    assert f'version: {version}' in (ROOT/'CITATION.cff').read_text()
    assert version in (ROOT/'CHANGELOG.md').read_text()
