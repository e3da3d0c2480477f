"""The memory of ``task=predict`` against the number of photos. Linux only: it is read from /proc."""

from __future__ import annotations

import atexit
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceattr_lightning.data.synthetic_faces import draw_face, sample_people
from faceattr_lightning.inference.detection import DetectedFace, MTCNNDetector
from faceattr_lightning.processes import quote
from tests.benchmarks.clock import memory_of_process
from tests.benchmarks.ours import prepared_in
from tests.benchmarks.rows import Row
from tests.runs import SMALL, run, run_dirs

COUNTS = (1_000, 10_000)
DIFFERENT = 16


def predict_memory(data: Path, scratch: Path) -> list[Row]:
    """Compare the peak over 10,000 photos with that over 1,000, each in a process of its own.

    The photos are hard links to a few drawn ones. They go through all of the task: MTCNN, alignment, a tiny network,
    journal, pictures, table, gallery and progress.
    """
    given = [*SMALL, "model=baseline", "trainer.max_epochs=1", *prepared_in(scratch)]
    run(*given, data=data.parent, output=scratch, OMP_NUM_THREADS="1")
    (trained,) = run_dirs(scratch)
    drawn = _draw(scratch / "drawn")
    peaks = []
    for count in COUNTS:
        photos, peak = scratch / f"{count} photos", scratch / f"{count}.json"
        photos.mkdir()
        for number in range(count):
            (photos / f"{number:05d}.jpg").hardlink_to(drawn[number % DIFFERENT])
        run(
            "task=predict",
            f"images={quote(str(photos))}",
            f"ckpt_path={quote(str(trained / 'checkpoints' / 'best.ckpt'))}",
            "task.detector._target_=tests.benchmarks.predict_memory.RecordPeak",
            f"+task.detector.file={quote(str(peak))}",
            data=data.parent,
            output=scratch,
            timeout=None,
            OMP_NUM_THREADS="1",
        )
        read = json.loads(peak.read_text())
        assert read["photos"] == count and read["faces"] >= 0.9 * count
        peaks.append(read["peak"])
    few, many = COUNTS
    return [Row(f"peak memory of task=predict, {many:,} photos against {few:,}", "MB", peaks[1:], peaks[:1], 1.05)]


def _draw(folder: Path) -> list[Path]:
    """Write photos of several sizes, each with a drawn face."""
    folder.mkdir()
    paths = [folder / f"{number}.jpg" for number in range(DIFFERENT)]
    for number, (path, person) in enumerate(zip(paths, sample_people(DIFFERENT, 0).attributes, strict=True)):
        face = Image.fromarray(draw_face(person, number, 0, 0)[0])
        face.resize((178 + 8 * number, 218 + 8 * number), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


class RecordPeak:
    """MTCNN, that leaves the peak of the process's memory in a JSON file when the process ends.

    Args:
        file: to write.
        min_score: see `MTCNNDetector`.
    """

    def __init__(self, file: str, min_score: float = 0.9) -> None:
        self._detector, self._file = MTCNNDetector(min_score=min_score), Path(file)
        self._photos = self._faces = 0
        atexit.register(self._write)

    def __call__(self, image: NDArray[np.uint8]) -> list[DetectedFace]:
        faces = self._detector(image)
        self._photos, self._faces = self._photos + 1, self._faces + len(faces)
        return faces

    def _write(self) -> None:
        record = {"peak": memory_of_process("VmHWM"), "photos": self._photos, "faces": self._faces}
        self._file.write_text(json.dumps(record))
