"""The Trainer of a configuration: strategy, loggers and callbacks in the order that they need."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger

from faceattr_lightning.callbacks.wandb_run import WandbRun, start_run
from faceattr_lightning.checkpoint_io import WholeCheckpointIO
from faceattr_lightning.instantiate import build, build_profiler
from faceattr_lightning.models.module import AttributeModule
from faceattr_lightning.precision import choose_precision
from faceattr_lightning.processes import is_first_process
from faceattr_lightning.strategy import Process, choose_accelerator, choose_strategy

# Nobody can act on these: Hydra has put its log file beside metrics.csv, a run that goes on has checkpoints, Lightning
# calls a deprecated name, what we log at the end of an epoch comes from all ranks' predictions, so is equal on all, and
# a frozen stage is in eval mode because backbone.freeze says so.
warnings.filterwarnings("ignore", "Experiment logs directory .* exists and is not empty")
warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\)")
warnings.filterwarnings("ignore", r"It is recommended to use `self\.log\(.*sync_dist=True\)`")
warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")


@contextmanager
def make_trainer(
    config: dict[str, Any], model: AttributeModule, ranks: list[Process], resumed: dict[str, Any] | None = None
) -> Iterator[Trainer]:
    """Make the Trainer, and finish its loggers when the job ends, also by an exception.

    Args:
        config: the run's configuration as plain data.
        model: brings the callbacks that are part of it.
        ranks: takes the other processes of the job.
        resumed: the checkpoint that training goes on from.
    """
    node = config["trainer"]
    loggers = make_loggers(config, resumed)
    exit_code = 1
    try:
        # Always with WandbRun: a part of the training without W&B must not lose the run's id.
        callbacks = [build(entry) for entry in (config["callbacks"] or {}).values() if entry] + [WandbRun()]
        accelerator = choose_accelerator(node["accelerator"])
        strategy = choose_strategy(
            node["strategy"], node["devices"], accelerator, node["num_nodes"], ranks, config["ckpt_path"]
        )
        trainer: Trainer = build(
            node,
            accelerator=accelerator,
            strategy=strategy,
            precision=choose_precision(node["precision"], accelerator, model.network),
            profiler=build_profiler(node),
            logger=loggers,
            callbacks=order_callbacks(callbacks, model),
            plugins=[*(node.get("plugins") or ()), WholeCheckpointIO()],
            default_root_dir=config["paths"]["run_dir"],
        )
        yield trainer
        exit_code = 0
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger) and is_first_process():
                logger.experiment.finish(exit_code=exit_code)


def order_callbacks(callbacks: list[Callback], model: AttributeModule) -> list[Callback]:
    """Put the model's own callbacks first.

    Weight averaging swaps buffers along with the weights: a threshold that is fitted after the swap would be averaged
    away. And whoever reports or saves has to see this epoch's weights and thresholds.
    """
    return [*model.own_callbacks, *callbacks]


def make_loggers(config: dict[str, Any], resumed: dict[str, Any] | None = None) -> list[Logger]:
    """Make the loggers; a W&B run gets a name, the sweep as its group, and goes on with the run that is resumed."""
    loggers: list[Logger] = []
    for node in (config["logger"] or {}).values():
        extra: dict[str, Any] = {}
        if node["_target_"].endswith("WandbLogger"):
            extra = wandb_identity(config, node, resumed)
        logger: Logger = build(node, **extra)
        if isinstance(logger, WandbLogger):
            start_run(logger, config)
        loggers.append(logger)
    return loggers


def wandb_identity(config: dict[str, Any], node: dict[str, Any], resumed: dict[str, Any] | None) -> dict[str, Any]:
    """Return ``name``, ``group``, ``id`` and ``resume`` of a W&B run where the configuration leaves them open."""
    model = config["model"]["_target_"].rpartition(".")[2].lower()
    data = config["data"]["_target_"].rpartition(".")[2].lower()
    identity: dict[str, Any] = {
        "name": node["name"] or f"{model}-{config['backbone']['name']}-{data}-seed{config['seed']}"
    }
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    identity["group"] = node["group"] or (Path(HydraConfig.get().sweep.dir).name if in_sweep else None)
    run_id = WandbRun.saved_id(resumed) if resumed else None
    if run_id:
        identity |= {"id": run_id, "resume": "allow"}
    return identity
