"""``task=audit``: the labels of a split that a trained model contradicts with most confidence, to look at."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from faceattr_lightning.callbacks.report import git_commit, run_facts
from faceattr_lightning.callbacks.threshold_calibration import single_class
from faceattr_lightning.data.module import FaceDataModule
from faceattr_lightning.data.table import Split
from faceattr_lightning.errors import ConfigError, DataError
from faceattr_lightning.files import write_text
from faceattr_lightning.metrics.predictions import Predictions
from faceattr_lightning.metrics.ranking import labelled_columns
from faceattr_lightning.models.module import AttributeModule
from faceattr_lightning.processes import is_first_process
from faceattr_lightning.report import write_split_csv
from faceattr_lightning.report.audit import AuditData, AuditedAttribute, AuditedLabel, render_audit
from faceattr_lightning.report.charts import percent
from faceattr_lightning.report.grid import thumbnail
from faceattr_lightning.strategy import Process
from faceattr_lightning.tasks.test import prepare_test
from faceattr_lightning.tasks.trainer import make_trainer

log = logging.getLogger(__name__)

_PRINTED = 10
_THUMBNAIL_SIDE, _THUMBNAIL_QUALITY = 128, 75  # a thousand of them make a page of some megabytes


def audit(
    config: dict[str, Any],
    ranks: list[Process],
    split: Literal["test", "validation", "train"] = "test",
    most: int = 24,
) -> None:
    """Rank the labels of a split by what the checkpoint that ``ckpt_path`` names (``best`` if none is given) says of
    them.

    Writes into the run's folder ``audit.csv``, the least probable labels of each attribute, ``audit_attributes.csv``,
    the share of labels in doubt of each, and ``audit.html``, both to look at. The data set is chosen as for
    ``task=test``.

    Args:
        config: the job's configuration as plain data.
        ranks: takes the other processes of the job.
        split: of ``train`` the images that ``data.train_fraction`` keeps, in order and not augmented.
        most: labels an attribute in the table and on the page, of at least 1.

    Raises:
        ConfigError: cleanlab, the checkpoint or its attributes in the data are missing.
        DataError: the data can't be read, or no attribute has two classes.
    """
    check_installed()
    model, datamodule, path = prepare_test(config)
    run_dir = Path(config["paths"]["run_dir"])
    predictions = _predict(config, model, datamodule, Split[split.upper()], ranks)
    if not is_first_process():
        return
    ranked = rank_labels(predictions, model.attribute_names)
    write_split_csv(_listed(ranked, most, datamodule.table.files), run_dir / "audit.csv")
    write_split_csv([one.rates() for one in ranked], run_dir / "audit_attributes.csv")
    data = _page(ranked, split, most, run_facts(model, str(path), [git_commit()]), datamodule)
    page = run_dir / "audit.html"
    write_text(render_audit(data), page)
    for notice in data.notices:
        log.warning("%s", notice)
    console = Console()
    console.print(_table(data))
    console.print(f"Audit: {page.resolve()}", soft_wrap=True, highlight=False)


def check_installed() -> None:
    """Raise a ConfigError unless the package of the extra ``audit`` is there."""
    if importlib.util.find_spec("cleanlab") is None:
        raise ConfigError(
            ["task: audit needs cleanlab, not installed here; run: pip install 'faceattr-lightning[audit]'."]
        )


@dataclass(frozen=True)
class RankedLabels:
    """The n labels of an attribute, the least probable first; of equal ones the first in the data set's order.

    Attributes:
        attribute: its name.
        rows: int64 (n,), the table's rows that the labels are of.
        present: bool (n,), what they say.
        probability: float64 (n,) in [0, 1], the model's for each label as it stands: its self-confidence, ascending.
        issue: bool (n,), whether the label is in doubt; ``None`` of an attribute with fewer than two classes.
    """

    attribute: str
    rows: NDArray[np.int64]
    present: NDArray[np.bool_]
    probability: NDArray[np.float64]
    issue: NDArray[np.bool_] | None

    def rates(self) -> dict[str, Any]:
        """Return how many labels there are and are in doubt; shares in [0, 1], ``None`` where not defined."""
        found: dict[str, Any] = {
            "attribute": self.attribute,
            "support": len(self.rows),
            "prevalence": float(self.present.mean()) if len(self.rows) else None,
        }
        if self.issue is None:
            return found | dict.fromkeys(("issues", "issue_rate", "issue_rate_present", "issue_rate_absent"))
        return found | {
            "issues": int(self.issue.sum()),
            "issue_rate": float(self.issue.mean()),
            "issue_rate_present": float(self.issue[self.present].mean()),
            "issue_rate_absent": float(self.issue[~self.present].mean()),
        }


def rank_labels(predictions: Predictions, attribute_names: Sequence[str]) -> list[RankedLabels]:
    """Rank each attribute's labels, and find those in doubt by confident learning (Northcutt, Jiang, Chuang: Confident
    Learning, JAIR 2021) as cleanlab has it.

    *Published*: a label y' is in doubt if it is off the diagonal of the confident joint (equation 1): for another class
    k the probability is at or above ``t_k``, the mean probability of k over the samples labelled k, and the greatest of
    the classes that are. cleanlab's: only if k is also more probable than y'. *Ours*: each attribute is two classes of
    its own, over its labelled samples alone.

    Args:
        predictions: of a split; of images that the model has not learnt, or it will doubt too few.
        attribute_names: A names.
    """
    # Not with the module: the extra may be missing, and it takes seconds.
    from cleanlab.filter import find_label_issues

    ranked = []
    columns = labelled_columns(predictions.probabilities, predictions.labels)
    for name, labels, single, (probability, positive) in zip(
        attribute_names, predictions.labels.T, single_class(predictions).tolist(), columns, strict=True
    ):
        classes, given = np.stack([1 - probability, probability], axis=1), positive.astype(np.int64)
        own = classes[np.arange(len(given)), given]
        order = np.argsort(own, kind="stable")
        issue = None if single else find_label_issues(given, classes, filter_by="confident_learning", n_jobs=1)[order]
        rows = predictions.index[labels >= 0].numpy()
        ranked.append(RankedLabels(name, rows[order], positive[order], own[order], issue))
    return ranked


def _predict(
    config: dict[str, Any], model: AttributeModule, datamodule: FaceDataModule, split: Split, ranks: list[Process]
) -> Predictions:
    """Return the predictions of a split at the fitted temperatures, equal on every rank."""
    table, rows = datamodule.table, datamodule.dataset(split).rows
    labels = table.attributes[rows]
    if not ((labels == 1).any(axis=0) & (labels == 0).any(axis=0)).any():
        raise DataError(
            f"{table.root}: no attribute has both classes among its {split.name.lower()} labels, so that none can be "
            "audited. Choose another task.split."
        )
    # It takes the place of the test split, which is read in order, not augmented and by each process in part.
    table.split = np.full_like(table.split, Split.TRAIN)
    table.split[rows] = Split.TEST
    # Neither a report nor a logger is told that this is no test.
    silent = {**config, "callbacks": {"progress": (config["callbacks"] or {}).get("progress")}, "logger": None}
    with make_trainer(silent, model, ranks) as trainer:
        trainer.test(model, datamodule=datamodule, verbose=False)
    return model.gathered()


def _listed(ranked: list[RankedLabels], most: int, files: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of ``audit.csv``."""
    return [
        {
            "attribute": one.attribute,
            "file": files[one.rows[place]],
            "label": int(one.present[place]),
            "probability": float(one.probability[place]),
            "rank": place + 1,
            "issue": "yes" if one.issue[place] else "no",
        }
        for one in ranked
        if one.issue is not None
        for place in range(min(most, len(one.rows)))
    ]


def _notices(ranked: list[RankedLabels], split: str) -> list[str]:
    """Return what a reader must know."""
    notices = []
    if split == "train":
        notices.append(
            "These are training labels. A model that was trained on them has learnt them, wrong ones too, and doubts "
            "fewer than it should: audit them with a model that was trained without them."
        )
    skipped = [one.attribute for one in ranked if one.issue is None]
    if skipped:
        notices.append(f"Not audited, since their {split} labels have fewer than two classes: {', '.join(skipped)}.")
    return notices


def _page(
    ranked: list[RankedLabels], split: str, most: int, facts: dict[str, Any], datamodule: FaceDataModule
) -> AuditData:
    """Return the page's content: the attributes with the greatest share in doubt first, those without one last."""
    rates = [one.rates() for one in ranked]
    order = sorted(
        range(len(ranked)), key=lambda place: (ranked[place].issue is None, -(rates[place]["issue_rate"] or 0.0))
    )
    audited = [one for one in rates if one["issues"] is not None]
    labels, issues = (sum(one[key] for one in audited) for key in ("support", "issues"))
    images = int((datamodule.table.split == Split.TEST).sum())
    return AuditData(
        title=f"Label audit: {datamodule.name}, {split}",
        subtitle=f"{images:,} images, {labels:,} labels, of which {facts['model']} doubts {issues:,}",
        run=facts,
        attributes=[
            AuditedAttribute(rates[place], _shown(ranked[place], most, datamodule))
            for place in track(order, "Drawing the page")
        ],
        notices=_notices(ranked, split),
    )


def _shown(one: RankedLabels, most: int, datamodule: FaceDataModule) -> list[AuditedLabel]:
    if one.issue is None:
        return []
    rows = one.rows[:most]
    return [
        AuditedLabel(
            thumbnail(image, _THUMBNAIL_SIDE, _THUMBNAIL_QUALITY),
            datamodule.table.files[row],
            int(one.present[place]),
            float(one.probability[place]),
            bool(one.issue[place]),
        )
        for place, (row, image) in enumerate(zip(rows, datamodule.source_images(rows), strict=True))
    ]


def _table(data: AuditData) -> Table:
    """Return the first attributes of the page."""
    table = Table(title=f"{data.title}: {data.subtitle}", title_justify="left")
    table.add_column("")
    for heading in ("labels", "in doubt", "share"):
        table.add_column(heading, justify="right")
    for one in data.attributes[:_PRINTED]:
        if one.labels:
            table.add_row(
                one.rates["attribute"],
                f"{one.rates['support']:,}",
                f"{one.rates['issues']:,}",
                percent(one.rates["issue_rate"]),
            )
    return table
