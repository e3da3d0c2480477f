"""One job: the plain configuration, its checks, its folder, its task."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from faceattr_lightning.allocator import keep_freed_memory
from faceattr_lightning.config import validate
from faceattr_lightning.instantiate import build
from faceattr_lightning.strategy import distributed_job, is_launched_rank
from faceattr_lightning.tasks.run_folder import save_config


def run_job(cfg: DictConfig) -> None:
    """Validate a composed configuration, write it into the run's folder and call the task that it names.

    Raises:
        FaceAttrError: whatever the user can mend.
    """
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    validate(config)
    run_dir = Path(config["paths"]["run_dir"])
    if is_launched_rank():
        logging.getLogger("faceattr_lightning").setLevel(logging.WARNING)
    else:
        save_config(config, run_dir)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        # Which accelerators there are not, and advertisements; its warnings go the way of every other message.
        logger.setLevel(logging.WARNING)
        logger.handlers.clear()
    if config["keep_freed_memory"]:
        keep_freed_memory()
    with distributed_job() as ranks:
        build(config["task"], config, ranks)
