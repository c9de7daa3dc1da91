"What the tests from end to end share"
from __future__ import annotations
import os, signal
from pathlib import Path
import pytest, torch
from PIL import Image
from synthrob.data.faces import draw_faces, emotions

ROOT = Path(__file__).resolve().parent.parent

# in the background of a script SIGINT is ignored, and what the tests start would inherit that and never hear Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)

# the smallest cell: nothing comes of it, and all is there
TOY = dict(data='folder', size=32, gan_images=640, gan_width=16, cnn_epochs=1, robust='none')

@pytest.fixture(scope='session')
def faces(tmp_path_factory) -> str:
    "A folder of twenty faces of each expression"
    top = tmp_path_factory.mktemp('faces')
    y = torch.arange(100) % 5
    for i, (x, c) in enumerate(zip(draw_faces(y, size=32, seed=5, progress=False), y)):
        (top/emotions[c]).mkdir(exist_ok=True)
        Image.fromarray(x[0].numpy()).save(top/emotions[c]/f'{i}.png')
    return str(top)

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
