"Labelled images from any source, split so that nothing leaks"
from .core import Source, data_stage, decisions, describe, fer2013_path, prepare, prepare_near, source
from .dataset import Dataset, concat
from .duplicates import duplicate_groups, flat, near_duplicates, plot_pairs
from .faces import draw_faces, emotions
from .loaders import Augment, DeviceDL, device_dls
from .splits import Splits, check_held_out, check_no_leak   # not `splits`, which would hide its module
