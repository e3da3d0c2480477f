"""``task=dashboard`` through the program: its panels against what a run logs, and what reaches a server."""

from __future__ import annotations

import importlib.util
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.tasks.dashboard import check_installed, dashboard
from tests.runs import SMALL, rows, run, run_dirs
from tests.test_wandb import OfflineRun, offline, offline_runs, records

KEY = "0123456789" * 4
"""As long as a W&B key."""
NOWHERE = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
"""The environment of somebody with an account whom no server answers."""


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that logs to W&B, offline and with its checkpoint, and to TensorBoard."""
    output = tmp_path_factory.mktemp("trained")
    keys = ["logger=[wandb,tensorboard]", "logger.wandb.log_model=true", "model=baseline"]
    run(*SMALL, *keys, data=tiny_data, output=output, **offline(output))
    (job,) = run_dirs(output)
    return job


@pytest.fixture(scope="module")
def logged(trained: Path) -> OfflineRun:
    (found,) = offline_runs(trained)
    return found


@pytest.fixture
def no_account(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who never logged in."""
    return {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_API_KEY": "", "WANDB_ENTITY": ""}


class Server(ThreadingHTTPServer):
    """As much of W&B's server as saving a workspace and a report asks for.

    Args:
        refuses: answer whatever would change something with an error.
    """

    def __init__(self, refuses: bool) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.refuses = refuses
        self.created: list[str] = []
        self.views: list[dict[str, Any]] = []

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "mutation" in query and self.refuses:
            return {"errors": [{"message": "permission denied"}]}
        if "upsertView" in query:
            self.views.append(variables)
            view = {key: variables[key] for key in ("name", "displayName", "description", "spec")}
            project = {"name": variables["projectName"], "entityName": variables["entityName"]}
            view |= {"id": f"view{len(self.views)}", "type": variables["type"], "project": project}
            return {"data": {"upsertView": {"view": view, "inserted": True}}}
        if "upsertModel" in query:
            self.created.append(variables["input"]["name"])
            return {"data": {"upsertModel": {"model": None, "project": None, "inserted": True}}}
        if "models(" in query:
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {"data": {"models": {"pageInfo": page, "edges": []}}}
        return {"data": {"viewer": {"id": "1", "entity": "somebody", "username": "somebody", "flags": "{}"}}}


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = self.path == "/graphql"
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if found:
            asked = json.loads(body)
            self.wfile.write(json.dumps(self.server.answer(asked["query"], asked.get("variables") or {})).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    started = Server(getattr(request, "param", False))
    threading.Thread(target=started.serve_forever, daemon=True).start()
    yield started
    started.shutdown()
    started.server_close()


def specs(output: Path) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Return the workspace and the report that the only dashboard task wrote, and its folder."""
    (folder,) = run_dirs(output, "dashboard")
    workspace, report = (json.loads((folder / f"{name}.json").read_text()) for name in ("workspace", "report"))
    return workspace, report, folder


def sections(workspace: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the panels of each section."""
    return {one["name"]: one["panels"] for one in workspace["spec"]["section"]["panelBankConfig"]["sections"]}


def grids(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panel grids of a report."""
    return [block["metadata"] for block in report["spec"]["blocks"] if block["type"] == "panel-grid"]


def without_ids(value: Any) -> Any:
    """Return a spec without the random ids of its parts, and without what a report alone decides."""
    if isinstance(value, dict):
        return {key: without_ids(one) for key, one in value.items() if key not in ("id", "__id__", "layout")}
    return [without_ids(one) for one in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def written(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The workspace and the report of a sweep, made offline with an address at which nobody answers."""
    output = tmp_path_factory.mktemp("written")
    keys = ["task.offline=true", "task.entity=lab", "task.group='a sweep: lr=0.1'"]
    finished = run("task=dashboard", *keys, data=tiny_data, output=output, **NOWHERE)
    workspace, report, folder = specs(output)
    assert f"nothing sent: {folder / 'workspace.json'}, {folder / 'report.json'}" in finished.stdout + finished.stderr
    return workspace, report


def test_every_panel_shows_what_a_run_logs(written: tuple[dict[str, Any], dict[str, Any]], logged: OfflineRun) -> None:
    panels = sections(written[0])
    columns = {key for row in logged.history for key in row}
    for name, prefix in (("Test", "test"), ("Validation", "val")):
        keys = [key for panel in panels[name] for key in panel["config"]["metrics"]]
        assert len(keys) > 8 and set(keys) <= columns
        assert {key.partition("/")[0] for key in keys} <= {prefix, "train"}
    # The curves' x axis is the one that the run defines.
    assert {panel["config"]["xAxis"] for panel in panels["Validation"]} == {logged.axes["*"]}
    assert panels["Test"][0]["config"]["metrics"] == [
        "test/majority_accuracy",
        "test/accuracy_at_half",
        "test/accuracy",
    ]
    for panel, prefix in zip(panels["Attributes"], ("weight", "threshold"), strict=True):
        assert panel["config"]["useMetricRegex"]
        matching = {key for key in columns if re.search(panel["config"]["metricRegex"], key)}
        assert matching == {f"{prefix}/{name}" for name in CELEBA_ATTRIBUTES}
    shown = {}
    for panel in panels["Report"]:
        if panel["viewType"] == "Weave":
            shown[panel["config"]["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]] = "table-file"
        else:
            shown |= dict.fromkeys(panel["config"]["mediaKeys"], "images/separated")
    media = [(key.removesuffix("._type"), kind) for row in logged.history for key, kind in row.items()]
    assert shown == {key: kind for key, kind in media if f"{key}._type" in columns}


def test_runs_are_those_of_the_sweep_grouped_by_their_configuration(
    written: tuple[dict[str, Any], dict[str, Any]], logged: OfflineRun
) -> None:
    workspace = written[0]
    assert (workspace["entity"], workspace["project"]) == ("lab", logged.run.project)
    (runs,) = workspace["spec"]["section"]["runSets"]
    (chosen,) = runs["filters"]["filters"]
    assert chosen["key"] == {"section": "run", "name": "group"}
    assert (chosen["op"], chosen["value"]) == ("=", "a sweep: lr=0.1")
    values = []
    for group in runs["grouping"]:
        # W&B keeps each key of the configuration as {"value": ...}.
        key, _, rest = group["name"].partition(".value.")
        values.append((group["section"], logged.config[key][rest]))
    assert values == [
        ("config", "faceattr_lightning.models.baseline.Baseline"),
        ("config", "test_resnet"),
        ("config", logged.config["trainer"]["strategy"]),
    ]
    columns = {key for row in logged.history for key in row}
    pinned = [key.removeprefix("summary:") for key in runs["runFeed"]["columnOrder"] if key != "run:displayName"]
    assert pinned and {*pinned, *(one["key"]["name"] for one in runs["sort"]["keys"])} <= columns


def test_the_report_has_the_same_panels_over_the_same_runs(
    written: tuple[dict[str, Any], dict[str, Any]], logged: OfflineRun
) -> None:
    workspace, report = written
    assert report["project"] == {"name": logged.run.project, "entityName": "lab"}
    assert report["displayName"] == workspace["displayName"] == "faceattr-lightning: a sweep: lr 0.1"
    (runs,) = workspace["spec"]["section"]["runSets"]
    made = grids(report)
    panels = [grid["panelBankSectionConfig"]["panels"] for grid in made]
    assert without_ids(panels) == without_ids(list(sections(workspace).values()))
    for grid, placed, name in zip(made, panels, sections(workspace), strict=True):
        (runset,) = grid["runSets"]
        # Without a project of its own it is the report's.
        assert runset["filters"] == runs["filters"] and "project" not in runset
        assert runset["grouping"] == ([] if name == "Report" else runs["grouping"])
        covered = [
            (x, y)
            for place in (panel["layout"] for panel in placed)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(set(covered)) == len(covered) and max(x for x, _ in covered) < 24


def test_without_an_account_nothing_is_tried(tiny_data: Path, tmp_path: Path, no_account: dict[str, str]) -> None:
    finished = run("task=dashboard", "task.groupby=[]", data=tiny_data, output=tmp_path, **no_account)
    workspace, report, _ = specs(tmp_path)
    told = finished.stdout + finished.stderr
    assert "There is no W&B account here: run wandb login" in told and "nothing sent" in told
    (runs,) = workspace["spec"]["section"]["runSets"]
    assert runs["grouping"] == [] and runs["filters"]["filters"] == [] and workspace["entity"] == ""
    assert all(grid["runSets"][0]["grouping"] == [] for grid in grids(report))


@pytest.mark.slow
def test_wandb_mode_offline_needs_no_task_key(tiny_data: Path, tmp_path: Path) -> None:
    finished = run("task=dashboard", data=tiny_data, output=tmp_path, WANDB_MODE="offline", **NOWHERE)
    specs(tmp_path)
    assert "nothing sent" in finished.stdout + finished.stderr


def test_what_is_written_is_what_a_server_gets(
    server: Server, tiny_data: Path, tmp_path: Path, no_account: dict[str, str]
) -> None:
    address = f"http://127.0.0.1:{server.server_port}"
    online = {**no_account, "WANDB_BASE_URL": address, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}
    finished = run("task=dashboard", "task.project=new", data=tiny_data, output=tmp_path, **online)
    workspace, report, _ = specs(tmp_path)
    assert server.created == ["new"]
    sent = {view["type"]: view for view in server.views}
    assert sent.keys() == {"runs", "project-view"} and len(server.views) == 2
    for kind, spec in (("runs", report), ("project-view", workspace)):
        assert json.loads(sent[kind]["spec"]) == spec["spec"]
        assert sent[kind]["displayName"] == spec["displayName"] == "new"
        assert (sent[kind]["entityName"], sent[kind]["projectName"]) == ("somebody", "new")
    told = finished.stdout + finished.stderr
    name = workspace["name"].removeprefix("nw-").removesuffix("-v")
    assert f"Workspace: {address}/somebody/new?nw={name}" in told
    assert f"Report: {address}/somebody/new/reports/new--{report['id']}" in told


@pytest.mark.parametrize("server", [True], indirect=True)
def test_a_refusal_is_told_and_the_spec_stays(
    server: Server, tiny_data: Path, tmp_path: Path, no_account: dict[str, str]
) -> None:
    address = f"http://127.0.0.1:{server.server_port}"
    online = {**no_account, "WANDB_BASE_URL": address, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}
    finished = run("task=dashboard", data=tiny_data, output=tmp_path, check=False, **online)
    told = finished.stdout + finished.stderr
    assert finished.returncode == 1 and "Traceback" not in told
    assert "task: W&B did not take the dashboard of faceattr-lightning: " in told and "permission denied" in told
    _, _, folder = specs(tmp_path)
    assert f"What was to be sent lies in {folder}" in told


@pytest.mark.slow
def test_no_connection_is_told_and_the_spec_stays(tiny_data: Path, tmp_path: Path, no_account: dict[str, str]) -> None:
    finished = run("task=dashboard", data=tiny_data, output=tmp_path, check=False, **{**no_account, **NOWHERE})
    told = finished.stdout + finished.stderr
    assert finished.returncode == 1 and "Traceback" not in told
    assert "task: W&B did not take the dashboard" in told and "task.offline=true" in told
    specs(tmp_path)


def test_a_key_that_no_run_has(tmp_path: Path) -> None:
    config = {"model": {}, "paths": {"run_dir": str(tmp_path)}}
    with pytest.raises(ConfigError, match=r"task\.groupby: .*'modle\.name'.* Did you mean 'model'\?"):
        dashboard(config, [], project="faces", groupby=["model._target_", "modle.name"], offline=True)
    assert not list(tmp_path.iterdir())


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb_workspaces" else found(name))
    with pytest.raises(ConfigError, match=r"dashboard needs wandb_workspaces.*faceattr-lightning\[wandb\]"):
        check_installed()


def artifacts(logged: OfflineRun) -> list[Any]:
    """Return the model artifacts of a run, in the order in which they were logged."""
    (path,) = logged.folder.glob("run-*.wandb")
    found = [record.artifact for record in records(path) if record.WhichOneof("record_type") == "artifact"]
    return [one for one in found if one.type == "model"]


def test_the_checkpoint_is_an_artifact_when_asked(trained: Path, logged: OfflineRun) -> None:
    files = {json.loads(one.metadata)["original_filename"]: one for one in artifacts(logged)}
    assert "best.ckpt" in files and {one.name for one in files.values()} == {f"model-{logged.run.run_id}"}
    (entry,) = files["best.ckpt"].manifest.contents
    # W&B keeps its own copy, from which `wandb sync` sends it.
    assert Path(entry.local_path).read_bytes() == (trained / "checkpoints" / "best.ckpt").read_bytes()
    assert "state_dict" in torch.load(entry.local_path, weights_only=True)


def test_the_artifact_called_best_is_the_best_checkpoint(logged: OfflineRun) -> None:
    # An alias moves to the version that was logged last.
    called_best = [one for one in artifacts(logged) if "best" in one.aliases][-1]
    assert json.loads(called_best.metadata)["original_filename"] == "best.ckpt"


def test_tensorboard_gets_the_same_curves(trained: Path) -> None:
    found = EventAccumulator(str(trained / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    csv = rows(trained / "metrics.csv")
    for key in ("val/accuracy", "test/accuracy", "weight/Male", "threshold/Male"):
        expected = [float(row[key]) for row in csv if row[key]]
        assert [event.value for event in found.Scalars(key)] == pytest.approx(expected), key
