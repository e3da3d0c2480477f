"""``python -m tests.benchmarks.alignment``: how well and fast real faces are found and aligned; needs FACEATTR_DATA.

CelebA's images are turned, scaled and shifted at random into a larger photo, found and aligned back into their frame of
178 x 218 pixels; LFW's are photos as they are. Errors are distances in pixels of that frame, a mean over the five
landmarks of a face, whose eyes are 39 pixels apart. CelebA's landmark file in ``shared/data`` is itself an MTCNN's, in
whole pixels.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from faceattr_lightning.data.annotations import read_landmarks
from faceattr_lightning.inference.alignment import align, similarity, warp
from faceattr_lightning.inference.detection import DetectedFace, MTCNNDetector
from faceattr_lightning.inference.photo import read_photo
from faceattr_lightning.keypoints.mtcnn import main_face

FRAME = (218, 178)
CROP = (0, 20, 178, 198)
IMAGE_SIZE = 128
DEGREES = 30.0
SCALES = (0.5, 4.0)
SEED = 0


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.alignment", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500, help="of each data set (default: %(default)s)")
    arguments = parser.parse_args()
    data = Path(os.environ.get("FACEATTR_DATA") or parser.error("set FACEATTR_DATA to the folder of real faces"))
    rng = np.random.default_rng(SEED)
    celeba, landmarks = celeba_faces(data / "celeba", arguments.images, rng)
    lfw = sorted((data / "lfwa" / "lfw").rglob("*.jpg"))
    lfw = [lfw[index] for index in np.sort(rng.choice(len(lfw), min(arguments.images, len(lfw)), replace=False))]
    template = landmarks.mean(axis=0)
    detector = MTCNNDetector()
    console = Console(width=120)
    console.print(errors_table(detector, celeba, landmarks, lfw, template, rng))
    console.print(speed_table(detector, celeba, lfw, template))


def celeba_faces(root: Path, count: int, rng: np.random.Generator) -> tuple[list[Path], NDArray[np.float32]]:
    """Return ``count`` images drawn at random, and their landmarks, (N, 5, 2) in pixels of the frame."""
    listed = [line.split()[0] for line in (root / "list_landmarks_align_celeba.txt").read_text().splitlines()[2:]]
    files = [listed[index] for index in np.sort(rng.choice(len(listed), min(count, len(listed)), replace=False))]
    landmarks = read_landmarks(root / "list_landmarks_align_celeba.txt", files, FRAME, [])
    return [root / "img_align_celeba" / file for file in files], landmarks


def errors_table(
    detector: MTCNNDetector,
    celeba: list[Path],
    landmarks: NDArray[np.float32],
    lfw: list[Path],
    template: NDArray[np.float32],
    rng: np.random.Generator,
) -> Table:
    """Return the table of faces found and of distances between landmarks."""
    table = Table(title=f"Errors in pixels of {FRAME[1]} x {FRAME[0]}", title_justify="left")
    for heading in ("", "faces found", "mean", "median", "95 %"):
        table.add_column(heading, justify="left" if not heading else "right")
    detected, aligned, floor = [], [], []
    for file, points in zip(celeba, landmarks, strict=True):
        photo, to_photo = scatter(read_photo(file), rng)
        face = most_prominent(detector(photo), photo)
        floor.append(distance(moved(points, similarity(points, template)), points))
        if face is None:
            continue
        back = moved(face.landmarks, inverse(to_photo))
        # Another face of the picture, or none at all.
        if distance(back, points) > np.linalg.norm(points[1] - points[0]) / 2:
            continue
        detected.append(distance(back, points))
        aligned.append(distance(moved(moved(points, to_photo), similarity(face.landmarks, template)), points))
    share = f"{len(detected):,} of {len(celeba):,}"
    table.add_row("CelebA, scattered: landmarks found, against the file's", share, *figures(detected))
    table.add_row("CelebA, aligned back: the file's landmarks, against where they were", share, *figures(aligned))
    table.add_row("the same with the file's landmarks in the detector's place", "", *figures(floor))
    residuals = []
    for file in lfw:
        photo = read_photo(file)
        face = most_prominent(detector(photo), photo)
        if face is not None:
            residuals.append(distance(moved(face.landmarks, similarity(face.landmarks, template)), template))
    share = f"{len(residuals):,} of {len(lfw):,}"
    table.add_row("LFW, aligned: landmarks found, against the template's", share, *figures(residuals))
    return table


def speed_table(detector: MTCNNDetector, celeba: list[Path], lfw: list[Path], template: NDArray[np.float32]) -> Table:
    """Return the table of images per second of reading, detection and alignment, by CPU time, on one thread."""
    table = Table(title="Images per second of one thread's CPU time", title_justify="left")
    for heading in ("", "reading", "detection", "alignment, a face"):
        table.add_column(heading, justify="left" if not heading else "right")
    left, top, right, bottom = CROP
    fractions = (template + 0.5 - [left, top]) / [right - left, bottom - top]

    def measure(name: str, photos: Callable[[], Iterator[NDArray[np.uint8]]]) -> None:
        seconds, count, aligned = np.zeros(3), 0, 0
        clock = time.process_time()
        for photo in photos():
            read = time.process_time()
            faces = detector(photo)
            found = time.process_time()
            for face in faces:
                align(photo, face.landmarks, fractions, (bottom - top, right - left), IMAGE_SIZE)
            done = time.process_time()
            seconds += [read - clock, found - read, done - found]
            count, aligned, clock = count + 1, aligned + len(faces), time.process_time()
        table.add_row(name, *(f"{n / s:,.1f}" for n, s in zip((count, count, aligned), seconds, strict=True)))

    measure("CelebA, 178 x 218", lambda: map(read_photo, celeba))
    measure("LFW, 250 x 250", lambda: map(read_photo, lfw))
    measure("CelebA enlarged, 3024 x 3704 (not read but enlarged)", lambda: map(enlarged, celeba[:20]))
    return table


def scatter(
    image: NDArray[np.uint8], rng: np.random.Generator, scales: tuple[float, float] = SCALES
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Put an image, turned and scaled at random, somewhere into a photo that continues its edge.

    Args:
        image: uint8 (H, W, 3).
        rng: draws.
        scales: the least and the greatest.

    Returns:
        The photo, uint8 (S, S, 3) with S twice the scaled image's diagonal, and (2, 3), which carries its pixels
        to the photo's.
    """
    scale, angle = np.exp(rng.uniform(*np.log(scales))), np.radians(rng.uniform(-DEGREES, DEGREES))
    diagonal = float(np.hypot(*image.shape[:2])) * scale
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # The whole image is in the photo.
    centre = rng.uniform(diagonal / 2, diagonal * 1.5, 2)
    middle = (np.array(image.shape[1::-1]) - 1) / 2
    to_photo = np.column_stack([turn, centre - turn @ middle])
    side = round(diagonal * 2)
    return warp(image, to_photo, (side, side)), to_photo


def enlarged(file: Path) -> NDArray[np.uint8]:
    """Return an image as a photo of 11 megapixels."""
    image = Image.open(file).convert("RGB")
    return np.asarray(image.resize((3024, round(3024 / image.width * image.height)), Image.Resampling.BICUBIC))


def most_prominent(faces: list[DetectedFace], photo: NDArray[np.uint8]) -> DetectedFace | None:
    """Return the face that a photo is about."""
    return faces[main_face(np.array([face.box for face in faces]), photo.shape[:2])] if faces else None


def moved(points: NDArray[np.floating], matrix: NDArray[np.float64]) -> NDArray[np.floating]:
    """Return points (L, 2) carried by a (2, 3)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (2, 3) that undoes one."""
    turned = np.linalg.inv(matrix[:, :2])
    return np.column_stack([turned, -turned @ matrix[:, 2]])


def distance(points: NDArray[np.floating], others: NDArray[np.floating]) -> float:
    """Return the mean distance of landmarks (L, 2)."""
    return float(np.linalg.norm(points - others, axis=1).mean())


def figures(errors: list[float]) -> tuple[str, str, str]:
    """Return mean, median and 95th percentile as they stand in the table."""
    if not errors:
        return ("", "", "")
    return f"{np.mean(errors):.2f}", f"{np.median(errors):.2f}", f"{np.percentile(errors, 95):.2f}"


if __name__ == "__main__":
    main()
