"""Augmentation and preprocessing: images and landmarks change together."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from faceattr_lightning.data.augment import _COLUMNS, RANDOM_NUMBERS, Augmentation, augment
from faceattr_lightning.data.batch import Batch
from faceattr_lightning.data.preprocessing import Preprocessing
from faceattr_lightning.errors import ConfigError

OFF = Augmentation(flip=0, scale=0, shift=0, brightness=0, contrast=0, saturation=0)
SIZE = 64
# left eye, right eye, nose, left and right corner of the mouth, as fractions of the crop
POINTS = torch.tensor([[0.25, 0.375], [0.75, 0.375], [0.5, 0.5], [0.375, 0.75], [0.625, 0.75]])


def batch_with_dots(count: int = 4) -> Batch:
    """Black images with a bright dot of its own brightness at each landmark."""
    image = torch.zeros(count, 3, SIZE, SIZE, dtype=torch.uint8)
    for dot, (x, y) in enumerate((POINTS * SIZE).long().tolist()):
        image[:, :, y - 1 : y + 1, x - 1 : x + 1] = 100 + 30 * dot
    return {
        "image": image,
        "attributes": torch.zeros(count, 2, dtype=torch.int8),
        "landmarks": POINTS.repeat(count, 1, 1),
        "landmarks_valid": torch.ones(count, 5, dtype=torch.bool),
        "identity": torch.arange(count),
        "index": torch.arange(count),
        "augmentation": torch.rand(count, RANDOM_NUMBERS, generator=torch.Generator().manual_seed(0)),
    }


def test_nothing_changes_when_everything_is_off() -> None:
    batch = batch_with_dots()
    changed = augment(batch, OFF)
    assert torch.equal(changed["image"], batch_with_dots()["image"])
    torch.testing.assert_close(changed["landmarks"], batch["landmarks"])
    assert "augmentation" not in changed


def test_a_mirror_image_swaps_left_and_right() -> None:
    batch = batch_with_dots()
    changed = augment(batch, Augmentation(flip=1, scale=0, shift=0, brightness=0, contrast=0, saturation=0))
    assert torch.equal(changed["image"], batch_with_dots()["image"].flip(-1))
    # The points are symmetric, so that a right swap leaves each where the landmark of its name was.
    torch.testing.assert_close(changed["landmarks"], batch["landmarks"])
    asymmetric = batch_with_dots()
    asymmetric["landmarks"][:, 0, 0] = 0.125
    asymmetric["landmarks_valid"][:, 3] = False
    changed = augment(asymmetric, Augmentation(flip=1, scale=0, shift=0))
    assert changed["landmarks"][0, 1, 0] == pytest.approx(1 - 0.125)
    assert changed["landmarks_valid"][0].tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_landmarks_go_where_the_pixels_go(flip: float) -> None:
    settings = Augmentation(flip=flip, scale=0.2, shift=0.1, brightness=0, contrast=0, saturation=0)
    batch = batch_with_dots(16)
    changed = augment(batch, settings)
    assert changed["landmarks_valid"].all()
    grid = (torch.arange(SIZE) + 0.5) / SIZE
    swap = [1, 0, 2, 4, 3] if flip else range(5)
    for sample in range(16):
        for landmark, dot in enumerate(swap):
            x, y = changed["landmarks"][sample, landmark]
            # The brightness-weighted centre of the pixels near the landmark, measured in the changed image.
            near = ((grid[None, :] - x).abs() < 0.06) & ((grid[:, None] - y).abs() < 0.06)
            light = changed["image"][sample, 0] * near
            centre = torch.stack([(light * grid[None, :]).sum(), (light * grid[:, None]).sum()]) / light.sum()
            torch.testing.assert_close(centre, torch.stack([x, y]), atol=0.01, rtol=0)
            assert light.max() <= 100 + 30 * dot + 1


def reference_image(image: torch.Tensor, randoms: dict[str, float], settings: Augmentation) -> torch.Tensor:
    """One image (3, S, S) after the augmentation, step by step, in float64."""
    signed = {name: 2 * value - 1 for name, value in randoms.items()}
    zoom, size = 1 + settings.scale * signed["scale"], image.shape[-1]
    mirror = -1.0 if randoms["flip"] < settings.flip else 1.0
    x, y = settings.shift * signed["shift_x"], settings.shift * signed["shift_y"]
    theta = torch.tensor([[mirror / zoom, 0, -2 * x * mirror / zoom], [0, 1 / zoom, -2 * y / zoom]])[None].double()
    grid = functional.affine_grid(theta, [1, 3, size, size], align_corners=False)
    image = functional.grid_sample(image[None].double(), grid, padding_mode="border", align_corners=False)[0]
    image = image * (1 + settings.brightness * signed["brightness"])
    grey = (image * torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]).sum(dim=0)
    image = grey + (1 + settings.saturation * signed["saturation"]) * (image - grey)
    image = grey.mean() + (1 + settings.contrast * signed["contrast"]) * (image - grey.mean())
    return image.clamp(0, 255)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "settings",
    [Augmentation(), Augmentation(flip=1, brightness=0.9, contrast=0.9), Augmentation(flip=0.3, scale=0, shift=0)],
)
def test_a_batch_equals_its_images_one_by_one(settings: Augmentation, channels_last: bool) -> None:
    batch = batch_with_dots(8)
    batch["image"] = torch.randint(0, 256, (8, 3, SIZE, SIZE), dtype=torch.uint8)
    before = batch["image"].clone()
    if channels_last:
        batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
    changed = augment(batch, settings)["image"]
    for sample, numbers in enumerate(batch["augmentation"].tolist()):
        randoms = dict(zip(_COLUMNS, numbers, strict=True))
        expected = reference_image(before[sample], randoms, settings)
        torch.testing.assert_close(changed[sample].double(), expected, atol=0.05, rtol=0)


def test_images_and_labels_are_mixed_alike() -> None:
    batch = batch_with_dots(3)
    batch["image"] = torch.tensor([0, 100, 200], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 8, 8).clone()
    batch["attributes"] = torch.tensor([[0, 1], [1, 1], [1, -1]], dtype=torch.int8)
    share = batch["augmentation"][:, _COLUMNS.index("mix")].numpy() / 2
    changed = augment(batch, Augmentation(flip=0, scale=0, shift=0, brightness=0, contrast=0, saturation=0, mix=0.5))
    own, other = np.array([0.0, 100.0, 200.0]), np.array([200.0, 0.0, 100.0])
    expected = (1 - share) * own + share * other
    np.testing.assert_allclose(changed["image"][:, 1, 2, 3], expected, rtol=1e-6)
    first = (1 - share) * [0, 1, 1] + share * [1, 0, 1]
    np.testing.assert_allclose(changed["attributes"][:, 0], first, rtol=1e-6)
    # The first sample's neighbour is the last, of which nothing is known.
    np.testing.assert_allclose(changed["attributes"][:, 1], [-1, 1, -1], rtol=1e-6)
    assert changed["attributes"].round().long()[:, 0].tolist() == [0, 1, 1]
    with pytest.raises(ConfigError, match=r"data\.augmentation\.mix: expected a share in \[0, 0\.5\], found 0\.6"):
        Augmentation(mix=0.6)


def test_a_landmark_that_leaves_the_image_is_no_longer_valid() -> None:
    batch = batch_with_dots(1)
    batch["landmarks"][0, 0] = torch.tensor([0.02, 0.5])
    batch["augmentation"][:] = 0.0  # the greatest shift to the left and up
    changed = augment(batch, Augmentation(flip=0, scale=0, shift=0.1))
    assert changed["landmarks_valid"][0].tolist() == [False, True, True, True, True]
    assert ((changed["landmarks"] >= 0) & (changed["landmarks"] <= 1)).all()


def test_colours_stay_in_range_and_change() -> None:
    batch = batch_with_dots(8)
    batch["image"] = torch.randint(0, 256, (8, 3, SIZE, SIZE), dtype=torch.uint8)
    changed = augment(batch, Augmentation(flip=0, scale=0, shift=0, brightness=0.5, contrast=0.5, saturation=0.5))
    assert changed["image"].min() >= 0 and changed["image"].max() <= 255
    assert not torch.allclose(changed["image"], batch["image"].float(), atol=5)


def test_without_landmarks() -> None:
    batch = batch_with_dots()
    batch["landmarks"], batch["landmarks_valid"] = torch.empty(4, 0, 2), torch.empty(4, 0, dtype=torch.bool)
    assert augment(batch, Augmentation())["landmarks"].shape == (4, 0, 2)


def preprocessing(**changes: object) -> Preprocessing:
    values = {
        "source_size": (218, 178),
        "crop": (0, 20, 178, 198),
        "image_size": 64,
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
    }
    return Preprocessing(**{**values, **changes})  # type: ignore[arg-type]


def test_images_agree_with_pillow() -> None:
    source = np.random.default_rng(0).integers(0, 256, (27, 22, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(source).resize((178, 218), Image.Resampling.BICUBIC)).copy()
    ours = preprocessing().images(smooth[None])[0].permute(1, 2, 0).numpy()
    theirs = np.asarray(Image.fromarray(smooth[20:198]).resize((64, 64), Image.Resampling.BILINEAR))
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_a_crop_of_the_right_size_is_not_resampled() -> None:
    source = np.random.default_rng(0).integers(0, 256, (2, 218, 178, 3), dtype=np.uint8)
    ours = preprocessing(image_size=178).images(source)
    np.testing.assert_array_equal(ours.permute(0, 2, 3, 1).numpy(), source[:, 20:198])


def test_landmarks_become_fractions_of_the_crop() -> None:
    source = np.array([[[88.5, 108.5], [0, 5], [177, 197], [np.nan, np.nan]]], dtype=np.float32)
    landmarks, valid = preprocessing().landmarks(source)
    assert valid.tolist() == [[True, False, True, False]]
    torch.testing.assert_close(landmarks[0, 0], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(landmarks[0, 2], torch.tensor([177.5 / 178, 177.5 / 178]))
    assert not landmarks.isnan().any()


def test_round_trip_of_plain_values() -> None:
    made = preprocessing(template=((0.3, 0.4), (0.7, 0.4)))
    plain = made.to_dict()
    assert plain["template"] == [[0.3, 0.4], [0.7, 0.4]] and plain["crop"] == [0, 20, 178, 198]
    assert Preprocessing.from_dict(plain) == made


def test_a_crop_outside_the_image() -> None:
    with pytest.raises(ConfigError, match=r"data\.crop: \[0, 20, 179, 198\] is not inside an image of 178 x 218"):
        preprocessing(crop=(0, 20, 179, 198))
