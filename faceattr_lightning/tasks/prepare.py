"""``task=prepare``: make what a data set's first use would make, and check it."""

from __future__ import annotations

import logging
import time
from typing import Any

from faceattr_lightning.data import prepared
from faceattr_lightning.data.fused import Fused
from faceattr_lightning.data.module import FaceDataModule
from faceattr_lightning.instantiate import build
from faceattr_lightning.strategy import Process

log = logging.getLogger(__name__)


def prepare_data(config: dict[str, Any], ranks: list[Process], verify: bool = False) -> None:
    """Prepare the data set, or each member of a fused one, and say where it is.

    Args:
        config: the job's configuration as plain data.
        ranks: not used.
        verify: also read every prepared image, and make anew what is not as it was written.

    Raises:
        DataError: see `faceattr_lightning.data.prepared.prepare`.
    """
    data: FaceDataModule = build(config["data"], prepared=False)
    for member in data.members if isinstance(data, Fused) else [data]:
        started = time.monotonic()
        member.prepare_data()
        found = prepared.prepare(member, required=True)
        if verify:
            found = _verified(member, found)
        assert found.images is not None
        path = found.images.folder / "images.u8"
        log.info(
            "%s: %s images of %d pixels in %s (%.1f MB), after %.0f seconds",
            member.name,
            f"{len(found.table):,}",
            member.image_size,
            path,
            path.stat().st_size / 1e6,
            time.monotonic() - started,
        )


def _verified(member: FaceDataModule, found: prepared.Prepared) -> prepared.Prepared:
    damaged = prepared.verify(member, found)
    if not damaged:
        log.info("%s: every image is as it was written", member.name)
        return found
    log.warning("%s: %d parts are damaged, first %s; packing them again", member.name, len(damaged), damaged[0])
    prepared.discard(found)
    return prepared.prepare(member, required=True)
