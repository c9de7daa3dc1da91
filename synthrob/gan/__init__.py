"Stage 1: synthesise"
from .learner import (LiveFigure, SampleSheet, gan_learner, load_gan, plot_training, sample_sheet, save_gan,
                      training_curve)
from .memorization import PoolReport, evaluate_pool, find_copies
from .metrics import SaveBestGAN, cas, fid, gan_test, intra_class, kid, prdc
from .nets import GAN
from .pools import (RefreshSynthetic, as_pool, confidence_thresholds, filter_pool, label_confidence,
                    pool_from_folder, sample_pool)
from .trainer import GANRecipe, gan_recipe, gan_recipes
