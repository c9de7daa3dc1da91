"The commands of the tutorials, as they stand on the pages: known to the library, and with the answers that the pages print"
from __future__ import annotations
import json, re, shlex
from importlib import import_module
from pathlib import Path
import pytest, yaml
from synthrob.core.basics import BadInput
from synthrob.data.core import parser as data_parser
from synthrob.split.params import check_value
from synthrob.sweep.command import parser as sweep_parser
from synthrob.sweep.grid import axes, values
from synthrob.sweep.report import main as report

PAGES = {p.stem: json.loads(p.read_text(encoding='utf-8'))['cells'] for p in sorted((Path(__file__).parents[1]/'nbs'/'tutorials').glob('*.ipynb'))}
MODULES = dict(synthrob_data='synthrob.data.core', synthrob_sweep='synthrob.sweep.command', synthrob_report='synthrob.sweep.report')
text = lambda cell: ''.join(cell['source'])

def commands(cells):
    "The lines of the shell blocks of a page that start the library, as lists of words"
    blocks = re.findall(r'```sh\n(.*?)```', '\n'.join(text(c) for c in cells if c['cell_type'] == 'markdown'), re.S)
    words = [[w for w in shlex.split(o, comments=True) if not re.match('[A-Z_]+=', w)] for o in '\n'.join(blocks).splitlines()]
    return [o for o in words if o and (o[0] in MODULES or o[0] == 'papermill')]

def check(line):
    "Raise `BadInput` or exit unless the library knows the command and its values"
    name, *args = line
    if name == 'papermill':
        flags = [i for i, o in enumerate(args) if o == '-p']
        assert args[0] == 'nbs/03_split.ipynb' and (args[1:] == ['...'] or len(args) == 2 + 3*len(flags)), line
        for i in flags: check_value(args[i+1], yaml.safe_load(args[i+2]))
    elif name == 'synthrob_data': data_parser().parse_args(args)
    elif name == 'synthrob_report': assert report([*args[:-1], 'no_such_folder'] if args else ['no_such_folder']) == 2       # its flags are known
    else:
        for k, v in vars(sweep_parser().parse_args(args)).items():
            if k in axes(): values(k, v)

@pytest.mark.parametrize('page', PAGES)
def test_commands_are_known(page, capsys):
    found = commands(PAGES[page])
    assert found or page == '03_verdict'
    for line in found: check(line)

def test_the_check_sees_a_wrong_command():
    for line, error in (('synthrob_sweep --ratios 0,.5 --seed 3', SystemExit), ('synthrob_data folder x --sise 3', SystemExit),
                        ('papermill nbs/03_split.ipynb o.ipynb -p raito .3', KeyError), ('synthrob_sweep --ratios 0,1.5', BadInput)):
        with pytest.raises(error): check(line.split())

def answers(cells):
    "The commands that a page runs by `main`, with the texts that its cells print"
    for c in cells:
        line = re.search(r"^_ = main\('(synthrob_\w+ .*)'\)$", text(c), re.M) if c['cell_type'] == 'code' else None
        if line: yield line[1], ''.join(''.join(o['text']) for o in c['outputs'] if o.get('name') == 'stdout')

def alike(said, printed):
    "Whether two texts agree but for times, spaces and single runs, and numbers within a tenth or six points, as between kinds of CPUs"
    number = r'[−-]?\d[\d,]*\.?\d*'
    def parts(t):
        t = re.sub(r'about \d+ (s|min)\b|on cpu \(.*?\)|[0-9a-f]{16}|(?<=single pairs of runs: ).*(?= points)', '', t)
        return ' '.join(re.sub(number, '#', t).split()), [float(o.replace('−', '-').replace(',', '').rstrip('.')) for o in re.findall(number, t)]
    (a, x), (b, y) = parts(said), parts(printed)
    return a == b and all(abs(i - j) <= max(6, abs(j)/10) for i, j in zip(x, y))

def test_alike():
    assert alike('Undecided: from 60.1 to 63.0 %\n  2 runs', 'Undecided: from 58.0 to 64.9 % 2 runs') and alike('about 8 s.', 'about 3 min.')
    assert alike('The single pairs of runs: +0.0, −24.0 points.', 'The single pairs of runs: −13.1, +2.0 points.')
    assert not alike('Better: by 5.0 points', 'Undecided: by 5.0 points') and not alike('from 60 to 70 %', 'from 60 to 90 %')

@pytest.mark.e2e
@pytest.mark.slow
def test_from_a_folder_to_a_verdict(tmp_path, monkeypatch, capsys):
    "The page about one's own images: its folder, and its commands in order"
    cells, env = PAGES['02_own_images'], {}
    exec(next(text(c) for c in cells if 'def draw_folder' in text(c)), env)
    env['draw_folder'](tmp_path/'my_images')
    printed, on_page = dict(answers(cells)), [shlex.join(o) for o in commands(cells)]
    monkeypatch.chdir(tmp_path)
    assert len(printed) == 4 and set(printed) < set(on_page), 'what the page runs, it shows'
    for line, want in printed.items():
        name, *args = shlex.split(line)
        assert import_module(MODULES[name]).main(args) in (0, None), line
        said = capsys.readouterr().out
        if name == 'synthrob_sweep' and '--dry_run' not in line: assert '10 of 10 cells are done' in said and 'must not be counted' not in said
        else: assert alike(said, want), f'{line}\n{said}\nThe page prints:\n{want}'
