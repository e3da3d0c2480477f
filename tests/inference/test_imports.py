"""Reading, finding and aligning faces needs neither torch nor Lightning nor Hydra."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import faceattr_lightning.inference.alignment
import faceattr_lightning.inference.detection
import faceattr_lightning.inference.photo
heavy = {"torch", "lightning", "hydra", "omegaconf", "timm", "onnxruntime", "cv2", "mtcnnruntime", "pillow_heif"}
print(sorted(heavy.intersection(sys.modules)))
"""


def test_light_to_import() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
