"""``task=dashboard``: the W&B workspace and the W&B report over the runs of a project or of a sweep."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faceattr_lightning.errors import ConfigError, did_you_mean
from faceattr_lightning.strategy import Process

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

log = logging.getLogger(__name__)

_TIMEOUT = 10
"""Seconds that the server has for an answer."""

_CURVES: dict[str, list[Any]] = {
    "Loss per attribute": ["val/loss", "train/loss_per_attribute"],
    "Accuracy": ["val/majority_accuracy", "val/accuracy_at_half", "val/accuracy"],
    "Balanced accuracy": ["val/balanced_accuracy_at_half", "val/balanced_accuracy"],
    "F1": ["val/f1_at_half", "val/f1"],
    "Average precision": ["val/average_precision"],
    "Expected calibration error": ["val/ece"],
}
_FIGURES: dict[str, list[Any]] = {
    "Accuracy beside the constant answer": ["test/majority_accuracy", "test/accuracy_at_half", "test/accuracy"],
    "Gain over the constant answer": ["test/gain_at_half", "test/gain"],
    "Balanced accuracy": ["test/balanced_accuracy_at_half", "test/balanced_accuracy"],
    "F1": ["test/f1_at_half", "test/f1"],
    "Average precision": ["test/average_precision"],
    "Expected calibration error": ["test/ece"],
}
_PER_ATTRIBUTE = {"Weights": "^weight/.+$", "Thresholds": "^threshold/.+$"}
"""Title to the regular expression of the keys, which are as many as there are attributes."""
_TABLES = ["report/test", "report/validation"]
_FACES = ["faces/Best", "faces/Worst", "faces/Most uncertain"]
_PANELS_A_ROW = {"Test": 3, "Validation": 3, "Attributes": 2, "Report": 1}
_SORTED_BY = "test/average_precision"
_COLUMNS = [*_FIGURES["Accuracy beside the constant answer"], "test/balanced_accuracy", "test/f1", _SORTED_BY]


def check_installed() -> None:
    """Raise a ConfigError unless the packages of the extra ``wandb`` are there."""
    missing = [name for name in ("wandb", "wandb_workspaces") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            [
                f"task: dashboard needs {', '.join(missing)}, not installed here; run: "
                "pip install 'faceattr-lightning[wandb]'."
            ]
        )


def dashboard(
    config: dict[str, Any],
    ranks: list[Process],
    project: str,
    entity: str | None = None,
    group: str | None = None,
    groupby: Sequence[str] = (),
    offline: bool = False,
) -> None:
    """Save the workspace and the report at W&B, and both, as they are sent, as ``workspace.json`` and ``report.json``.

    The files lie in the run's folder. Without an account, or offline, nothing but them is made; then ``entity`` may be
    empty in them. Each call makes a new workspace and a new report.

    Args:
        config: the job's configuration as plain data.
        ranks: not used.
        project: the runs' project; it is made if the account has none of that name.
        entity: the project's owner; ``None`` for ``WANDB_ENTITY`` or the account's own.
        group: of the runs, as the jobs of a sweep share one; ``None`` for all runs of the project.
        groupby: dotted keys of the runs' configuration by which runs are put together.
        offline: without the server; also by ``WANDB_MODE``.

    Raises:
        ConfigError: a key that no run's configuration has, or a server that can't be reached or refuses; the files
            are written all the same.
    """
    problems = [
        f"task.groupby: there is no key '{key}' in a run's configuration.{did_you_mean(key.partition('.')[0], config)}"
        for key in groupby
        if key.partition(".")[0] not in config
    ]
    if problems:
        raise ConfigError(problems)
    owner = entity or os.environ.get("WANDB_ENTITY", "")
    workspace = make_workspace(project, owner, group, groupby)
    report = make_report(project, owner, group, groupby)
    folder = Path(config["paths"]["run_dir"])
    _write(workspace, report, folder)
    try:
        account = None if offline else _connect()
        if account is None:
            log.info("Written, and nothing sent: %s, %s", folder / "workspace.json", folder / "report.json")
            return
        workspace.entity = report.entity = owner or account.default_entity or ""
        # First, since it makes a project that is missing.
        report.save()
        log.info("Report: %s", report.url)
        workspace.save()  # type: ignore[no-untyped-call]
        log.info("Workspace: %s", workspace.url)
    except Exception as error:  # the library raises a bare Exception, and whatever its transport does
        raise ConfigError(
            [
                f"task: W&B did not take the dashboard of {project}: {' '.join(str(error).split()).rstrip('.')}. "
                f"What was to be sent lies in {folder}; task.offline=true writes it without trying."
            ]
        ) from error
    _write(workspace, report, folder)


def _connect() -> Any:
    """Return W&B's ``Api``, whose key it has verified; ``None`` offline or without an account.

    Raises:
        wandb.Error: the server can't be reached, or refuses the key.
    """
    import wandb

    # Silent, it asks nobody for a key.
    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if settings.mode not in ("online", "run", "shared"):
        return None
    try:
        return wandb.Api(timeout=_TIMEOUT)
    except wandb.errors.UsageError:
        log.warning("There is no W&B account here: run wandb login, or set the variable WANDB_API_KEY.")
        return None


def make_workspace(project: str, entity: str, group: str | None, groupby: Sequence[str]) -> ws.Workspace:
    """Return the workspace: sections of panels, over runs that are grouped by keys of their configuration."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=_title(project, group),
        sections=[
            ws.Section(
                name=name,
                panels=panels,
                is_open=True,
                layout_settings=ws.SectionLayoutSettings(columns=_PANELS_A_ROW[name]),
            )
            for name, panels in _panels().items()
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch"),
        runset_settings=ws.RunsetSettings(
            filters=_filters(group),
            groupby=[ws.Config(key) for key in groupby],
            order=[ws.Ordering(ws.Summary(_SORTED_BY), ascending=False)],
            pinned_columns=[f"summary:{key}" for key in _COLUMNS],
        ),
    )


def make_report(project: str, entity: str, group: str | None, groupby: Sequence[str]) -> wr.Report:
    """Return the report: for each section of the workspace a heading and a grid of its panels."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [
        wr.P(
            "Validation is what thresholds and weights were fitted on; the test figures stand beside the constant "
            "answer, the majority class of the training split."
        )
    ]
    for name, panels in _panels().items():
        runset = wr.Runset(
            # Without a project of its own it is the report's, which need not be there yet.
            name=group or project,
            filters=_filters(group),
            # A table or a face is one run's.
            groupby=[] if name == "Report" else [f"config.{key}" for key in groupby],
            order=[wr.OrderBy(wr.SummaryMetric(_SORTED_BY), ascending=False)],
            pinned_columns=["run:displayName", *(f"summary:{key}" for key in _COLUMNS)],
        )
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runset], panels=panels)]
    return wr.Report(
        project=project,
        entity=entity,
        title=_title(project, group),
        description="Made by task=dashboard of faceattr-lightning.",
        blocks=blocks,
        width="fluid",
    )


def _panels() -> dict[str, list[Any]]:
    """Return the panels of each section, new ones at each call: a panel has an id, and a report gives it its place."""
    import wandb_workspaces.reports.v2 as wr

    return {
        "Test": [wr.BarPlot(title=title, metrics=keys) for title, keys in _FIGURES.items()],
        "Validation": [wr.LinePlot(title=title, x="epoch", y=keys) for title, keys in _CURVES.items()],
        "Attributes": [
            wr.LinePlot(title=title, x="epoch", metric_regex=keys, layout=wr.Layout(w=12, h=10))
            for title, keys in _PER_ATTRIBUTE.items()
        ],
        "Report": [
            *(wr.WeavePanelSummaryTable(table_name=key, layout=wr.Layout(w=24, h=12)) for key in _TABLES),
            *(
                wr.MediaBrowser(title=key, media_keys=[key], num_columns=8, layout=wr.Layout(w=24, h=12))
                for key in _FACES
            ),
        ],
    }


def _title(project: str, group: str | None) -> str:
    # W&B takes 128 characters, and no symbol in a workspace's name.
    title = f"{project}: {group}" if group else project
    return "".join(" " if unicodedata.category(one).startswith("S") else one for one in title)[:128]


def _filters(group: str | None) -> str:
    if not group:
        return ""
    # The library rewrites operators before it parses, also inside of a string.
    value = re.sub("[=<>]", lambda found: f"\\x{ord(found[0]):02x}", repr(group))
    return f"Metric('Group') == {value}"


def _write(workspace: ws.Workspace, report: wr.Report, folder: Path) -> None:
    for part, name in ((workspace, "workspace"), (report, "report")):
        # What `save` sends; the library has no public way to it.
        text = part._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
