"""Which validation is which."""

from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerFn


def fitting(trainer: Trainer) -> bool:
    """Return whether a validation belongs to training: not Lightning's sanity check, not a run of ``validate``."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
