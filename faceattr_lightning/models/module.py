"""What the LightningModules share: steps, optimiser, evaluation and a checkpoint that describes itself."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from lightning import Callback, LightningModule
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

import faceattr_lightning
from faceattr_lightning.attributes import resolve_groups
from faceattr_lightning.callbacks.stage import fitting
from faceattr_lightning.callbacks.task_weighting import TaskWeighting
from faceattr_lightning.callbacks.threshold_calibration import ThresholdCalibrator
from faceattr_lightning.checkpoint import CHECKPOINT_KEY
from faceattr_lightning.data.batch import Batch
from faceattr_lightning.data.order import EpochOrder
from faceattr_lightning.data.preprocessing import Preprocessing
from faceattr_lightning.data.table import Split
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.instantiate import build_a
from faceattr_lightning.metrics.age_groups import age_group_measures
from faceattr_lightning.metrics.attribute_metrics import attribute_metrics, mean_metrics
from faceattr_lightning.metrics.predictions import Predictions, PredictionStore
from faceattr_lightning.models.losses import age_group_loss, attribute_bce, labelled_count, landmark_error
from faceattr_lightning.networks.backbone import load_pretrained
from faceattr_lightning.networks.load import make_network
from faceattr_lightning.networks.output import Output

if TYPE_CHECKING:
    from faceattr_lightning.data.module import FaceDataModule

log = logging.getLogger(__name__)

TRAINING_FACTS = ("effective_batch_size", "learning_rate")

UNIFORM = {"_target_": "faceattr_lightning.callbacks.task_weighting.TaskWeighting"}
FIXED = {"_target_": "faceattr_lightning.callbacks.threshold_calibration.ThresholdCalibrator"}
ADAMW = {"_target_": "torch.optim.AdamW", "lr": 1e-3, "weight_decay": 0.01}
ONE_CYCLE = {"name": "one_cycle", "warmup": 0.2}


class AttributeModule(LightningModule):
    """Base of the LightningModules. A subclass makes ``self.network`` by `make_network` and may add losses.

    Every argument is plain data, so that ``load_from_checkpoint(path)`` needs nothing else and
    ``torch.load(weights_only=True)`` opens the file. `weighting` and `calibrator` are submodules (their buffers are
    part of the state) and callbacks, which the Trainer must be given: `own_callbacks`.

    Args:
        attribute_names: A names, in the order of the logits.
        preprocessing: `Preprocessing.to_dict`.
        groups: a grouping's name, or group name to attribute names; see `resolve_groups`.
        weighting: node of a `TaskWeighting`; ``None`` weighs attributes alike.
        calibration: node of a `ThresholdCalibrator`; ``None`` keeps 0.5.
        optimizer: node of a torch optimiser.
        schedule: ``name`` one of one_cycle, cosine, constant; ``warmup`` as a share of all steps in [0, 1); and
            ``batch_rule``, see `batch_factor`.
        age_groups: G names of age groups, youngest first, if the data has any; they are learned beside the attributes.
        tasks: which of the `extra_losses` are tasks of their own, for a weighting over tasks.

    Raises:
        ConfigError: groups that do not cover the attributes, or an unknown schedule or rule.
    """

    backbone_needs: ClassVar[Literal["map", "scales", "blocks"]] = "map"
    """What a backbone must have beside a feature map: maps at three scales, or stages of blocks."""

    network: nn.Module
    train_prevalence: Tensor
    """float32 (A,), share of positives in the training split; NaN where not known."""
    train_age_groups: Tensor
    """float32 (G,), share of each age group in the training split; NaN where not known."""

    def __init__(
        self,
        attribute_names: list[str],
        preprocessing: dict[str, Any],
        groups: str | dict[str, list[str]] | None,
        weighting: dict[str, Any] | None,
        calibration: dict[str, Any] | None,
        optimizer: dict[str, Any] | None,
        schedule: dict[str, Any] | None,
        age_groups: list[str] | None = None,
        tasks: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.attribute_names = list(attribute_names)
        self.groups = resolve_groups(groups, self.attribute_names)
        self.columns = {group: [attribute_names.index(name) for name in names] for group, names in self.groups.items()}
        """The columns of the logits that belong to each group."""
        self.age_groups = list(age_groups or ())
        self.preprocessing = Preprocessing.from_dict(preprocessing)
        group_of = [list(self.groups).index(self.group_of(name)) for name in self.attribute_names]
        tasks = (*(["age_group"] if self.age_groups else []), *tasks)
        self.weighting = build_a(TaskWeighting, weighting or UNIFORM, len(self.attribute_names), group_of, tasks)
        self.calibrator = self.make_calibrator(calibration or FIXED)
        self.optimizer_node = optimizer or ADAMW
        self.schedule: dict[str, Any] = {"batch_rule": "none", **(schedule or ONE_CYCLE)}
        if self.schedule["name"] not in ("one_cycle", "cosine", "constant"):
            raise ConfigError(
                [f"model.schedule.name: expected one_cycle, cosine or constant, found '{self.schedule['name']}'."]
            )
        batch_factor(self.schedule["batch_rule"], 1)
        self.register_buffer("train_prevalence", torch.full((len(self.attribute_names),), torch.nan))
        self.register_buffer("train_age_groups", torch.full((len(self.age_groups),), torch.nan))
        self.predictions = PredictionStore()
        self._sums: Tensor | None = None
        self._count = 0
        self._names: list[str] = []
        self.run_config: dict[str, Any] = {}
        """The run's whole configuration as plain data; stands in the checkpoint."""
        self.network_node: dict[str, Any] | None = None
        """What `make_network` has made the network of; stands in the checkpoint."""
        self.seconds_before_training = (0.0, 0.0)
        """Wall and CPU seconds of what this run trained before the network as a whole, such as MGMTN's masks."""
        self.training_facts: dict[str, float] = {}
        """`TRAINING_FACTS`, once known: over all processes and accumulated steps, and at the schedule's peak."""

    def backbone_node(self, backbone: dict[str, Any]) -> dict[str, Any]:
        """Return a `Backbone`'s node for the configuration's (``name``, ``freeze``, ``channels_last``)."""
        image = self.preprocessing
        return {
            "_target_": "faceattr_lightning.networks.backbone.Backbone",
            "name": backbone["name"],
            "mean": image.mean,
            "std": image.std,
            "image_size": image.image_size,
            "channels_last": backbone.get("channels_last", True),
            "freeze": backbone.get("freeze", 0),
        }

    def make_network(self, node: dict[str, Any]) -> Any:
        """Make the network of a node, with random weights, and keep the node, with which the checkpoint describes it.

        Args:
            node: of plain data; see `faceattr_lightning.networks.load.make_network`.
        """
        self.network_node = node
        return make_network(node)

    def make_calibrator(self, calibration: dict[str, Any]) -> ThresholdCalibrator:
        """Make the calibrator of a node for this model's attributes."""
        calibrator = build_a(ThresholdCalibrator, calibration, len(self.attribute_names))
        calibrator.check(self.attribute_names)
        return calibrator

    def group_of(self, attribute: str) -> str:
        """Return the group that an attribute is in."""
        return next(group for group, members in self.groups.items() if attribute in members)

    @property
    def own_callbacks(self) -> list[Callback]:
        """The parts that the Trainer must call, in this order and before any other callback."""
        return [self.weighting, self.calibrator]

    def load_pretrained(self, pretrained: bool | str) -> None:
        """Load what training starts from; see `faceattr_lightning.networks.backbone.load_pretrained`."""
        backbone: Any = self.network.backbone
        load_pretrained(backbone, pretrained)

    def forward(self, image: Tensor) -> Output:
        """Run the network; see its ``forward``."""
        output: Output = self.network(image)
        return output

    def predict(self, batch: Batch) -> Output:
        """Run the network on a batch; a subclass overrides it where more than the images goes in."""
        output: Output = self(batch["image"])
        return output

    def extra_losses(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Return further weighted loss terms by name, scalars; a subclass overrides it."""
        return {}

    def measures(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Return further figures of each sample, float (B,), NaN where one is not known; a subclass may add some."""
        found = {}
        if "landmarks" in output and output["landmarks"].shape == batch["landmarks"].shape:
            target, valid = batch["landmarks"], batch["landmarks_valid"]
            found["landmark_nme"] = landmark_error(output["landmarks"], target, valid)
            if self.preprocessing.template:
                mean_shape = target.new_tensor(self.preprocessing.template)
                found["landmark_nme_of_mean_shape"] = landmark_error(mean_shape.expand_as(target), target, valid)
        if "age_group" in output:
            found |= age_group_measures(output["age_group"], batch["age_group"], self.train_age_groups)
        return found

    def facts(self, datamodule: FaceDataModule) -> dict[str, Any]:
        """Return what the summary of a report says of the trained network itself; a subclass may add to it."""
        return {}

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        output = self.predict(batch)
        labelled = batch["attributes"] >= 0
        count = labelled_count(labelled)
        attribute_losses = attribute_bce(output["logits"], batch["attributes"], count)
        others = self.extra_losses(output, batch)
        if "age_group" in output:
            others = {"age_group": age_group_loss(output["age_group"], batch["age_group"]), **others}
        terms = self.weighting.weigh(attribute_losses, others)
        loss = torch.stack(list(terms.values())).sum()
        # Of the scale of the validation loss, to stand beside it.
        logged = {"train/loss": loss, "train/loss_per_attribute": attribute_losses.mean()}
        if len(terms) > 1:
            logged |= {f"train/loss_{name}": term for name, term in terms.items()}
        self._add_to_means(logged, len(batch["image"]))
        # Beside the loss, for the weighting: each loss's sum over this rank's samples, and their number.
        sums, counts = attribute_losses.detach() * count, labelled.sum(dim=0)
        for task in self.weighting.tasks:
            size = len(batch["image"]) if task in others else 0
            sums = torch.cat([sums, (others[task].detach() * size if size else sums.new_zeros(())).reshape(1)])
            counts = torch.cat([counts, counts.new_tensor([size])])
        return {"loss": loss, "loss_sums": sums, "label_counts": counts}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout, too, is a pure function of (seed, epoch, rank, step), so that a resumed run goes on exactly.
        key = (self.run_config.get("seed", 0), self.current_epoch, self.global_rank, batch_idx)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        # Here, after the callbacks, of which one may have left the step out.
        self._log_means()

    def on_validation_epoch_start(self) -> None:
        self.predictions.reset()

    def on_test_epoch_start(self) -> None:
        self.predictions.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._collect(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._collect(batch)

    def on_validation_epoch_end(self) -> None:
        # Callbacks come first: weights and thresholds are this epoch's already.
        for fitted in (self.weighting, self.calibrator):
            fitted.keep()
        # After training the best checkpoint is validated once more; that is no further epoch of the curve.
        self._log_metrics("val" if fitting(self.trainer) else "final_val")
        if fitting(self.trainer):
            for prefix, vector in (("weight", self.weighting.weights), ("threshold", self.calibrator.thresholds)):
                values = dict(zip(self.attribute_names, vector.tolist(), strict=True))
                self.log_dict({f"{prefix}/{name}": value for name, value in values.items()})
            task_weights = zip(self.weighting.tasks, self.weighting.task_weights.tolist(), strict=True)
            self.log_dict({f"task_weight/{name}": value for name, value in task_weights})

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def gathered(self) -> Predictions:
        """Return the predictions of the split that was run, of all ranks, at the present temperatures."""
        return self.predictions.gather().scaled(self.calibrator.temperatures)

    def metrics(self, predictions: Predictions, train_prevalence: Tensor | None = None) -> dict[str, Tensor]:
        """Return every metric of every attribute at the present thresholds; see `attribute_metrics`.

        Args:
            predictions: of a split, scaled as those of `gathered`.
            train_prevalence: float (A,), if the constant answer is to be that of a part of the training split.
        """
        prevalence = self.train_prevalence if train_prevalence is None else train_prevalence
        return attribute_metrics(predictions, self.calibrator.thresholds, prevalence)

    def validation_losses(self, step: int) -> tuple[Tensor, Tensor]:
        """Forward one validation batch without touching the state of training; for weighting between epochs.

        Args:
            step: picks the batch; the same step gives the same batch.

        Returns:
            float64 (A,) summed binary cross-entropies and float64 (A,) numbers of labelled samples, over all ranks.
        """
        if not hasattr(self, "_validation_part"):
            loader = self.trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
            order: EpochOrder = loader.sampler
            self._validation_part = (self.trainer.datamodule.dataset(Split.VALIDATION), list(order))  # type: ignore[attr-defined]
        dataset, requests = self._validation_part
        batch: Batch = self.transfer_batch_to_device(dataset[requests[step % len(requests)]], self.device, 0)
        # Random numbers (dropout) and batch statistics of training must not notice; a frozen layer stays as it is.
        modes = {module: module.training for module in self.network.modules()}
        self.network.eval()
        with torch.no_grad():
            losses = attribute_bce(self.predict(batch)["logits"], batch["attributes"])
        for module, training in modes.items():
            module.training = training
        counts = (batch["attributes"] >= 0).sum(dim=0).double()
        total = self.trainer.strategy.reduce(torch.stack([losses.double() * counts, counts]), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total[0], total[1]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        node = self.optimizer_node
        if node.get("fused") and self.trainer.precision == "16-mixed":
            # It would unscale the gradients itself, after they were clipped.
            node = {**node, "fused": False}
        learned = self.weighting.parameter_groups()
        apart = {id(parameter) for group in learned for parameter in group["params"]}
        trained = [one for one in self.parameters() if one.requires_grad and id(one) not in apart]
        optimizer = build_a(torch.optim.Optimizer, node, [{"params": trained}, *learned] if learned else trained)
        total, warmup = max(1, int(self.trainer.estimated_stepping_batches)), self.schedule.get("warmup", 0.0)
        # In the schedule, not in the optimiser, whose state a checkpoint brings back: devices may have changed.
        peak = self._choose_peak(float(optimizer.defaults["lr"]))
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: peak * learning_rate_factor(self.schedule["name"], step / total, warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _choose_peak(self, configured: float) -> float:
        """Return what the peak of the learning rate is multiplied by; say, and keep, what the batches are."""
        trainer, rule = self.trainer, self.schedule["batch_rule"]
        batch_size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        processes, accumulated = trainer.world_size, trainer.accumulate_grad_batches
        factor = batch_factor(rule, processes * accumulated)
        effective = batch_size * processes * accumulated
        self.training_facts = dict(zip(TRAINING_FACTS, (effective, configured * factor), strict=True))
        log.info(
            "Effective batch %d x %d processes x %d accumulated steps = %d, learning rate %g "
            "(model.schedule.batch_rule=%s)",
            *(batch_size, processes, accumulated, effective, configured * factor, rule),
        )
        return factor

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val and isinstance(self.trainer.strategy, FSDPStrategy):
            # Each rank has a part of the gradients; Lightning refuses it.
            sharded: Any = self.trainer.strategy.model
            sharded.clip_grad_norm_(gradient_clip_val)
        elif gradient_clip_val and self.trainer.precision == "bf16-mixed" and gradient_clip_algorithm in (None, "norm"):
            # Lightning refuses it for a fused optimiser, although bfloat16 has no scale to undo.
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = {
            "version": faceattr_lightning.__version__,
            "model": f"{type(self).__module__}.{type(self).__qualname__}",
            "network": self.network_node,
            "attribute_names": self.attribute_names,
            "groups": self.groups,
            "age_groups": self.age_groups,
            "thresholds": self.calibrator.thresholds.tolist(),
            "temperatures": self.calibrator.temperatures.tolist(),
            "task_weights": self.weighting.weights.tolist(),
            "preprocessing": self.preprocessing.to_dict(),
            "config": self.run_config,
            **self.training_facts,
            "epoch_sums": None if self._sums is None else self._sums.cpu(),
            "epoch_count": self._count,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Kept when a run is resumed with the same code, so that testing a checkpoint does not lose it.
        own = checkpoint.get(CHECKPOINT_KEY, {})
        self.run_config = self.run_config or own.get("config", {})
        self.training_facts = self.training_facts or {name: own[name] for name in TRAINING_FACTS if name in own}
        self._sums, self._count = own.get("epoch_sums"), own.get("epoch_count", 0)

    def _add_to_means(self, values: dict[str, Tensor], count: int) -> None:
        step = count * torch.stack([value.detach() for value in values.values()])
        self._sums = step if self._sums is None else self._sums.to(step.device) + step
        self._count += count
        self._names = list(values)

    def _log_means(self) -> None:
        """Log the epoch's means with its last step: a call for each value and step takes a millisecond."""
        ends = self.trainer.is_last_batch or self.trainer.global_step == self.trainer.max_steps
        if not ends or self._sums is None:
            return
        for name, value in zip(self._names, self._sums / self._count, strict=True):
            bar = name == "train/loss"
            self.log(name, value, on_step=False, on_epoch=True, prog_bar=bar, batch_size=1, sync_dist=True)
        self._sums, self._count = None, 0

    def _collect(self, batch: Batch) -> None:
        output = self.predict(batch)
        self.predictions.update(output["logits"], batch["attributes"], batch["index"], self.measures(output, batch))

    def _log_metrics(self, prefix: str) -> None:
        predictions = self.predictions.gather()
        means = mean_metrics(self.metrics(predictions.scaled(self.calibrator.temperatures)))
        means["loss"] = float(predictions.attribute_losses().nanmean())
        means |= predictions.measure_means()
        # One figure, and the loss: a terminal of eighty columns has room for no more beside the bar.
        self.log(f"{prefix}/accuracy", means.pop("accuracy"), prog_bar=True)
        self.log_dict({f"{prefix}/{name}": value for name, value in means.items()})


def learning_rate_factor(schedule: str, progress: float, warmup: float) -> float:
    """Return the learning rate as a share of its peak.

    Args:
        schedule: ``one_cycle`` and ``cosine`` fall to 0 along a cosine after the warm-up; one_cycle rises along a
            cosine too, cosine in a straight line; ``constant`` stays at 1 after a straight rise.
        progress: share of all steps done, in [0, 1].
        warmup: share of all steps that the rise takes, in [0, 1).
    """
    if progress < warmup:
        rise = progress / warmup
        # From 1/25 of the peak (Smith, Topin, 2018), so that the first step moves.
        return 0.04 + 0.96 * ((1 - math.cos(math.pi * rise)) / 2 if schedule == "one_cycle" else rise)
    if schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup)))) / 2


def batch_factor(rule: str, times: float) -> float:
    """Return the learning rate as a multiple of the configured one, for batches of a multiple of the configured size.

    Args:
        rule: ``none`` 1; ``sqrt`` the root of ``times`` (Krizhevsky, One weird trick, 2014; for Adam Malladi, Lyu,
            Panigrahi, Arora, 2022); ``linear`` ``times`` itself (for SGD Goyal et al., 2017).
        times: the effective batch, which is that of all processes and of all accumulated steps, over one process's
            batch.

    Raises:
        ConfigError: an unknown rule.
    """
    powers = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}
    if rule not in powers:
        raise ConfigError([f"model.schedule.batch_rule: expected none, sqrt or linear, found '{rule}'."])
    return float(times ** powers[rule])
