"""``task=demo``: the real program, and its page in a headless Chromium."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from faceattr_lightning import Predictor
from faceattr_lightning.demo import html, server
from faceattr_lightning.demo.server import listening
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.inference.engine import TorchEngine
from faceattr_lightning.inference.photo import PhotoError, read_photo, shown
from faceattr_lightning.inference.predictor import Found, Photo
from faceattr_lightning.processes import quote
from tests.report import test_browser
from tests.runs import ROOT, SMALL, SMALL_DMM, run_here
from tests.test_predict import Corners

pytest.importorskip("gradio", reason="needs gradio: pip install 'faceattr-lightning[demo]'")

browser = test_browser.browser

WAIT = 60_000
"""Milliseconds; how long something takes is no matter of these tests."""
MEGABYTES, PIXELS = 1, 4_000_000
FACES = 3


def train(run_dir: Path, data: Path, *overrides: str) -> Path:
    """Return the checkpoint of a model that has seen each image once."""
    given = [*SMALL, *overrides, "trainer.max_epochs=1", "callbacks.progress=null", "callbacks.report=null"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_here(*given, data=data, run_dir=run_dir, monkeypatch=monkeypatch)
    return run_dir / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    return train(tmp_path_factory.mktemp("outputs") / "train/run", tiny_data, *SMALL_DMM)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    path = tmp_path_factory.mktemp("photos") / "a photo.png"
    first = sorted((tiny_data / "celeba/img_align_celeba").iterdir())[0]
    Image.open(first).convert("RGB").resize((450, 550)).save(path)
    return path


@dataclass
class Served:
    """A running page.

    Attributes:
        address: of the page.
        temporary: the program's folder for temporary files.
        log: what it has said.
        program: its process.
    """

    address: str
    temporary: Path
    log: Path
    program: subprocess.Popen[bytes]

    def files(self) -> list[Path]:
        """Return the temporary files that lie there."""
        return [path for path in self.temporary.rglob("*") if not path.is_dir()]

    def end(self, sent: int) -> int:
        """Send a signal and return the exit status."""
        self.program.send_signal(sent)
        return self.program.wait(timeout=120)


@contextmanager
def served(folder: Path, model: Path, *overrides: str) -> Iterator[Served]:
    """Run ``run.py task=demo`` at a free port, with the quarters of a photo as its faces."""
    temporary, log = folder / "temporary", folder / "log"
    temporary.mkdir(parents=True)
    given = [
        "task=demo",
        f"ckpt_path={quote(str(model))}",
        f"paths.output_dir={quote(str(folder))}",
        "task.port=0",
        "task.detector._target_=tests.test_predict.Corners",
        f"+task.detector.faces={FACES}",
        "~task.detector.most_faces",
        f"task.most_megabytes={MEGABYTES}",
        f"task.most_pixels={PIXELS}",
        *overrides,
    ]
    # Whatever the program asks of another machine comes here.
    with socket.create_server(("127.0.0.1", 0)) as proxy, log.open("wb") as output:
        proxies = dict.fromkeys(
            ("http_proxy", "https_proxy", "all_proxy"), f"http://127.0.0.1:{proxy.getsockname()[1]}"
        )
        variables = {**os.environ, **proxies, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "run.py", *given]
        program = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield Served(_address(program, log), temporary, log, program)
            if program.poll() is None:
                program.send_signal(signal.SIGINT)
            assert program.wait(timeout=120) in (0, 143), log.read_text()
            assert "Traceback" not in log.read_text(), log.read_text()
            assert list(temporary.iterdir()) == []
            proxy.setblocking(False)
            with pytest.raises(BlockingIOError):
                proxy.accept()
        finally:
            program.kill()
            program.wait()


def _address(program: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(1200):
        if found := re.search(r"Page: (http://127\.0\.0\.1:\d+) ", log.read_text()):
            return found[1]
        if program.poll() is not None:
            break
        threading.Event().wait(0.1)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def page_server(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("demo"), checkpoint) as running:
        yield running


class Visitor:
    """Somebody at the page.

    Args:
        browser: a running one.
        running: the page.
    """

    def __init__(self, browser: Any, running: Served) -> None:
        self.requests: list[str] = []
        self.address = running.address
        self.context = browser.new_context(viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(running.address)

    def drop(self, file: Path | dict[str, Any]) -> str:
        """Give a photo, and return what the page says of it, which has to be something new."""
        said = self.page.locator("#said .message:not(.old)")
        if said.count():
            said.evaluate("node => node.classList.add('old')")
        self.page.locator("#upload input[type=file]").set_input_files(file)
        return str(said.inner_text())

    def probabilities(self) -> dict[str, float]:
        """Return the probability of each attribute as the page has it."""
        rows = self.page.locator("#answers li")
        found = rows.evaluate_all("rows => rows.map(row => [row.dataset.attribute, row.querySelector('data').value])")
        return {name: float(value) for name, value in found}

    def part(self, name: str) -> set[str]:
        """Return the attributes of the part ``present``, ``near`` or ``rest``."""
        rows = self.page.locator(f"#answers [data-part={name}] li")
        return set(rows.evaluate_all("rows => rows.map(row => row.dataset.attribute)"))

    def wait_for(self, script: str, value: Any = None) -> None:
        """Wait until a function of the browser returns true."""
        self.page.wait_for_function(script, arg=value)

    def move(self, attribute: str, value: float) -> None:
        """Move an attribute's slider."""
        if not self.page.locator(".threshold").first.is_visible():
            self.page.locator("#thresholds > button").click()
        slider = self.page.locator(".threshold").filter(has=self.page.get_by_text(attribute, exact=True))
        slider.locator("input[type=range]").evaluate(
            "(node, value) => { node.value = value; node.dispatchEvent(new Event('input', { bubbles: true })) }", value
        )

    def ask(self, attribute: str) -> None:
        """Ask where the model looked for an attribute."""
        self.page.locator("#attribute input").fill(attribute)
        self.page.get_by_role("option", name=attribute, exact=True).click()

    def outside(self) -> list[str]:
        """Return what the page asked of others."""
        return [url for url in self.requests if not url.startswith((f"{self.address}/", "data:", "blob:"))]


@pytest.fixture
def visitor(browser: Any, page_server: Served) -> Iterator[Visitor]:
    someone = Visitor(browser, page_server)
    yield someone
    someone.context.close()


IN_PART = "([part, name]) => document.querySelector(`#answers [data-part=${part}] li[data-attribute='${name}']`)"


def test_a_photo_on_the_page(visitor: Visitor, page_server: Served, checkpoint: Path, photo: Path) -> None:
    """Its answers are Predictor's; a slider changes a decision; nothing is kept, and nothing asked of others."""
    predictor = Predictor(checkpoint, detector=Corners(FACES))
    faces = predictor(photo).faces
    assert visitor.drop(photo) == f"a photo.png: {FACES} faces."
    visitor.wait_for("() => document.querySelector('#answers li')")
    assert page_server.files() == []

    assert visitor.page.locator("#photo rect").count() == FACES
    assert visitor.page.locator("#photo text").all_text_contents() == ["0", "1", "2"]
    answers = {name: answer.probability for name, answer in faces[0].attributes.items()}
    assert visitor.probabilities() == pytest.approx(answers, abs=1e-6)
    thresholds = dict(zip(answers, predictor.thresholds.tolist(), strict=True))
    present = {name for name, answer in faces[0].attributes.items() if answer.present}
    near = {name for name in answers if 0 < thresholds[name] - answers[name] <= 0.1}
    assert visitor.part("present") == present and visitor.part("near") == near
    assert not visitor.page.locator("#answers [data-part=rest] ul").is_visible()

    name = next(iter(answers.keys() - present))
    visitor.move(name, 0.0)
    visitor.wait_for(IN_PART, ["present", name])
    assert visitor.part("present") == present | {name}
    visitor.page.locator("#reset").click()
    visitor.wait_for(f"args => !({IN_PART})(args)", ["present", name])
    assert visitor.part("present") == present and visitor.probabilities() == pytest.approx(answers, abs=1e-6)

    visitor.page.locator("#faces label").nth(2).click()
    visitor.wait_for("() => document.querySelector('#seen').innerText.includes('Face 2')")
    second = {name: answer.probability for name, answer in faces[2].attributes.items()}
    first = next(iter(second))
    value = f"{second[first]:.7f}"
    visitor.wait_for(
        "([name, value]) => document.querySelector(`#answers li[data-attribute='${name}'] data`).value == value",
        [first, value],
    )
    assert visitor.probabilities() == pytest.approx(second, abs=1e-6)

    assert visitor.outside() == [] and page_server.files() == []
    shown = visitor.page.content()
    for path in (page_server.temporary, checkpoint.parent, photo.parent):
        assert str(path) not in shown


@pytest.mark.slow
def test_where_the_model_looked(visitor: Visitor, photo: Path) -> None:
    visitor.drop(photo)
    visitor.wait_for("() => document.querySelector('#seen img')")
    as_seen = visitor.page.locator("#seen img").get_attribute("src")
    visitor.ask("Smiling")
    visitor.wait_for("() => document.querySelector('#seen').innerText.includes('Grad-CAM')")
    assert visitor.page.locator("#seen img").get_attribute("src") != as_seen
    # Another photo, another question.
    visitor.drop({"name": "again.png", "mimeType": "image/png", "buffer": photo.read_bytes()})
    visitor.wait_for("() => document.querySelector('#seen').innerText.includes('as the model saw it')")
    assert visitor.page.locator("#seen img").get_attribute("src") == as_seen


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


WRONG = {
    "text.jpg": (b"no <b>image</b>", r"text\.jpg: this is not an image"),
    "empty.png": (b"", r"empty\.png: the file is empty"),
    "bomb.png": (bomb(), r"bomb\.png: 400,000,000 pixels are too many; at most 4,000,000 are read"),
    "<img src=x> {{value}} ${1}.jpg": (b"no image", r"<img src=x> \{\{value\}\} \$\{1\}\.jpg: this is not an image"),
    "one.png": (None, r"one\.png: 1 x 1 pixels are too few"),
}


@pytest.mark.slow
def test_wrong_files_get_one_line(visitor: Visitor, page_server: Served, photo: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    for name, (content, message) in WRONG.items():
        data = (tmp_path / "one.png").read_bytes() if content is None else content
        said = visitor.drop({"name": name, "mimeType": "image/jpeg", "buffer": data})
        assert re.match(message, said) and "\n" not in said and str(page_server.temporary) not in said
        assert not visitor.page.locator("#thresholds").is_visible() and not visitor.page.locator("#photo img").count()
    large = {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8" + bytes(MEGABYTES * 2**20)}
    visitor.page.locator("#upload input[type=file]").set_input_files(large)
    told = visitor.page.get_by_test_id("toast-body").filter(has_text="large.jpg")
    assert "exceed the maximum allowed size" in told.inner_text()
    # The page goes on.
    assert visitor.drop(photo) == f"a photo.png: {FACES} faces."
    assert page_server.files() == []


@pytest.mark.slow
def test_each_visitor_has_a_photo_of_their_own(browser: Any, page_server: Served, photo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.open(photo).transpose(Image.Transpose.ROTATE_90).save(other)
    visitors = [Visitor(browser, page_server), Visitor(browser, page_server)]
    for visitor, file in zip(visitors, (photo, other), strict=True):
        visitor.drop(file)
        visitor.wait_for("() => document.querySelector('#answers li')")
    before = [visitor.probabilities() for visitor in visitors]
    assert before[0] != before[1]
    for visitor, answers in zip(visitors, before, strict=True):
        name = next(iter(answers.keys() - visitor.part("present")))
        visitor.move(name, 0.0)
        visitor.wait_for(IN_PART, ["present", name])
        assert visitor.probabilities() == answers
        visitor.context.close()


@pytest.mark.slow
def test_only_what_was_uploaded_is_read(checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    """A browser that names another file of the machine, and an upload that is too large, past the page."""
    with served(tmp_path, checkpoint) as running:
        (event,) = (
            one["id"]
            for one in json.load(urllib.request.urlopen(f"{running.address}/config"))["dependencies"]
            if [target[1] for target in one["targets"]] == ["then"] and len(one["outputs"]) == 9
        )
        data = [{"path": str(photo), "meta": {"_type": "gradio.FileData"}}] + [0.5] * 40
        body = json.dumps({"data": data, "fn_index": event, "session_hash": "one"}).encode()
        header = {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{running.address}/gradio_api/queue/join", body, header))
        with urllib.request.urlopen(f"{running.address}/gradio_api/queue/data?session_hash=one", timeout=120) as told:
            (line,) = (line for line in told if b"process_completed" in line)
        assert b'"success":false' in line and b"photo" not in line and photo.is_file()

        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
        body += bytes(MEGABYTES * 2**20 + 1) + b"\r\n--x--\r\n"
        header = {"Content-Type": "multipart/form-data; boundary=x"}
        with pytest.raises(urllib.error.HTTPError, match="413"):
            urllib.request.urlopen(urllib.request.Request(f"{running.address}/gradio_api/upload", body, header))
        assert running.files() == []
        # Its refusal is an error to gradio, which the log has.
        running.log.write_text("")


@pytest.mark.slow
def test_an_onnx_file_says_that_heat_maps_need_the_checkpoint(
    browser: Any, checkpoint: Path, photo: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    given = ["task=export", f"ckpt_path={quote(str(checkpoint))}", "task.check=false"]
    run_here(*given, data=tiny_data, run_dir=tmp_path / "export/run", monkeypatch=monkeypatch)
    (exported,) = (tmp_path / "export/run").glob("*.onnx")
    with served(tmp_path / "demo", exported) as running:
        visitor = Visitor(browser, running)
        visitor.drop(photo)
        visitor.wait_for("() => document.querySelector('#answers li')")
        expected = Predictor(checkpoint, detector=Corners(FACES))(photo).faces[0]
        answers = {name: answer.probability for name, answer in expected.attributes.items()}
        assert visitor.probabilities() == pytest.approx(answers, abs=1e-4)
        note = visitor.page.locator("#no-heat").inner_text()
        assert "heat maps need the checkpoint" in note and "\n" not in note.strip()
        assert not visitor.page.locator("#attribute").is_visible()
        visitor.context.close()
        assert running.end(signal.SIGTERM) == 143
        status = json.loads(next((tmp_path / "demo/demo").glob("*/status.json")).read_text())
        assert status["state"] == "stopped"


@pytest.mark.slow
def test_heat_maps_are_grad_cam(tiny_data: Path, tmp_path: Path) -> None:
    """Of a linear layer over pooled features the gradient is known without a backward pass."""
    from faceattr_lightning.inference.heat_map import heat_map

    # Of the face as it is, also where the answer is a mean with its mirror image.
    engine = TorchEngine(train(tmp_path / "run", tiny_data, "model=baseline", "model.mirror=true"))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    network: Any = engine.network
    with torch.no_grad():
        features = network.backbone(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    empty = 0
    for column, name in enumerate(engine.facts.attribute_names):
        weights = network.head[-1].weight[column] / (features.shape[1] * features.shape[2])
        expected = torch.einsum("c,chw->hw", weights, features).relu().detach()
        found = heat_map(engine, image, name)
        assert found is not None and found.cells == tuple(expected.shape) and found.kind == "gradient"
        enlarged = torch.nn.functional.interpolate(expected[None, None], (64, 64), mode="bilinear")[0, 0]
        empty += not found.share.any()
        scaled = enlarged / enlarged.max().clamp(min=1e-12)
        torch.testing.assert_close(torch.from_numpy(found.share), scaled, rtol=1e-4, atol=1e-5)
    assert empty < len(engine.facts.attribute_names)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["dmm_cnn", "far_amtn", "mgmtn", "mtl_cnn"])
def test_every_model_tells_where_it_looked(model: str, tiny_data: Path, tmp_path: Path) -> None:
    from faceattr_lightning.inference.heat_map import heat_map

    given = [f"model={model}", "model.mask_epochs=1"] if model == "mgmtn" else [f"model={model}"]
    engine = TorchEngine(train(tmp_path / "run", tiny_data, *given))
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    before = engine(images)[0]
    found = [heat_map(engine, image, name) for name in engine.facts.attribute_names for image in images]
    maps = [one for one in found if one is not None]
    assert len(maps) == len(found)
    assert all(one.share.shape == (64, 64) and 0 <= one.share.min() <= one.share.max() <= 1 for one in maps)
    assert {one.kind for one in maps} == {"mask" if model == "mgmtn" else "gradient"}
    assert {one.group for one in maps} == (set(engine.facts.groups) if model == "mgmtn" else {""})
    assert any(one.share.any() for one in maps)
    # The network is left as it was.
    np.testing.assert_array_equal(engine(images)[0], before)
    if model == "mgmtn":
        masks = engine.network(torch.from_numpy(images[:1]).permute(0, 3, 1, 2))["masks"][0]
        place = list(engine.facts.groups).index(engine_group(engine, "Smiling"))
        smiling = heat_map(engine, images[0], "Smiling")
        assert smiling is not None and smiling.group == engine_group(engine, "Smiling")
        np.testing.assert_allclose(smiling.share, masks[place].detach().numpy(), atol=1e-6)
        # It has masks then, too, but pools under none of them.
        engine.network.fusion = "global"
        assert heat_map(engine, images[0], "Smiling") is None


def engine_group(engine: TorchEngine, attribute: str) -> str:
    return next(group for group, members in engine.facts.groups.items() if attribute in members)


def test_answers_by_threshold() -> None:
    text = html.answers({"A<b>": 0.5, "C": 0.4, "D": 0.39}, {"A<b>": 0.5, "C": 0.5, "D": 0.5}, {"old": 0.7})
    present, near, rest = re.split('data-part="(?:near|rest)"', text)
    assert 'data-attribute="A&lt;b&gt;"' in present and "<b>old</b> 0.70" in present and "A<b>" not in text
    assert 'data-attribute="C"' in near and 'data-attribute="D"' in rest and "The other 1" in rest


def test_refused_before_the_model_is_loaded(
    checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faceattr_lightning.tasks.demo.Predictor", None)
    model = f"ckpt_path={quote(str(checkpoint))}"

    def refused(run: str, *overrides: str) -> str:
        with pytest.raises(ConfigError) as error:
            run_here("task=demo", *overrides, data=tiny_data, run_dir=tmp_path / run, monkeypatch=monkeypatch)
        return str(error.value)

    assert "has a checkpoint 'best'. Train first" in refused("nothing")
    assert "ckpt_path: there is no file" in refused("gone", "ckpt_path=gone.ckpt")
    said = refused("limits", model, "task.most_megabytes=0", "task.most_pixels=0")
    assert "task.most_megabytes: expected a" in said and "task.most_pixels: expected a" in said
    with listening("127.0.0.1", 0) as (_, address):
        said = refused("busy", model, f"task.port={address.rpartition(':')[2]}")
    assert "another program listens there; choose another task.port" in said
    assert "choose another task.host" in refused("elsewhere", model, "task.host=192.0.2.1", "task.port=0")
    assert "task.port" in refused("high", model, "task.port=70000")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name))
    advice = "demo needs gradio, not installed here; run: pip install 'faceattr-lightning[demo]'"
    assert advice in refused("bare", model)


def test_two_visitors_with_the_same_photo(photo: Path, tmp_path: Path) -> None:
    """Whose file is one to gradio, whatever its names."""
    from faceattr_lightning.demo.page import Page

    class Reader:
        """Reads a photo and finds no face."""

        def predict(self, sources: list[Path], found: Any) -> Iterator[Photo]:
            for source in sources:
                image = read_photo(source)
                found(Found(source, image, []))
                yield Photo(str(source), (image.shape[0], image.shape[1]), [])

    page = Page(Reader(), None, tmp_path.resolve(), "", "")  # type: ignore[arg-type]
    uploads = []
    for name in ("me.png", "you.png"):
        (tmp_path / "hash").mkdir(exist_ok=True)
        uploads.append({"path": str(shutil.copy(photo, tmp_path / "hash" / name)), "orig_name": name})
        page.wait(uploads[-1])
    for upload in uploads:
        assert f"{upload['orig_name']}: no face was found." in page.look(upload)[1]
    assert list(tmp_path.iterdir()) == [] and not page.waiting
    page.wait({"path": str(photo)})
    assert "no longer in memory" in page.look({"path": str(photo)})[1] and photo.is_file() and not page.waiting


def test_uploads_that_were_broken_off_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_SECONDS_UPLOADED", 0.05)
    with server.upload_folder() as folder:
        (folder / "hash").mkdir()
        for path in (folder / "half", folder / "hash" / "whole.jpg"):
            path.touch()
        for _ in range(600):
            if not [path for path in folder.rglob("*") if path.is_file()]:
                break
            threading.Event().wait(0.1)
        else:
            raise AssertionError(list(folder.rglob("*")))
    assert not folder.exists()


@pytest.mark.parametrize("stated", [True, False])
def test_a_longer_body_is_refused(stated: bool) -> None:
    """As long as one file after the other is, none of which is too large."""
    taken: list[Any] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            taken.append(await receive())
            if taken[-1]["type"] == "http.disconnect" or not taken[-1]["more_body"]:
                return

    async def ask(*parts: bytes) -> None:
        left = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts]

        async def receive() -> Any:
            return left.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        length = [(b"content-length", str(sum(map(len, parts))).encode())] if stated else []
        await server._LimitedBodies(app, 100)({"type": "http", "headers": length}, receive, send)

    def run(*parts: bytes) -> None:
        # In a thread of its own: the browser's has a loop.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, ask(*parts)).result()

    run(bytes(60), bytes(40))
    assert [len(message["body"]) for message in taken] == [60, 40] and not sent
    taken.clear()
    run(bytes(60), bytes(41), bytes(1000))
    if stated:
        assert not taken and sent[0]["status"] == 413
    else:
        assert [message["type"] for message in taken] == ["http.request", "http.disconnect"]


def test_what_read_photo_says_begins_with_the_file(tmp_path: Path) -> None:
    """Which the page takes off, to put the photo's own name there."""
    file = tmp_path / "a\n.jpg"
    file.touch()
    with pytest.raises(PhotoError) as error:
        read_photo(file)
    assert str(error.value).startswith(f"{shown(file)}: ")


SCRIPT = """
import sys
import faceattr_lightning.demo.html, faceattr_lightning.demo.server
assert "gradio" not in sys.modules
import faceattr_lightning.demo.page
print(sorted({"lightning", "hydra", "omegaconf"}.intersection(sys.modules)))
"""


@pytest.mark.slow
def test_the_page_needs_neither_lightning_nor_hydra() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
