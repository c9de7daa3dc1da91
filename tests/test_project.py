"The project is consistent: modules match notebooks, imports make no circle, requirements are declared and pinned, every page is listed"
from __future__ import annotations
import ast, importlib, json, re, subprocess, sys
from collections import Counter
from configparser import ConfigParser
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
import pytest, yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from synthrob.split.params import parameters_cell
from synthrob.sweep.command import _read_spec
from synthrob.sweep.grid import values

ROOT = Path(__file__).resolve().parent.parent
LIB, NBS = ROOT/'synthrob', ROOT/'nbs'
DISTRIBUTION = dict(sklearn='scikit-learn', PIL='pillow', plum='plum-dispatch', yaml='pyyaml', IPython='ipython',
                    art='adversarial-robustness-toolbox',   # where the import has another name
                    dask='distributed', traitlets='ipython')       # or comes with what needs the same version
FLOORS = 8        # packages on the longest chain of imports, at most
FACADES = '__init__.py', 'all.py'   # written by hand: they re-export names, and are no floor
PAGES = sorted(NBS.rglob('*.ipynb'))

def exported(page):
    "The module that a notebook exports, e.g. `gan.nets`; None if it exports none"
    cells = json.loads(page.read_text(encoding='utf-8'))['cells']
    src = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code')
    return (m := re.search(r'^#\|\s*default_exp\s+(\S+)', src, re.M)) and m[1]

def files(lib):
    "Dotted name -> file of every module of a package"
    name = lambda p: '.'.join(p.relative_to(lib.parent).with_suffix('').parts).removesuffix('.__init__')
    return {name(p): p for p in sorted(lib.rglob('*.py')) if p.name != '_modidx.py'}

MODULES = files(LIB)

def settings():
    ini = ConfigParser(delimiters='=')
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']

def imports(name, modules=MODULES):
    "What a module imports, inside functions too: dotted names, of the module if it is one of ours"
    path = modules[name]
    package = name.split('.') if path.name == '__init__.py' else name.split('.')[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) + 1 - node.level] if node.level else []
            mod = '.'.join([*base, *filter(None, [node.module])])
            yield from (o if (o := f'{mod}.{a.name}') in modules else mod for a in node.names)

def floors(modules):
    "The floor of each module: 1 if it imports none of ours, else one above the highest that it imports. Raises `CycleError`"
    graph = {m: {o for o in imports(m, modules) if o in modules} for m in modules}
    res = {}
    for m in TopologicalSorter(graph).static_order():
        res[m] = (modules[m].name not in FACADES) + max((res[o] for o in graph[m]), default=0)
    return res

def test_floors_and_circles_are_found(tmp_path):
    lib = tmp_path/'lib'
    (lib/'low').mkdir(parents=True)
    for p, src in {'__init__': '', 'low/__init__': 'from .b import *', 'low/a': 'import os', 'low/b': 'from .a import x',
                   'c': 'from .low import b', 'd': 'def f(): from lib.low import x', 'all': 'from .c import *'}.items():
        (lib/f'{p}.py').write_text(src)
    assert floors(files(lib)) == {'lib': 0, 'lib.low': 2, 'lib.low.a': 1, 'lib.low.b': 2, 'lib.c': 3, 'lib.d': 3, 'lib.all': 3}
    (lib/'low'/'a.py').write_text('from lib.c import y')
    with pytest.raises(CycleError): floors(files(lib))

def test_imports_make_no_circle_and_few_floors():
    "No circle of modules, no circle of packages, and few floors of packages"
    try: floors(MODULES)
    except CycleError as e: pytest.fail('imports run in a circle: ' + ' <- '.join(e.args[1]))
    package = lambda m: '.'.join(m.split('.')[:2])
    rooms = {m: package(m) for m in MODULES if MODULES[m].name not in FACADES}
    graph = {r: {rooms[o] for m in rooms if rooms[m] == r for o in imports(m) if o in rooms} - {r} for r in set(rooms.values())}
    found = {}
    try:
        for r in TopologicalSorter(graph).static_order(): found[r] = 1 + max((found[o] for o in graph[r]), default=0)
    except CycleError as e: pytest.fail('packages import each other: ' + ' <- '.join(e.args[1]))
    assert max(found.values()) <= FLOORS, found

def test_imports_are_required():
    ini = settings()
    required = {canonicalize_name(Requirement(r).name) for k in ini if k.endswith('requirements') and k != 'dev_requirements'
                for r in ini[k].split()}
    others = {(name, top) for name in MODULES for o in imports(name) for top in [o.split('.')[0]]}
    missing = {f'{name} imports {o}' for name, o in others if o not in sys.stdlib_module_names and o != 'synthrob'
               and canonicalize_name(DISTRIBUTION.get(o, o)) not in required}
    assert not missing, f'{missing}, which settings.ini does not require'

def test_every_module_has_its_notebook():
    made = [f'synthrob.{m}' for p in PAGES if (m := exported(p))]
    have = [m for m, p in MODULES.items() if p.name not in FACADES]
    assert sorted(made) == sorted(have), f'notebooks without a module: {set(made) - set(have)}; modules without a notebook: {set(have) - set(made)}'

def code(page):
    "What a notebook executes, `pass` in place of magics"
    cells = [''.join(c['source']) for c in json.loads(page.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    return re.sub(r'^( *)[%!].*', r'\1pass', '\n'.join(cells), flags=re.M)

def unknown_names(source):
    "What code imports from our modules and they do not have"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('synthrob'):
            module = importlib.import_module(node.module)
            yield from (f'{node.module}.{a.name}' for a in node.names if a.name != '*' and not hasattr(module, a.name)
                        and f'{node.module}.{a.name}' not in MODULES)

def test_names_that_scripts_tests_and_pages_import_exist():
    assert list(unknown_names('from synthrob.core.basics import BadInput, Bad\nfrom synthrob.core import basics')) == ['synthrob.core.basics.Bad']
    sources = {p: p.read_text(encoding='utf-8') for folder in ('tests', 'benchmarks', '.ci') for p in (ROOT/folder).glob('*.py')}
    sources |= {p: code(p) for p in PAGES}
    missing = {str(p.relative_to(ROOT)): found for p, s in sources.items() if (found := list(unknown_names(s)))}
    assert not missing

@pytest.mark.parametrize('path', sorted((ROOT/'benchmarks').glob('*.yaml')), ids=lambda p: p.name)
def test_campaigns_name_parameters_and_values_that_exist(path):
    grids, _ = _read_spec(path)
    assert len(grids) > 1 or 'ratio' in grids[0]
    for k, v in [kv for g in grids for kv in g.items()]: values(k, v)

def test_lines_are_at_most_120_columns():
    "Except `__all__`, which nbdev wraps"
    wide = [f'{p.relative_to(ROOT)}:{i}' for p in MODULES.values() for i, l in
            enumerate(p.read_text(encoding='utf-8').splitlines(), 1) if len(l) > 120 and not l.startswith('__all__')]
    assert not wide, wide

def test_names_of_notebooks_are_unique():
    "nbdev finds a page by its name without the folder"
    twice = [k for k, n in Counter(p.stem for p in PAGES).items() if n > 1]
    assert not twice, f'two notebooks have the name {twice}'

def test_requirements_are_pinned_and_allowed():
    lines = [l for l in (ROOT/'constraints.txt').read_text().splitlines() if l and not l.startswith('#')]
    pins = [Requirement(l) for l in lines]
    for python in f"{settings()['min_python']}.0", '3.11.2', '3.11.9', '3.12.0':                # Debian has 3.11.2
        about = dict(python_version=python.rpartition('.')[0], python_full_version=python)
        apply = [p for p in pins if not p.marker or p.marker.evaluate(about)]
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
    head = '<meta name="description" content="A page.">'
    (tmp_path/'index.html').write_text(head + '<h1 id="a"></h1><a href="#a"></a><a href="sub/p.html#c"></a><a href="https://x.y/z"></a>'
                                       '<a href="https://synthrob.github.io/synthrob/sub/p.html#c"></a>')
    (tmp_path/'sub'/'p.html').write_text(head + '<h1></h1><p id="c"><a href="../index.html#a"></a></p>')
    run = lambda: subprocess.run([sys.executable, ROOT/'.ci'/'links.py', tmp_path], capture_output=True, text=True)
    assert run().returncode == 0
    (tmp_path/'sub'/'q.html').write_text('<a href="../index.html#b"></a><img src="no.png">[<code>f</code>](<a href="https://x">https://x</a>)<th>epoch</th>'
                                         '<a href="https://synthrob.github.io/synthrob/index.html#gone"></a>')
    res = run()
    for fault in ('not one H1', 'no description', 'a raw Markdown link', 'a table of epochs', 'index.html#gone'):
        assert f'sub/q.html: {fault}' in res.stdout or fault == 'index.html#gone' and fault in res.stdout
    assert res.returncode == 1 and 'sub/q.html: ../index.html#b' in res.stdout and 'sub/q.html: no.png' in res.stdout

def test_readme_is_short():
    assert len((ROOT/'README.md').read_text(encoding='utf-8').split()) <= 800

def test_version_is_one():
    version = settings()['version']
    assert f'__version__ = "{version}"' in (LIB/'__init__.py').read_text()
    assert f'version: {version}' in (ROOT/'CITATION.cff').read_text()
    assert f"## [{version.partition('.dev')[0]}]" in (ROOT/'CHANGELOG.md').read_text()

def test_the_parameters_cell_is_that_of_the_fields():
    cells = json.loads((NBS/'03_split.ipynb').read_text(encoding='utf-8'))['cells']
    own, = (''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', []))
    assert own == parameters_cell()
