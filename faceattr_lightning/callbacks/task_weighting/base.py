"""What every weighting has, and what a weight is given to: an attribute, a group of attributes or a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

import torch
from lightning import Trainer
from torch import Tensor, nn

from faceattr_lightning.callbacks.fitted import FittedState
from faceattr_lightning.errors import ConfigError

Over = Literal["attribute", "group", "task"]


class TaskWeighting(FittedState):
    """Uniform weights, and the base of every strategy: a module whose buffers travel in the checkpoint, and a callback.

    The training loss is ``sum_j w_j L_j`` over the attributes, and ``w_t L_t`` for each task beside them. A strategy
    changes the weights at a hook of its choice; its statistics must be equal on every rank before they enter a weight.

    Args:
        attributes: number of attributes A.
        group_of: (A,) index of each attribute's group; empty for one group of all.
        tasks: names of the T tasks that the model may have beside the attributes, such as landmarks or age groups.
    """

    weights: Tensor
    """float32 (A,), those of the attributes' losses."""
    task_weights: Tensor
    """float32 (T,), those of the tasks' losses, beside what the model's configuration multiplies them with."""

    def __init__(self, attributes: int, group_of: Sequence[int] = (), tasks: Sequence[str] = ()) -> None:
        super().__init__()
        self.group_of = list(group_of) or [0] * attributes
        self.tasks = list(tasks)
        self.register_buffer("weights", torch.ones(attributes))
        self.register_buffer("task_weights", torch.ones(len(self.tasks)))

    def weigh(self, attribute_losses: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the training loss is the sum of.

        Args:
            attribute_losses: float (A,).
            terms: the other losses, scalars; those that are no task of the model, such as a regulariser, keep
                weight 1.
        """
        of_attributes, of_tasks = self.current()
        weighted = {"attributes": (of_attributes * attribute_losses).sum()}
        for name, term in terms.items():
            weighted[name] = of_tasks[self.tasks.index(name)] * term if name in self.tasks else term
        return weighted

    def current(self) -> tuple[Tensor, Tensor]:
        """Return the weights that the loss is made with: those of the attributes, (A,), and of the tasks, (T,)."""
        return self.weights, self.task_weights

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups of what the strategy learns by gradient."""
        return []


class UnitOptions(TypedDict, total=False):
    """What strategies have in common.

    Keys:
        over: what has a weight of its own: each ``attribute``; each ``group`` of the model; or each ``task``, the
            attributes together being one, the landmarks or age groups the others.
        floor: least weight, of at least 0 and at most 1.
        ceiling: greatest weight, of at least 1.
    """

    over: Over
    floor: float
    ceiling: float


class Units(nn.Module):
    """What weights are given to, and the way from a unit's weight to the losses' and back.

    Args:
        attributes: number of attributes A.
        group_of: (A,) index of each attribute's group.
        tasks: T names.
        over: see `UnitOptions`, like ``floor`` and ``ceiling``.
        floor: least weight.
        ceiling: greatest weight.
        problems: what else is wrong with the strategy's configuration, to be told at once.

    Raises:
        ConfigError: ``problems``, a value out of its range, or no task beside the attributes for ``over=task``.
    """

    of_attribute: Tensor
    """int64 (A,), the unit of each attribute; the tasks' units, if they have any, come after."""
    sizes: Tensor
    """float64 (U,), how many losses a unit's weight stands for."""

    def __init__(
        self,
        attributes: int,
        group_of: Sequence[int],
        tasks: Sequence[str],
        over: Over = "attribute",
        floor: float = 0.0,
        ceiling: float = float("inf"),
        problems: Sequence[str] = (),
    ) -> None:
        super().__init__()
        problems = list(problems)
        if not 0 <= floor <= 1 <= ceiling:
            problems.append(
                f"weighting.floor, weighting.ceiling: expected 0 <= floor <= 1 <= ceiling, found {floor}, {ceiling}."
            )
        if over == "task" and not tasks:
            problems.append(
                "weighting.over: this model has no task beside the attributes; take attribute or group, or a model "
                "and data with landmarks or age groups."
            )
        if problems:
            raise ConfigError(problems)
        self.over, self.floor, self.ceiling = over, floor, ceiling
        columns = {"attribute": list(range(attributes)), "group": list(group_of), "task": [0] * attributes}[over]
        self.tasks = len(tasks)
        # No state: they follow from the model.
        self.register_buffer("of_attribute", torch.tensor(columns), persistent=False)
        sizes = torch.ones(1 + len(tasks)) if over == "task" else torch.tensor(columns).bincount()
        self.register_buffer("sizes", sizes.double(), persistent=False)

    def __len__(self) -> int:
        return len(self.sizes)

    def normalise(self, weights: Tensor) -> Tensor:
        """Return weights (U,) scaled so that the mean over what they stand for is 1."""
        return weights * (self.sizes.sum() / (self.sizes * weights).sum())

    def bound(self, weights: Tensor) -> Tensor:
        """Return weights (U,) between floor and ceiling, of mean 1."""
        return self.normalise(weights.clamp(self.floor, self.ceiling))

    def losses(self, attribute_losses: Tensor, task_losses: Tensor) -> Tensor:
        """Return each unit's loss, (U,): the mean over its attributes, NaN where none has one; or the task's.

        Args:
            attribute_losses: float (A,), NaN where not known.
            task_losses: float (T,), NaN where the task has none.
        """
        own = 1 if self.over == "task" else len(self)
        known = ~attribute_losses.isnan()
        sums = attribute_losses.new_zeros(own).index_add(0, self.of_attribute, attribute_losses.nan_to_num())
        counts = attribute_losses.new_zeros(own).index_add(0, self.of_attribute, known.to(attribute_losses))
        return torch.cat([sums / counts, task_losses[: len(self) - own].to(sums)])

    def split(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return each attribute's weight (A,) and each task's (T,) of the units' (U,); tasks that are no unit: 1."""
        of_tasks = weights[1:] if self.over == "task" else weights.new_ones(self.tasks)
        return weights[self.of_attribute], of_tasks


class DynamicWeighting(TaskWeighting):
    """Weights that are put anew now and then, of mean 1 over what is weighed.

    Args:
        attributes: see `TaskWeighting`, like ``group_of`` and ``tasks``.
        group_of: see there.
        tasks: see there.
        smoothing: share of the old weight that is kept at each change, in [0, 1).
        problems: see `Units`.
        options: see `UnitOptions`.

    Raises:
        ConfigError: ``problems``, or a value out of its range.
    """

    unit_weights: Tensor
    """float64 (U,)."""

    def __init__(
        self,
        attributes: int,
        group_of: Sequence[int],
        tasks: Sequence[str],
        smoothing: float = 0.0,
        problems: Sequence[str] = (),
        **options: Unpack[UnitOptions],
    ) -> None:
        super().__init__(attributes, group_of, tasks)
        problems = list(problems)
        if not 0 <= smoothing < 1:
            problems.append(f"weighting.smoothing: expected a share in [0, 1), found {smoothing}.")
        self.units = Units(attributes, self.group_of, self.tasks, problems=problems, **options)
        self.smoothing = smoothing
        self.register_buffer("unit_weights", torch.ones(len(self.units), dtype=torch.float64))

    def change(self, weights: Tensor) -> None:
        """Move the weights to new ones.

        Args:
            weights: float (U,), of whatever mean.
        """
        bounded = self.units.bound(self.units.normalise(weights.to(self.unit_weights)))
        mixed = self.smoothing * self.unit_weights + (1 - self.smoothing) * bounded
        self.unit_weights.copy_(self.units.normalise(mixed))
        of_attributes, of_tasks = self.units.split(self.unit_weights)
        self.weights.copy_(of_attributes)
        self.task_weights.copy_(of_tasks)


class TrainingLosses(nn.Module):
    """Mean training losses of a window of steps, over all ranks; part of a strategy, so that it is saved with it.

    Args:
        count: number of losses, those of the attributes and then the tasks'.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(count, dtype=torch.float64))

    def add(self, outputs: Mapping[str, Tensor], trainer: Trainer) -> None:
        """Add what a training step returned on all ranks; each of them has to call it.

        At each step, so that a checkpoint holds all of it, and since DDP replaces a rank's own buffers by the first's.
        """
        step = torch.stack([outputs["loss_sums"].double(), outputs["label_counts"].double()])
        total = trainer.strategy.reduce(step, reduce_op="sum")
        assert isinstance(total, Tensor)
        self.sums += total[0]
        self.counts += total[1]

    def end(self) -> Tensor:
        """Return the window's means, float64, NaN where nothing was labelled, and begin the next one."""
        means = self.sums / self.counts
        self.sums.zero_()
        self.counts.zero_()
        return means
