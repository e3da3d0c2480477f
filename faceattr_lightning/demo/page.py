"""The page: its parts, and what happens when one of them is used."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from faceattr_lightning.demo import html
from faceattr_lightning.inference.engine import TorchEngine
from faceattr_lightning.inference.heat_map import heat_map
from faceattr_lightning.inference.photo import shown
from faceattr_lightning.inference.predictor import Face, Found, Predictor

_STEP = 0.01
# Faces stay in memory for heat maps: of so many pages, and for so long.
_SESSIONS = 16
_SECONDS = 1800
_WAITING = 8
_NO_GRADIENTS = "Where the model looked: heat maps need the checkpoint, since this file of it has no gradients."
_WHOLE_FACE = "This network pools over the whole face: it has no masks, or does not use them."
_FORGOTTEN = "The photo is no longer in memory; drop it again."


@dataclass(frozen=True)
class Page:
    """What answers on the page, and how.

    Args:
        predictor: of the model; the sliders start at its thresholds.
        engine: of the model, for heat maps; ``None`` where it has no gradients.
        folder: where gradio puts what is uploaded; of it nothing is kept.
        title: of the page.
        limits: of a photo, a sentence.
        waiting: folder of an upload to the number of visitors whose photo in it was not looked at yet: gradio puts
            equal photos into one.
    """

    predictor: Predictor
    engine: TorchEngine | None
    folder: Path
    title: str
    limits: str
    waiting: Counter[Path] = field(default_factory=Counter)

    def build(self) -> gr.Blocks:
        """Return the page."""
        fitted = self.predictor.thresholds.tolist()
        names = self.predictor.facts.attribute_names
        page: gr.Blocks = gr.Blocks(title=self.title, analytics_enabled=False)
        with page:
            faces = gr.State([], time_to_live=_SECONDS)
            gr.HTML(html.heading(self.title, f"{self.limits} It stays on this machine, and no file of it is kept."))
            with gr.Row():
                with gr.Column(scale=3):
                    upload = gr.File(label="Photo", file_count="single", height=140, elem_id="upload")
                    said = gr.HTML(elem_id="said")
                    photo = gr.HTML(elem_id="photo")
                    with gr.Accordion("Thresholds", open=False, visible=False, elem_id="thresholds") as thresholds:
                        reset = gr.Button("Back to the fitted ones", size="sm", elem_id="reset")
                        sliders = [
                            gr.Slider(0, 1, value=value, step=_STEP, label=name, buttons=[], elem_classes="threshold")
                            for name, value in zip(names, fitted, strict=True)
                        ]
                with gr.Column(scale=2):
                    chosen = gr.Radio([], label="Face", visible=False, elem_id="faces")
                    attribute = gr.Dropdown(
                        names, value=None, label="Where the model looked for", visible=False, elem_id="attribute"
                    )
                    seen = gr.HTML(elem_id="seen")
                    gr.HTML(html.message(_NO_GRADIENTS), visible=self.engine is None, elem_id="no-heat")
                    answers = gr.HTML(elem_id="answers")
            # Without the network, and so without waiting for it.
            at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
            # Photos and faces are looked at one at a time, whoever asks.
            in_turn: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
            upload.upload(self.wait, upload, None, preprocess=False, **at_once).then(
                self.look,
                [upload, *sliders],
                [upload, said, photo, faces, chosen, answers, attribute, seen, thresholds],
                preprocess=False,
                **in_turn,
            )
            gr.on([attribute.input, chosen.input], self.explain, [faces, chosen, attribute], seen, **in_turn)
            moved = [chosen.input, *(slider.input for slider in sliders)]
            asked = [faces, chosen, *sliders]
            gr.on(moved, self.answer, asked, answers, trigger_mode="always_last", **at_once)
            reset.click(lambda: fitted, None, sliders, **at_once).then(self.answer, asked, answers, **at_once)
        page.state_session_capacity = _SESSIONS
        page.queue(max_size=_WAITING)
        return page

    def wait(self, uploaded: dict[str, Any] | None) -> None:
        """Note that a photo will be looked at."""
        if uploaded and (folder := self._folder_of(uploaded)):
            self.waiting[folder] += 1

    def look(self, uploaded: dict[str, Any] | None, *thresholds: float) -> list[Any]:
        """Return what the page shows of a photo, whose file is gone then, unless another visitor has the same."""
        folder = self._folder_of(uploaded) if uploaded else None
        if uploaded is None or folder is None:
            return self._nothing(_FORGOTTEN)
        path = folder / Path(uploaded["path"]).name
        name = shown(uploaded.get("orig_name") or path.name)
        found: list[Found] = []
        try:
            photo = next(self.predictor.predict([path], found=found.append))
        finally:
            self.waiting[folder] -= 1
            if self.waiting[folder] <= 0:
                del self.waiting[folder]
                shutil.rmtree(folder, ignore_errors=True)
        if photo.error:
            # The user knows the photo by its own name.
            return self._nothing(f"{name}: {photo.error.removeprefix(f'{shown(path)}: ')}")
        if not photo.faces:
            return self._nothing(f"{name}: no face was found.", html.photo(found[0].image, []))
        faces = photo.faces
        count = "1 face" if len(faces) == 1 else f"{len(faces)} faces"
        numbers = [(str(face.number), face.number) for face in faces]
        return [
            None,
            html.message(f"{name}: {count}."),
            html.photo(found[0].image, found[0].faces),
            faces,
            gr.update(choices=numbers, value=0, visible=len(faces) > 1),
            self.answer(faces, 0, *thresholds),
            gr.update(value=None, visible=self.engine is not None),
            _as_seen(faces[0]),
            gr.update(visible=True),
        ]

    def _folder_of(self, uploaded: dict[str, Any]) -> Path | None:
        """Return the folder around a file, which will be deleted; ``None`` unless it is an upload's."""
        folder = Path(uploaded["path"]).resolve().parent
        return folder if folder.parent == self.folder else None

    def answer(self, faces: list[Face], number: int | None, *thresholds: float) -> str:
        """Return the attributes of a face as HTML, by the thresholds of the sliders; the network is not asked."""
        if not faces or number is None:
            return html.message(_FORGOTTEN, bad=True)
        fitted = self.predictor.thresholds.tolist()
        # A slider that shows the fitted threshold means it, with all of its digits.
        meant = [own if abs(own - moved) <= _STEP / 2 else moved for own, moved in zip(fitted, thresholds, strict=True)]
        face = faces[number]
        probabilities = {name: answer.probability for name, answer in face.attributes.items()}
        return html.answers(probabilities, dict(zip(probabilities, meant, strict=True)), face.age_group)

    def explain(self, faces: list[Face], number: int | None, attribute: str | None) -> str:
        """Return a face as HTML, with where the model looked for an attribute in it."""
        if not faces or number is None:
            return html.message(_FORGOTTEN, bad=True)
        face = faces[number]
        if attribute is None or self.engine is None:
            return _as_seen(face)
        found = heat_map(self.engine, face.image, attribute)
        if found is None:
            return _as_seen(face) + html.message(_WHOLE_FACE)
        height, width = found.cells
        if found.kind == "mask":
            text = f"Face {number}, {attribute}: the model's own mask of its group, {found.group}."
        elif found.share.any():
            text = (
                f"Face {number}, {attribute}: what spoke for it, red where it did most. "
                f"Grad-CAM over the last feature map, of {width} x {height} cells."
            )
        else:
            text = f"Face {number}, {attribute}: nothing in the last feature map spoke for it (Grad-CAM)."
        return html.face(face.image, text, found.share)

    def _nothing(self, problem: str, photo: str = "") -> list[Any]:
        hidden = gr.update(visible=False)
        return [None, html.message(problem, bad=True), photo, [], hidden, "", hidden, "", hidden]


def _as_seen(face: Face) -> str:
    return html.face(face.image, f"Face {face.number}, as the model saw it.")
