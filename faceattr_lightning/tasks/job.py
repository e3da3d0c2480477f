"""One job: its folder, its plain configuration, its checks, its task, and how it ended."""

from __future__ import annotations

import logging
import traceback
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf

from faceattr_lightning.allocator import keep_freed_memory
from faceattr_lightning.checkpoint import LAST, PREVIOUS
from faceattr_lightning.config import validate
from faceattr_lightning.errors import ConfigError, FaceAttrError
from faceattr_lightning.files import write_text
from faceattr_lightning.going_on import lasting_overrides
from faceattr_lightning.instantiate import build
from faceattr_lightning.processes import is_first_process, is_restarted
from faceattr_lightning.strategy import distributed_job
from faceattr_lightning.tasks.checkpoint import has_checkpoint
from faceattr_lightning.tasks.failures import explain
from faceattr_lightning.tasks.run_folder import RunStatus, occupied, read_status, save_config, write_status

log = logging.getLogger(__name__)


def run_job(cfg: DictConfig) -> float | None:
    """Validate a composed configuration, write it into the run's folder and call the task that it names.

    Returns:
        what the task returned, such as the best value of the monitored metric of a training.

    Raises:
        FaceAttrError: whatever the user can mend.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    first = is_first_process()
    with occupied(run_dir) if first else nullcontext():
        before = read_status(run_dir)
        # A command that is refused says nothing about the run that the folder holds.
        begun = before is None
        task = str(HydraConfig.get().runtime.choices["task"])
        status = RunStatus("running", task, lasting_overrides(HydraConfig.get().overrides.task, task))
        try:
            config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
            validate(config)
            if before is not None:
                if first:
                    check_folder(before, status, config, run_dir)
                if config["sweep"]["resume"] and before.state == "finished":
                    log.info("%s: finished before.", run_dir)
                    return before.value
                if config["ckpt_path"] is None and has_checkpoint(run_dir) and is_told_to_go_on(config):
                    config["ckpt_path"] = LAST
            begun = True
            _prepare(config, run_dir, status)
            with distributed_job() as ranks:
                value: float | None = build(config["task"], config, ranks)
        except BaseException as error:
            explained = explain(error)
            if first and begun:
                stopped = isinstance(error, KeyboardInterrupt | SystemExit)
                ended = replace(status, state="stopped" if stopped else "failed", reason=explained or _reason(error))
                with suppress(FaceAttrError, OSError):
                    write_status(ended, run_dir)
                    if not stopped and explained is None and not isinstance(error, FaceAttrError):
                        # Of several failed jobs Hydra prints the first one's alone.
                        write_text(traceback.format_exc(), run_dir / "traceback.txt")
            if isinstance(error, SIGTERMException):
                log.info("SIGTERM ended this run. ckpt_path=last goes on with it.")
                # 128 + 15, as a shell says of a process that SIGTERM ended; Lightning's is 0.
                raise SystemExit(143) from error
            if explained is not None:
                raise FaceAttrError(explained) from error
            raise
        if first:
            write_status(replace(status, state="finished", value=value), run_dir)
        return value


def check_folder(before: RunStatus, now: RunStatus, config: dict[str, Any], run_dir: Path) -> None:
    """Raise a ConfigError if the run's folder holds another run, or one that this job was not told to go on with.

    Args:
        before: of the run that the folder holds.
        now: of this job.
        config: of this job.
        run_dir: the folder.
    """
    if config["sweep"]["resume"]:
        if before.overrides != now.overrides:
            raise ConfigError(
                [
                    f"sweep.resume: {run_dir} holds the job {' '.join(before.overrides)}, not "
                    f"{' '.join(now.overrides)}. Repeat the sweep's command, or begin another sweep."
                ]
            )
    elif not is_told_to_go_on(config):
        if before.state == "finished":
            raise ConfigError([f"hydra.run.dir: {run_dir} holds a finished run. Choose another folder."])
        if has_checkpoint(run_dir):
            raise ConfigError(
                [
                    f"hydra.run.dir: {run_dir} holds a run that did not finish. Add ckpt_path=last to go on with it, "
                    "or choose another folder."
                ]
            )


def is_told_to_go_on(config: dict[str, Any]) -> bool:
    """Return whether a job goes on with the run that its folder holds."""
    training = config["task"]["_target_"].endswith(".train")
    return training and (config["sweep"]["resume"] or config["ckpt_path"] in (LAST, PREVIOUS) or is_restarted())


def _prepare(config: dict[str, Any], run_dir: Path, status: RunStatus) -> None:
    if is_first_process():
        save_config(config, run_dir)
        write_status(status, run_dir)
    else:
        logging.getLogger("faceattr_lightning").setLevel(logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        # Which accelerators there are not, and advertisements; its warnings go the way of every other message.
        logger.setLevel(logging.WARNING)
        logger.handlers.clear()
    if config["keep_freed_memory"]:
        keep_freed_memory()


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "it was stopped"
    return str(error) if isinstance(error, FaceAttrError) else f"{type(error).__name__}: {error}"
