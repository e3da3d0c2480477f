"""The report: what a run did, epoch by epoch, and how good its model is on validation and test."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from lightning import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from rich.table import Table

import faceattr_lightning
from faceattr_lightning.callbacks.stage import fitting
from faceattr_lightning.callbacks.threshold_calibration import single_class
from faceattr_lightning.data.table import FaceTable, Split
from faceattr_lightning.files import write_text
from faceattr_lightning.metrics.attribute_metrics import mean_metrics
from faceattr_lightning.metrics.bootstrap import Draws, Values, interval, mean_over_attributes, resampled_metrics
from faceattr_lightning.metrics.consistency import consistency_rows
from faceattr_lightning.metrics.cost import clock, machine, peak_memory, summarise
from faceattr_lightning.metrics.predictions import Predictions
from faceattr_lightning.metrics.reliability import reliability_bins, reliability_rows
from faceattr_lightning.metrics.slices import LEAST_SUPPORT, choose_slices, largest_gaps, slice_rows
from faceattr_lightning.report import (
    GridImage,
    History,
    MaskImage,
    ReportData,
    SplitReport,
    attributes_table,
    render,
    write_split_csv,
    write_summary_json,
)
from faceattr_lightning.report.wandb import log_report

if TYPE_CHECKING:
    from faceattr_lightning.data.module import FaceDataModule
    from faceattr_lightning.models.module import AttributeModule

log = logging.getLogger(__name__)

_CODE = ("faceattr_lightning", "conf", "experiments/*.yaml", "run.py", "pyproject.toml")
_CURVES = (
    "train/loss_per_attribute",
    "val/loss",
    "val/accuracy",
    "val/accuracy_at_half",
    "val/balanced_accuracy",
    "val/average_precision",
)
_SHOWN = (
    "majority_accuracy",
    "accuracy_at_half",
    "accuracy",
    "gain",
    "balanced_accuracy",
    "f1",
    "average_precision",
    "ece",
    "landmark_nme",
    "landmark_nme_of_mean_shape",
    "age_accuracy",
    "age_one_off_accuracy",
    "age_majority_accuracy",
    "mask_iou",
    "mask_iou_of_mean_face",
)


class Report(Callback):
    """Writes ``report/`` into the run's folder when the test ends; before, collects the epochs and the validation
    results.

    Files: ``attributes.csv`` and ``summary.json`` of the test split, the same with ``_validation``; of the test split
    also ``attributes.tex``, ``reliability.csv``, ``slices.csv`` and ``consistency.csv``; and ``report.html``.

    Args:
        run_dir: the run's folder.
        grid: faces in each row of the picture grid; 0 for no pictures.
        slices: what to divide the test images by, to see how differently the model errs: attributes, ``age_group``,
            ``database``, or another label that the data has, such as FairFace's ``race``; ``None`` takes those of
            `DEFAULT_SLICES` that it has.

    Raises:
        ConfigError: when training or testing starts, if the data has no such label.
    """

    def __init__(self, run_dir: str, grid: int = 8, slices: Sequence[str] | None = None) -> None:
        self.folder = Path(run_dir) / "report"
        self.grid = grid
        self.slices = slices
        self._epochs: list[int] = []
        self._history: dict[str, dict[str, list[float]]] = {"thresholds": {}, "weights": {}, "curves": {}}
        self._splits: dict[str, SplitReport] = {}
        self._databases: dict[str, dict[str, SplitReport]] = {}
        self._warnings: list[str] = []
        self._started = 0.0
        self._spent, self._clock = (0.0, 0.0), (0.0, 0.0)
        # Now: by the end somebody may have committed more.
        self._commits = [git_commit()]
        self._written: tuple[ReportData, Path] | None = None

    def setup(self, trainer: Trainer, pl_module: AttributeModule, stage: str) -> None:  # type: ignore[override]
        choose_slices(self.slices, trainer.datamodule.table.all_slices())  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": self._epochs,
            "history": self._history,
            "seconds": list(self._training_seconds()),
            "commits": self._commits,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # The best checkpoint is validated after the last epoch, and knows fewer epochs than this run does.
        if len(state_dict["epochs"]) > len(self._epochs):
            self._epochs, self._history = state_dict["epochs"], state_dict["history"]
        self._commits = list(dict.fromkeys([*state_dict.get("commits", ()), *self._commits]))
        # The best checkpoint's are fewer; a checkpoint of an earlier version does not know.
        self._spent = max(self._spent, tuple(state_dict.get("seconds", self._spent)))

    def on_train_start(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        self._clock = clock()
        self._spent = (
            self._spent[0] + pl_module.seconds_before_training[0],
            self._spent[1] + pl_module.seconds_before_training[1],
        )

    def on_train_end(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        self._spent, self._clock = self._training_seconds(), (0.0, 0.0)

    def _training_seconds(self) -> tuple[float, float]:
        """Seconds of training and its validation, and this process's CPU seconds of them; with those of a run that
        this one goes on with, up to the checkpoint.
        """
        since = [now - then if then else 0.0 for now, then in zip(clock(), self._clock, strict=True)]
        return self._spent[0] + since[0], self._spent[1] + since[1]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        self._epochs.append(trainer.current_epoch)
        values = {
            "thresholds": dict(zip(pl_module.attribute_names, pl_module.calibrator.thresholds.tolist(), strict=True)),
            "weights": dict(zip(pl_module.attribute_names, pl_module.weighting.weights.tolist(), strict=True)),
            "curves": {name: float(trainer.callback_metrics.get(name, torch.nan)) for name in _CURVES},
        }
        for kind, vector in values.items():
            for name, value in vector.items():
                self._history[kind].setdefault(name, []).append(value)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        if not fitting(trainer):
            predictions, table = pl_module.gathered(), trainer.datamodule.table  # type: ignore[attr-defined]
            self._splits["validation"] = split_report("validation", pl_module, predictions, table)
            self._databases["validation"] = database_reports("validation", pl_module, predictions, trainer.datamodule)  # type: ignore[attr-defined]
            names = [
                name
                for name, single in zip(pl_module.attribute_names, single_class(predictions), strict=True)
                if single
            ]
            if names:
                self._warnings.append(
                    "One class only among the validation labels, so that the threshold "
                    f"stays as it was: {', '.join(names)}."
                )

    def on_test_epoch_start(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        self._started = time.perf_counter()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        seconds = time.perf_counter() - self._started
        predictions = pl_module.gathered()
        datamodule: FaceDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self._splits["test"] = split_report("test", pl_module, predictions, datamodule.table)
        self._databases["test"] = database_reports("test", pl_module, predictions, datamodule)
        if trainer.is_global_zero:
            facts = run_facts(pl_module, str(trainer.ckpt_path or ""), self._commits)
            facts |= {"data": datamodule.name, "image_size": pl_module.preprocessing.image_size}
            facts["train_images"] = len(datamodule.train_rows())
            for split in (Split.VALIDATION, Split.TEST):
                facts[f"{split.name.lower()}_images"] = len(datamodule.table.rows(split))
            facts["images_per_second"] = round(len(predictions.index) / seconds, 1)
            wall, cpu = self._training_seconds()
            facts |= {"training_seconds": round(wall, 1), "training_cpu_seconds": round(cpu, 1)}
            facts["precision"] = trainer.precision
            facts |= cost_facts(pl_module)
            self._write(trainer, pl_module, predictions, facts)

    def _write(self, trainer: Trainer, model: AttributeModule, predictions: Predictions, facts: dict[str, Any]) -> None:
        datamodule: FaceDataModule = trainer.datamodule  # type: ignore[attr-defined]
        learned = model.facts(datamodule)
        details = test_details(model, predictions, datamodule.table, self.slices)
        for split, report in self._splits.items():
            suffix = "" if split == "test" else f"_{split}"
            write_split_csv(report.attributes, self.folder / f"attributes{suffix}.csv")
            summary = {"split": split, **facts, **learned, **report.summary}
            databases = self._databases[split]
            for name, part in databases.items():
                write_split_csv(part.attributes, self.folder / f"attributes{suffix}_{name}.csv")
            if databases:
                summary["databases"] = {name: part.summary for name, part in databases.items()}
            write_summary_json(summary, self.folder / f"summary{suffix}.json")
        test = self._splits["test"]
        write_text(attributes_table(test.attributes, test.summary), self.folder / "attributes.tex")
        for name, rows in details.items():
            if rows and name != "gaps":
                write_split_csv(rows, self.folder / f"{name}.csv")
        grids = face_grids(model, datamodule, predictions, self.grid) if self.grid else {}
        masks = mask_grid(model, datamodule, predictions.index[: self.grid])
        shown = [split for split in ("test", "validation") if split in self._splits]
        data = ReportData(
            title=f"{facts['model']} on {datamodule.name}",
            subtitle=f"{len(predictions.index)} test images, {len(model.attribute_names)} "
            f"attributes, backbone {facts['backbone']}",
            run=facts,
            splits=[part for split in shown for part in (self._splits[split], *self._databases[split].values())],
            **details,
            least_support=LEAST_SUPPORT,
            history=History(self._epochs, **self._history) if self._epochs else None,  # type: ignore[arg-type]
            grids=grids,
            masks=masks,
            warnings=[*dict.fromkeys(self._warnings), *datamodule.table.notes],
            config_yaml=yaml.safe_dump(model.run_config, sort_keys=False, allow_unicode=True),
        )
        page = self.folder / "report.html"
        write_text(render(data), page)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                log_report(logger, data)
                logger.experiment.summary.update(model.training_facts)
        self._written = (data, page)

    def teardown(self, trainer: Trainer, pl_module: AttributeModule, stage: str) -> None:  # type: ignore[override]
        # Not before: the progress bar still owns the terminal while the test ends.
        if self._written is not None:
            print_summary(*self._written)
            self._written = None


def split_report(
    split: str,
    model: AttributeModule,
    predictions: Predictions,
    table: FaceTable,
    train_prevalence: torch.Tensor | None = None,
) -> SplitReport:
    """Return the rows and means of a split's metrics, with the ends of their 95 % intervals over images, or over
    people where they are known; ``train_prevalence`` as of `AttributeModule.metrics`.
    """
    metrics = model.metrics(predictions, train_prevalence)
    prevalence = model.train_prevalence if train_prevalence is None else train_prevalence
    draws = Draws.of(table.identity[predictions.index.numpy()])
    resampled = resampled_metrics(predictions, model.calibrator.thresholds, prevalence, draws)
    ends = _ends(resampled)
    means = {name: mean_over_attributes(values) for name, values in resampled.items()}
    mean_ends = {key: float(value) for key, value in _ends(means).items()}
    thresholds = model.calibrator.thresholds.tolist()
    rows = []
    for column, name in enumerate(model.attribute_names):
        values = {metric: float(vector[column]) for metric, vector in metrics.items()}
        rows.append(
            {
                "attribute": name,
                "group": model.group_of(name),
                **values,
                "support": int(values["support"]),
                "threshold": thresholds[column],
                **{key: float(end[column]) for key, end in ends.items()},
            }
        )
    summary: dict[str, Any] = mean_metrics(metrics) | mean_ends
    summary["threshold"] = sum(thresholds) / len(thresholds)
    bins = reliability_bins(predictions.probabilities, predictions.labels)
    summary["ece_pooled"] = float(bins.pooled().calibration_error())
    summary["undefined"] = {
        metric: names for metric, vector in metrics.items() if (names := _undefined(vector, model.attribute_names))
    }
    summary |= predictions.measure_means()
    return SplitReport(split, rows, summary)


def _ends(resampled: Values) -> dict[str, torch.Tensor]:
    """Return both ends of each metric's interval, by name."""
    both = {name: interval(name, values) for name, values in resampled.items()}
    return {
        f"{name}_{end}": value for name, pair in both.items() for end, value in zip(("low", "high"), pair, strict=True)
    }


def test_details(
    model: AttributeModule, predictions: Predictions, table: FaceTable, slices: Sequence[str] | None
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of `ReportData` beside those of the attributes, by its fields; ``slices`` as of `Report`."""
    scores = (predictions.probabilities, predictions.labels)
    names, thresholds = model.attribute_names, model.calibrator.thresholds
    index = predictions.index.numpy()
    chosen = {
        name: replace(part, code=part.code[index]) for name, part in choose_slices(slices, table.all_slices()).items()
    }
    sides = slice_rows(*scores, thresholds, names, chosen)
    return {
        "reliability": reliability_rows(reliability_bins(*scores), names),
        "slices": sides,
        "gaps": largest_gaps(sides),
        "consistency": consistency_rows(*scores, thresholds, names),
    }


def database_reports(
    split: str, model: AttributeModule, predictions: Predictions, datamodule: FaceDataModule
) -> dict[str, SplitReport]:
    """Return the rows and means on each of the fused data sets, over the attributes that it labels; empty for one."""
    table = datamodule.table
    reports: dict[str, SplitReport] = {}
    for index, name in enumerate(table.databases if len(table.databases) > 1 else ()):
        member = torch.from_numpy(table.database[predictions.index.numpy()] == index)
        if member.any():
            prevalence = datamodule.training_prevalence(index)
            part = split_report(f"{split}/{name}", model, predictions.of(member), table, prevalence)
            labelled = [row for row in part.attributes if row["support"]]
            reports[name] = SplitReport(part.split, labelled, part.summary)
    return reports


def _undefined(vector: torch.Tensor, names: list[str]) -> list[str]:
    return [name for name, undefined in zip(names, vector.isnan(), strict=True) if undefined]


def run_facts(model: AttributeModule, checkpoint: str, commits: Sequence[str | None]) -> dict[str, Any]:
    """Return what a summary says of the run besides its figures; an old checkpoint has no `TRAINING_FACTS`.

    Args:
        model: of the run.
        checkpoint: its path.
        commits: of the code that trained and tested it, in their order; ``None`` where it is not known.
    """
    config = model.run_config
    return {
        "model": type(model).__name__,
        "backbone": config["backbone"]["name"],
        "pretrained": config["backbone"]["pretrained"],
        "parameters": sum(parameter.numel() for parameter in model.network.parameters()),
        "checkpoint": checkpoint,
        "git_commit": " ".join(filter(None, commits)) or None,
        "seed": config["seed"],
        "version": faceattr_lightning.__version__,
        **model.training_facts,
    }


def cost_facts(model: AttributeModule) -> dict[str, Any]:
    """Return what the model costs: ``gmacs`` of one image, see `summarise`, ``peak_memory_mb``, 1e6 bytes, see
    `peak_memory`, ``None`` where the system does not tell; and on what ``machine``.
    """
    memory = peak_memory(model.device)
    return {
        "gmacs": summarise(model.network, model.preprocessing.image_size)["gmacs"],
        "peak_memory_mb": None if memory is None else round(memory / 1e6),
        "machine": machine(model.device),
    }


def git_commit() -> str | None:
    """Return the commit of the code, with ``-dirty`` if the code or a configuration was changed since; ``None`` outside
    a checkout.
    """

    def git(*arguments: str) -> str:
        folder = Path(faceattr_lightning.__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("diff", "--name-only", "HEAD", "--", *(f":/{path}" for path in _CODE))
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def face_grids(
    model: AttributeModule, datamodule: FaceDataModule, predictions: Predictions, count: int
) -> dict[str, list[GridImage]]:
    """Return the faces with the lowest and the highest mean loss, and those nearest to the thresholds.

    Args:
        model: for names and thresholds.
        datamodule: of the images.
        predictions: of the test split.
        count: faces in each row.
    """
    probabilities, labels = predictions.probabilities, predictions.labels
    labelled = labels >= 0
    thresholds = model.calibrator.thresholds.double().cpu()
    losses = torch.nn.functional.binary_cross_entropy(probabilities, labels.clamp(min=0).double(), reduction="none")
    seen = labelled.sum(dim=1).clamp(min=1)
    mean_loss = (losses * labelled).sum(dim=1) / seen
    distance = (probabilities - thresholds).abs()
    doubt = distance.mean(dim=1)
    # A face without a label is neither good nor bad.
    judged = labelled.any(dim=1).nonzero()[:, 0]
    ranked = judged[mean_loss[judged].argsort()]
    order = {"Best": ranked, "Worst": ranked.flip(0), "Most uncertain": doubt.argsort()}
    right = (probabilities >= thresholds) == (labels == 1)
    grids = {}
    for title, ranking in order.items():
        chosen = ranking[:count]
        images = datamodule.source_images(predictions.index[chosen].numpy())
        grids[title] = [
            _face(
                model.attribute_names,
                images[k],
                datamodule.table.files[int(predictions.index[row])],
                probabilities[row],
                labels[row],
                right[row],
                distance[row],
            )
            for k, row in enumerate(chosen.tolist())
        ]
    return grids


def mask_grid(model: AttributeModule, datamodule: FaceDataModule, index: torch.Tensor) -> list[MaskImage]:
    """Return some of the test faces with the masks that the network puts over them; empty if it has none.

    Args:
        model: on whatever device.
        datamodule: of the images.
        index: int64 (n,), the table's rows.
    """
    rows = index.numpy()
    if not len(rows):
        return []
    images = datamodule.source().images(rows).to(model.device)
    with torch.inference_mode():
        masks = model(images).get("masks")
    if masks is None:
        return []
    values = (255 * masks.float()).byte().cpu().numpy()
    pictures = images.permute(0, 2, 3, 1).cpu().numpy()
    files = datamodule.table.files
    return [
        MaskImage(pictures[k], files[row], dict(zip(model.groups, values[k], strict=True)))
        for k, row in enumerate(rows.tolist())
    ]


def _face(
    names: list[str],
    image: np.ndarray[Any, np.dtype[np.uint8]],
    caption: str,
    probabilities: torch.Tensor,
    labels: torch.Tensor,
    right: torch.Tensor,
    distance: torch.Tensor,
) -> GridImage:
    wrong = [
        (name, float(probabilities[column]), int(labels[column]))
        for column, name in enumerate(names)
        if labels[column] >= 0 and not right[column]
    ]
    wrong.sort(key=lambda mistake: -abs(mistake[1] - mistake[2]))
    labelled = int((labels >= 0).sum())
    nearest = int(distance.argmin())
    return GridImage(
        image, caption, wrong, labelled - len(wrong), labelled, f"{names[nearest]} {float(probabilities[nearest]):.2f}"
    )


def print_summary(data: ReportData, page: Path) -> None:
    """Print the means of each split, then the path of the page."""
    table = Table(title=f"{data.title}: means over the attributes", title_justify="left")
    table.add_column("")
    # A terminal has no room for the validation results of each of several data sets.
    shown = [split for split in data.splits if not split.split.startswith("validation/")]
    for split in shown:
        table.add_column(split.split, justify="right")
    for metric in _SHOWN:
        values = [split.summary.get(metric) for split in shown]
        if any(value is not None for value in values):
            table.add_row(metric, *("-" if value is None else f"{100 * value:.2f} %" for value in values))
    console = Console()
    console.print(table)
    console.print(f"Report: {page.resolve()}", soft_wrap=True, highlight=False)
