"Stage 3: mix, train, evaluate"
from .features import Extractor, Scale, extract, plot_vectors, pretrained
from .mixture import Plan, mix, plan
from .params import SplitParams, check_params, presets
from .run import SplitRun, evaluation_from, predictions_frame
from .core import run_split
