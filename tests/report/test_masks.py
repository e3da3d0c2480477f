"""The picture of masks over faces."""

import numpy as np

from faceattr_lightning.report import MaskImage, ReportData, SplitReport, render
from faceattr_lightning.report.grid import mask_row


def image(seed: int) -> MaskImage:
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:16] = 255
    return MaskImage(picture, f"<{seed}>.jpg", {"hair": mask, "lower_face": 255 - mask})


def test_a_row_for_each_group() -> None:
    report = ReportData("title", "subtitle", {}, [SplitReport("test/celeba", [], {})], masks=[image(0), image(1)])
    page = render(report)
    assert "<h2>Masks</h2>" in page and "<h3>hair</h3>" in page and "<h3>lower face</h3>" in page
    assert page.count("data:image/jpeg") == 4
    assert "&lt;0&gt;.jpg, hair" in page and "<0>.jpg" not in page
    assert "test, celeba split" in page


def test_a_network_without_masks_has_no_section() -> None:
    assert "<h2>Masks</h2>" not in render(ReportData("title", "subtitle", {}, []))


def test_the_mask_is_red_and_the_rest_is_grey() -> None:
    white = MaskImage(np.full((8, 8, 3), 255, np.uint8), "x", {"a": np.eye(8, dtype=np.uint8) * 255})
    assert "data:image/jpeg" in mask_row("a", [white])
