"Interactive pages"
from .data import CorruptionExplorer, DataExplorer
from .gan import GANExplorer
from .split import SplitExplorer, explore
