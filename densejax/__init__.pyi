from . import active as active
from . import classification as classification
from . import data as data
from . import inference as inference
from . import landscape as landscape
from . import losses as losses
from . import metrics as metrics
from . import models as models
from . import optim as optim
from . import plots as plots
from . import segmentation as segmentation
from .population import Population as Population
from .population import use_all_cores as use_all_cores
from .segmentation.loading import load as load
from .training.sweep import Schedule as Schedule
from .training.sweep import Sweep as Sweep
from .training.task import Task as Task

__version__: str
