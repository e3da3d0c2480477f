"""The report on a W&B dashboard: the table and the faces of each grid."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import WandbLogger

from faceattr_lightning.report.grid import GridImage
from faceattr_lightning.report.html import ReportData

_MOST_MISTAKES = 4


def log_report(logger: WandbLogger, data: ReportData) -> None:
    """Log each split's table under ``report/``, its means to the run's summary, and the faces as captioned images."""
    import wandb

    payload: dict[str, Any] = {}
    for split in data.splits:
        columns: list[str | int] = list(split.attributes[0])
        payload[f"report/{split.split}"] = wandb.Table(columns, [list(row.values()) for row in split.attributes])
        means = {name: value for name, value in split.summary.items() if isinstance(value, int | float)}
        logger.experiment.summary.update({f"{split.split}/{name}": value for name, value in means.items()})
    for title, faces in data.grids.items():
        payload[f"faces/{title}"] = [wandb.Image(face.image, caption=_caption(face)) for face in faces]
    logger.experiment.log(payload)


def _caption(face: GridImage) -> str:
    wrong = [f"{name} {probability:.2f}" for name, probability, _ in face.wrong]
    if len(wrong) > _MOST_MISTAKES:
        wrong[_MOST_MISTAKES:] = [f"{len(wrong) - _MOST_MISTAKES} more"]
    return f"{face.caption}: {face.correct} of {face.labelled} right" + (
        f"; wrong: {', '.join(wrong)}" if wrong else ""
    )
