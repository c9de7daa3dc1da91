"What the tests from end to end share"
from __future__ import annotations
import os
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent

@pytest.fixture(scope='session')
def repo() -> Path:
    "The root of the repository"
    return ROOT

@pytest.fixture(scope='session')
def fer2013_zip() -> Path:
    "The zip of FER-2013: `$SYNTHROB_FER2013`, or what lies beside the repository; where there is none, a skip"
    named, beside = os.environ.get('SYNTHROB_FER2013'), ROOT.parent/'shared'/'data'/'fer2013.zip'
    if named and not Path(named).is_file(): pytest.fail(f'SYNTHROB_FER2013={named} is no file: correct or unset it')
    path = Path(named) if named else beside
    if not path.is_file(): pytest.skip('FER-2013 is not here: set SYNTHROB_FER2013 to its zip to run this test')
    return path.resolve()
