"Stage 2: classify and evaluate"
from .attacks import *
from .calibration import *
from .corruptions import *
from .evaluation import Confusion
from .learner import Evaluation, Recipe, cnn_learner, evaluate, predict, recipe, recipes
from .models import PosterNet, StrongNet, Torchvision
from .robustness import *
