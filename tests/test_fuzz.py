"A short form of `python tests/fuzz.py`, in a process of its own: audit hooks and limits stay there"
import subprocess, sys
from pathlib import Path

import pytest

@pytest.mark.parametrize('n', [150, pytest.param(3000, marks=pytest.mark.slow)])
def test_nothing_but_refused_or_accepted(n, tmp_path, pytestconfig):
    if n == 150 and pytestconfig.option.markexpr == '': pytest.skip('the first 150 of 3,000')
    p = subprocess.run([sys.executable, Path(__file__).with_name('fuzz.py'), '--n', str(n), '--seed', '11'], cwd=tmp_path,
                       capture_output=True, text=True)
    assert p.returncode == 0, p.stdout[-3000:] + p.stderr[-2000:]
