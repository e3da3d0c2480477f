"""The harness of the benchmarks; no figure of a machine is tested."""

from __future__ import annotations

import io
import itertools
import json
import operator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from faceattr_lightning.data.celeba import read_celeba
from faceattr_lightning.data.table import Split
from faceattr_lightning.inference.detection import DetectedFace
from tests.benchmarks.clock import interleave, interleave_processes
from tests.benchmarks.data_path import CASES, theirs
from tests.benchmarks.detect_and_align import nearest
from tests.benchmarks.faces import write_photos
from tests.benchmarks.rows import PER_IMAGE, Row, make_table, medians
from tests.data.writers import assert_same_table


def printed(rows: list[Row], before: dict[str, float] | None = None) -> str:
    console = Console(width=200, file=io.StringIO())
    with console.capture() as capture:
        console.print(make_table(rows, "title", before))
    return capture.get()


def test_the_mark_is_for_the_median_of_ratios() -> None:
    row = Row("a step", "ms", ours=[1.0, 1.0, 9.0], reference=[4.0, 5.0, 1.0], at_most=0.25)
    assert row.judged == [0.25, 0.2, 9.0] and row.median == 0.25 and row.met
    text = printed([row, Row("alone", "ms", [2.0, 3.0, 4.0], at_most=1)])
    assert "4x" in text and "≥ 4x  met" in text and "≤ 1 ms  not met" in text


def test_milliseconds_an_image_are_shown_as_images_a_second_too() -> None:
    text = printed([Row("a network", PER_IMAGE, ours=[4.0], reference=[8.0])])
    assert "4 ms/image = 250/s" in text and "8 ms/image = 125/s" in text and "0.500" in text


def test_the_face_that_is_nearest_to_the_middle() -> None:
    boxes = [(0, 0, 40, 40), (30, 30, 80, 80), (45, 45, 60, 65), (90, 90, 99, 99)]
    faces = [DetectedFace(np.array(box, np.float32), 0.9, np.zeros((5, 2), np.float32)) for box in boxes]
    assert nearest(faces, np.array([50.0, 50.0])) is faces[2]
    assert nearest(faces, np.array([20.0, 80.0])) is None and nearest([], np.zeros(2)) is None


def test_a_run_is_compared_with_the_json_of_an_earlier_one() -> None:
    row = Row("a step", "ms", ours=[1.0], reference=[4.0])
    before = medians(json.loads(json.dumps({"step": [row.to_dict()]})))
    assert before == {"a step": 0.25}
    text = printed([Row("a step", "ms", ours=[1.0], reference=[2.0]), Row("new", "ms", [1.0])], before)
    assert "2.00x" in text and "new" in text


ONE_TURN = operator.methodcaller("fill", itertools.repeat(3))
"""A side that takes one turn; not a function of this file, which other processes could not import."""


def test_sides_take_turns_in_processes() -> None:
    measured = interleave_processes([ONE_TURN, ONE_TURN], turns=1)
    assert [len(side.seconds) for side in measured] == [1, 1] and all(side.peak > 1 for side in measured)


def test_a_side_that_ends_too_early_ends_the_benchmark() -> None:
    with pytest.raises(RuntimeError, match="too early"):
        interleave_processes([ONE_TURN], turns=2)


def test_interleaved_work_is_counted_in_its_units() -> None:
    once, twice = interleave([iter(lambda: 1, 0), iter(lambda: 2, 0)], rounds=2)
    assert len(once) == len(twice) == 2


def test_every_other_side_reads_the_files_that_we_read(tmp_path: Path) -> None:
    root = tmp_path / "celeba"
    expected = write_photos(root, 24)
    assert_same_table(read_celeba(root), expected)
    labels = expected.attributes[expected.rows(Split.VALIDATION)]
    for case in (CASES[0], CASES[-1]):
        image, found = next(iter(theirs(root, case, training=False)))
        assert image.shape[1:] == (3, case.size, case.size)
        np.testing.assert_array_equal(found, labels)
