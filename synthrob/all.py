"Everything for a notebook: `from synthrob.all import *`"
from .core.basics import BadInput, default_device
from .core.stages import Stage
from .data import *
from .gan import *
from .cnn import *
from .split import *
