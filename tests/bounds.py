"""Time and memory of hostile input, each in a process of its own: `python tests/bounds.py [NAME ...]`"""
import os, subprocess, sys, tempfile
from pathlib import Path

from test_cases import bad_rows, dictionary, fill, giants, long_line, long_name, zeros

child = '''import io, os, sys, resource, time, contextlib
from synthrob.core.basics import BadInput
from synthrob.data.core import prepare
from synthrob.split.params import check_params
from synthrob.split.run import SplitRun
from synthrob.sweep.command import main, _read_spec
from synthrob.sweep.grid import Sweep
def run():
    {code}
def sweep(*args):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(err): main([*args, '--dry_run', '--out', 'runs'])
    return err.getvalue().strip().splitlines()[-1]
top = lambda: max(resource.getrusage(o).ru_maxrss for o in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
a, t, w = top(), os.times(), time.monotonic()
try: said = run()
except BadInput as e: said = f'refused: {{e}}'
u = os.times()
cpu = sum(u[:4]) - sum(t[:4])
print('', f'{{cpu:.1f}} s CPU, {{time.monotonic() - w:.1f}} s, +{{(top() - a)/1024:.0f}} MiB: {{said}}'[:330], sep='\\n')'''

def fifo(p): os.mkfifo(p)
def nothing(p): pass
def anchors(p): p.write_text('a: &a0 [x]\n' + ''.join(f'b{i}: &a{i+1} [' + ','.join([f'*a{i}']*9) + ']\n' for i in range(30)))
def deep(p):
    here = os.getcwd(); fill(p); os.chdir(p)
    for _ in range(1500): os.mkdir('d'); os.chdir('d')
    os.chdir(here)
def lsun(p):
    sys.path.insert(0, str(Path(__file__).parent))
    from fuzz import make_lmdb
    p.mkdir(); make_lmdb(p)
    (f := p/'bedroom_train_lmdb'/'data.mdb').write_bytes((b := bytearray(f.read_bytes()))[:4096+12] + bytes([b[4096+12] ^ 8]) + b[4096+13:])

def read(data): return f"return len(prepare({data!r}, {{path!r}}, size=32))"
def grid(n): return (f"s = Sweep(dict(data='faces', ratio=[0, *(i/{n//10} for i in range(1, {n//10}))], cnn_seed=range(10), robustness='none'), out='runs')\n"
                     "    return len(s.cells)")
fit = "return SplitRun(check_params(dict(data='faces', {}))).fit()"
cases = dict(fifo=(fifo, 'f', read('folder')), device=(nothing, '/dev/zero', read('fer2013')), giants=(giants, 'd', read('folder')),
             long_line=(long_line, 'a.csv.gz', read('fer2013')), bad_rows=(bad_rows, 'a.csv.gz', read('fer2013')), zeros=(zeros, 'a.zip', read('folder')),
             dictionary=(dictionary, 'a.parquet', read('parquet')), long_name=(long_name, 'a.tar.gz', read('fer2013')),
             anchors=(anchors, 'a.yaml', "return len(_read_spec({path!r}))"), deep=(deep, 'd', read('folder')), lmdb=(lsun, 'l', read('lsun')),
             gan_images=(nothing, '', fit.format('gan_images=10**12')), ratio=(nothing, '', fit.format("ratio=.999999, how='add'")),
             seeds=(nothing, '', "return sweep('--seeds', '100000000')"), ratios=(nothing, '', "return sweep('--ratios', '0..9999999999')"),
             gan_images_sweep=(nothing, '', "return sweep('--ratios', '0,.3', '--seeds', '1', '--gan_images', '1000000000000')"),
             cells_1000=(nothing, '', grid(1000)), cells_10000=(nothing, '', grid(10_000)))

def measure(name):
    make, file, code = cases[name]
    with tempfile.TemporaryDirectory() as d:
        make(path := Path(d)/file)
        try: r = subprocess.run([sys.executable, '-W', 'ignore', '-c', child.format(code=code.format(path=str(path)))], capture_output=True, text=True, cwd=d, timeout=120)
        except subprocess.TimeoutExpired: return 'still busy after 120 s'
        finally: os.system(f'rm -rf {d}/d')
        return r.stdout.strip().splitlines()[-1].replace(d, '') if r.returncode == 0 else f'exit {r.returncode}: {r.stderr.strip()[-300:]}'

if __name__ == '__main__':
    for name in sys.argv[1:] or cases: print(f'{name}: {measure(name)}', flush=True)
