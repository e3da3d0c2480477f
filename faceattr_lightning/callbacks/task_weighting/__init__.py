"""Task weighting: the weight of each loss, fixed, learned or changed while the model trains. One strategy a file."""

from faceattr_lightning.callbacks.task_weighting.base import TaskWeighting
from faceattr_lightning.callbacks.task_weighting.dmm import DMMWeighting
from faceattr_lightning.callbacks.task_weighting.gradnorm import GradNormWeighting
from faceattr_lightning.callbacks.task_weighting.inverse_prevalence import InversePrevalenceWeighting
from faceattr_lightning.callbacks.task_weighting.trend import DWAWeighting, DWSWeighting
from faceattr_lightning.callbacks.task_weighting.uncertainty import UncertaintyWeighting

__all__ = [
    "DMMWeighting",
    "DWAWeighting",
    "DWSWeighting",
    "GradNormWeighting",
    "InversePrevalenceWeighting",
    "TaskWeighting",
    "UncertaintyWeighting",
]
