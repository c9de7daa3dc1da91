"Every public symbol has a doc line, says what its parameters are, and is shown in use on its own page. Nothing is imported or run."
import ast, json, re
from pathlib import Path

here = Path(__file__).parent.parent
# what torch, fastai and papermill call by name, and explain themselves
hooks = re.compile('forward|train|extra_repr|(load_)?state_dict|reset|accumulate|value|name|setups?|encodes|decodes|(before|after)_.*'
                   '|nb_(kernel_name|language)|execute_(managed_)?notebook')

def code_of(path): return [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']

def exported(cell): return re.search(r'^#\|\s*export\s*$', cell, re.M)

pages = {p.stem: code_of(p) for p in sorted((here/'nbs').rglob('*.ipynb'))}   # stems are unique: test_project.py
pages = {k: v for k, v in pages.items() if any(re.search(r'^#\|\s*default_exp', c, re.M) for c in v)}

def decorators(node): return ' '.join(ast.unparse(d) for d in node.decorator_list)

def undocumented(f, lines):
    "Parameters of the function without a comment of their own"
    args = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
    for a in args:
        if a.arg in ('self', 'cls') or a.arg.startswith('_') or (f.args.args[:1] == [a] and 'patch' in decorators(f)): continue
        mine = lines[a.lineno - 1]
        if '#' not in mine[a.col_offset:] or any(b is not a and b.lineno == a.lineno and b.col_offset > a.col_offset for b in args): yield a.arg

def fields(c, lines):
    "Fields of a dataclass with neither a comment nor a sentence in their metadata"
    if 'dataclass' not in decorators(c): return
    sentence = lambda v: isinstance(v, ast.Call) and len(v.args) > 1 and isinstance(getattr(v.args[1], 'value', None), str)
    for n in c.body:
        if not isinstance(n, ast.AnnAssign) or n.target.id.startswith('_') or '#' in lines[n.lineno - 1] or sentence(n.value): continue
        yield n.target.id

def problems(cells):
    "What a reader of this page would miss"
    shown = '\n'.join(c for c in cells if not exported(c))
    returned = ' '.join(re.findall(r'->\s*([\w.\[\], |]+)', '\n'.join(c for c in cells if exported(c))))
    for cell in filter(exported, cells):
        lines = cell.splitlines()
        for n in ast.parse(cell).body:
            if not isinstance(n, (ast.FunctionDef, ast.ClassDef)) or n.name.startswith('_'): continue
            if isinstance(n, ast.FunctionDef): yield from problems_of(n, n.name, lines, shown)
            else:
                if not ast.get_docstring(n): yield f'{n.name} has no doc line'
                if not re.search(rf'\b{n.name}\b', shown + returned): yield f'{n.name} is not shown in use'
                for f in fields(n, lines): yield f'{n.name}: field {f} is not explained'
                for m in n.body:
                    if not isinstance(m, ast.FunctionDef) or hooks.fullmatch(m.name) or m.name.startswith('_') and m.name != '__init__': continue
                    yield from problems_of(m, f'{n.name}.{m.name}', lines, shown)

def problems_of(f, name, lines, shown):
    own = f.name == '__init__'
    if hooks.fullmatch(f.name) and (name != f.name or 'patch' in decorators(f)): return
    if not own and not ast.get_docstring(f): yield f'{name} has no doc line'
    if not own and not re.search(rf'\b{f.name}\b', shown): yield f'{name} is not shown in use'
    for a in undocumented(f, lines): yield f'{name}: parameter {a} is not explained'

def test_public_symbols_are_explained_and_shown():
    found = [f'{page}.ipynb: {o}' for page, code in pages.items() for o in problems(code)]
    assert not found, '\n'.join(found)

def test_the_check_sees_what_is_missing():
    cell = "#| export\ndef f(a, b): return a\nclass C:\n    def __init__(self, x): pass\n    def m(self): pass"
    found = list(problems([cell, 'print(C)']))
    assert found == ['f has no doc line', 'f is not shown in use', 'f: parameter a is not explained', 'f: parameter b is not explained',
                     'C has no doc line', 'C.__init__: parameter x is not explained', 'C.m has no doc line', 'C.m is not shown in use']

def test_figures_are_stored():
    "A cell with a caption has the figure that the site shows, unless Quarto makes it"
    for path in sorted((here/'nbs').rglob('*.ipynb')):
        for c in json.loads(path.read_text())['cells']:
            if c['cell_type'] == 'code' and '#| fig-cap' in (s := ''.join(c['source'])): assert c['outputs'], f'{path.name}: {s[:80]}'
