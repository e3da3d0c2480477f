"""The program: every task is this one Hydra app. ``python -m faceattr_lightning`` and ``python run.py`` are the same.

Torch and Lightning are imported inside the job, so that ``--help`` and configuration errors come at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from faceattr_lightning.config import check_command_line
from faceattr_lightning.errors import FaceAttrError
from faceattr_lightning.going_on import SweepRecord, job_folders

# Hydra looks for its plugins in the namespace package hydra_plugins, wherever that is on the path.
sys.path.append(str(Path(__file__).resolve().parent / "plugins"))

CONF = Path(__file__).resolve().parent.parent / "conf"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(cfg: DictConfig) -> float | None:
    """Run one job: check its configuration, then hand it to its task; return what a search makes as good as it can."""
    from faceattr_lightning.tasks.job import run_job

    try:
        return run_job(cfg)
    except FaceAttrError as error:
        # Hydra prints a CompactHydraException as its message alone and exits with 1, in sweeps and their workers too.
        raise CompactHydraException(str(error)) from None


def main() -> None:
    """Check the command line as a whole, then start Hydra."""
    if not CONF.is_dir():
        sys.exit(
            f"There is no folder {CONF}. The program runs from a checkout of "
            "faceattr-lightning; the installed package is a library."
        )
    try:
        sys.argv += check_command_line(sys.argv[1:], CONF)
    except FaceAttrError as error:
        sys.exit(str(error))
    try:
        run()
    finally:
        # None has begun where the search or the launcher was refused.
        if SweepRecord.folder is not None and any(job_folders(SweepRecord.folder)):
            from faceattr_lightning.tasks.collect import collect_sweep

            collect_sweep(SweepRecord.folder)


if __name__ == "__main__":
    main()
