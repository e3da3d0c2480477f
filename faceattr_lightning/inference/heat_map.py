"""Where in a face a network looked for an attribute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from numpy.typing import NDArray
from torch import Tensor

from faceattr_lightning.inference.engine import TorchEngine
from faceattr_lightning.networks.backbone import Backbone
from faceattr_lightning.networks.baseline import BaselineNetwork
from faceattr_lightning.networks.mgmtn import MGMTNNetwork


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Where a network looked.

    Attributes:
        share: float32 (S, S) in [0, 1]; all 0 where nothing in the face spoke for the attribute.
        kind: ``gradient`` by Grad-CAM, scaled to a maximum of 1; ``mask`` the network's own.
        group: of attributes, to which the mask belongs; empty for ``gradient``.
        cells: (height, width) of the map before it was enlarged to the face.
    """

    share: NDArray[np.float32]
    kind: Literal["gradient", "mask"]
    group: str
    cells: tuple[int, int]


def heat_map(engine: TorchEngine, image: NDArray[np.uint8], attribute: str) -> HeatMap | None:
    """Return where a network looked for an attribute in a face.

    MGMTN's own mask of the attribute's group, under which the group's features are pooled; it is the same whatever the
    answer. Of other networks Grad-CAM (Selvaraju et al., ICCV 2017, equations 1 and 2), by captum, of the attribute's
    logit over the backbone's last feature map: what spoke *for* it, also where the answer is no. Ours: FAR-AMTN's map
    of each group counts as further channels of one map. A baseline that averages mirror images is asked for the face as
    it is.

    Args:
        engine: a network with gradients.
        image: uint8 (S, S, 3), RGB, as the network saw it.
        attribute: one of the network's.

    Returns:
        ``None`` for an MGMTN that pools over the whole face, without masks or from the global features alone.
    """
    network = engine.network
    pixels = torch.from_numpy(np.array(image)).to(engine.device).permute(2, 0, 1)[None].float()
    if isinstance(network, MGMTNNetwork):
        return None if network.fusion == "global" else _mask(engine, pixels, attribute)
    backbone = network.backbone
    assert isinstance(backbone, Backbone)

    def logits(batch: Tensor) -> Tensor:
        output = network.one_side(batch) if isinstance(network, BaselineNetwork) else network(batch)
        found: Tensor = output["logits"]
        return found

    column = engine.facts.attribute_names.index(attribute)
    with torch.enable_grad():
        maps = LayerGradCam(logits, backbone).attribute(pixels, target=column)
        together = maps.sum(dim=0, keepdim=True).detach().relu()
    # Without corners aligned a cell lies over what it stands for.
    enlarged = LayerAttribution.interpolate(together, pixels.shape[2:], "bilinear")
    share = enlarged[0, 0].float().cpu().numpy()
    return HeatMap(share / max(float(share.max()), 1e-12), "gradient", "", (together.shape[2], together.shape[3]))


def _mask(engine: TorchEngine, pixels: Tensor, attribute: str) -> HeatMap | None:
    with torch.inference_mode():
        masks = engine.network(pixels).get("masks")
    if masks is None:
        return None
    # The masks stand in the order of the groups.
    place, group = next(
        (k, name) for k, (name, members) in enumerate(engine.facts.groups.items()) if attribute in members
    )
    share = masks[0, place].float().cpu().numpy()
    return HeatMap(share, "mask", group, (share.shape[0], share.shape[1]))
