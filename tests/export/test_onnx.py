"""Exported files against the model that they come from, read by onnxruntime alone."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

import faceattr_lightning
from faceattr_lightning.attributes import CELEBA_ATTRIBUTES
from faceattr_lightning.data.preprocessing import Preprocessing
from faceattr_lightning.errors import ConfigError, DataError
from faceattr_lightning.export import onnx as onnx_module
from faceattr_lightning.export.deployed import Parity, check_parity, compare, exported_file
from faceattr_lightning.export.int8 import quantise
from faceattr_lightning.export.onnx import check_installed, export_onnx
from faceattr_lightning.export.session import open_session, read_metadata
from faceattr_lightning.instantiate import locate
from faceattr_lightning.models.module import AttributeModule
from tests.runs import ROOT

SIZE = 64
AGES = ["young", "middle", "old"]
PREPROCESSING = Preprocessing(
    (218, 178), (0, 20, 178, 198), SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), ((0.3, 0.4),) * 5
)
MODELS: dict[str, dict[str, Any]] = {
    "baseline.Baseline": {"mirror": True},
    "dmm_cnn.DMMCNN": {"hidden": 16, "pyramid_channels": 8},
    "far_amtn.FARAMTN": {"width": 32},
    "mgmtn.MGMTN": {"width": 32, "mask_width": 4, "landmarks": 5},
    "mtl_cnn.MTLCNN": {"width": 32, "databases": ["one", "two"], "labelled": [[True] * 40] * 2},
}


def make(path: str) -> AttributeModule:
    """Return a model whose outputs differ from image to image and whose thresholds differ, as after training."""
    torch.manual_seed(1)
    model: AttributeModule = locate(f"faceattr_lightning.models.{path}")(
        list(CELEBA_ATTRIBUTES), {"name": "test_resnet"}, PREPROCESSING.to_dict(), age_groups=AGES, **MODELS[path]
    )
    # Statistics of the images, so that no layer is the identity in evaluation.
    model.train()
    with torch.no_grad():
        for _ in range(10):
            model.network(images(16))
        model.calibrator.thresholds.copy_(torch.linspace(0.3, 0.7, 40))
        for module in model.network.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(2)
    return model.eval()


def images(count: int, seed: int = 0) -> torch.Tensor:
    """Return smooth random images, uint8 (count, 3, SIZE, SIZE)."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (255 * functional.interpolate(coarse, SIZE, mode="bilinear")).to(torch.uint8)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if path.startswith("baseline") else pytest.mark.slow) for path in MODELS],
)
def test_every_model_answers_as_before(path: str, tmp_path: Path) -> None:
    model = make(path)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = tmp_path / "model.onnx"
    export_onnx(model, file)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]) or tensor.isnan().all(), name
        assert tensor.stride() == state[name].stride(), name
    onnx.checker.check_model(onnx.load(file), full_check=True)

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [(one.name, one.type, one.shape[1:]) for one in session.get_inputs()] == [
        ("image", "tensor(uint8)", [3, SIZE, SIZE])
    ]
    assert [one.shape[0] for one in (*session.get_inputs(), *session.get_outputs())] == ["batch"] * 4
    assert [one.name for one in session.get_overridable_initializers()] == ["thresholds"]
    for count in (1, 5):
        batch = images(count, seed=count)
        with torch.no_grad():
            output = model.network(batch)
        expected = 1 / (1 + np.exp(-output["logits"].double().numpy()))
        probabilities, decisions, ages = session.run(None, {"image": batch.numpy()})
        assert probabilities.dtype == np.float32 and decisions.dtype == bool
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)
        assert count == 1 or expected.std(axis=0).max() > 0.01
        np.testing.assert_array_equal(decisions, probabilities >= model.calibrator.thresholds.numpy())
        powers = np.exp(output["age_group"].double().numpy())
        np.testing.assert_allclose(ages, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)

        other = np.linspace(0.7, 0.3, 40, dtype=np.float32)
        _, overridden, _ = session.run(None, {"image": batch.numpy(), "thresholds": other})
        np.testing.assert_array_equal(overridden, probabilities >= other)
        assert count == 1 or (overridden != decisions).any()


def test_a_file_says_what_it_is_without_torch(tmp_path: Path) -> None:
    model = make("baseline.Baseline")
    file = tmp_path / "model.onnx"
    export_onnx(model, file, licence="CC-BY-NC-4.0")
    code = (
        "import json, sys; from faceattr_lightning.export.session import open_session, read_metadata\n"
        f"print(json.dumps(read_metadata(open_session({str(file)!r}))))\n"
        "assert not {'torch', 'lightning', 'hydra', 'onnx'} & set(sys.modules), 'too much is imported'"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0 and finished.stderr == "", finished.stderr
    metadata = json.loads(finished.stdout)
    assert metadata["model"] == "faceattr_lightning.models.baseline.Baseline"
    assert (metadata["backbone"], metadata["precision"]) == ("test_resnet", "float32")
    assert (metadata["version"], metadata["licence"]) == (faceattr_lightning.__version__, "CC-BY-NC-4.0")
    assert metadata["preprocessing_inside"] and metadata["input"].startswith("uint8 (B, 3, 64, 64), RGB")
    assert metadata["attribute_names"] == list(CELEBA_ATTRIBUTES) and metadata["age_groups"] == AGES
    assert metadata["groups"] == model.groups
    assert metadata["thresholds"] == pytest.approx(np.linspace(0.3, 0.7, 40).tolist())
    assert Preprocessing.from_dict(metadata["preprocessing"]) == PREPROCESSING
    assert list(tmp_path.iterdir()) == [file]

    small = tmp_path / "small.onnx"
    quantise(file, small, images(10).numpy())
    session = open_session(small, threads=1)
    assert read_metadata(session) == {**metadata, "precision": "int8"}
    kinds = {node.op_type for node in onnx.load(small).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    stored = {one.name: one for one in onnx.load(small).graph.initializer}
    filters = [one for one in stored.values() if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 4]
    assert len(filters) == sum(isinstance(module, nn.Conv2d) for module in model.network.modules())
    heads = [one for one in stored.values() if 40 in one.dims and len(one.dims) == 2]
    assert [one.data_type for one in heads] == [onnx.TensorProto.FLOAT]

    batch = images(64, seed=3)
    with torch.no_grad():
        expected = model.network(batch)["logits"].sigmoid().numpy()
    probabilities, decisions, _ = session.run(None, {"image": batch.numpy()})
    assert np.abs(probabilities - expected).mean() < 0.03
    assert (decisions == (expected >= model.calibrator.thresholds.numpy())).mean() > 0.95
    _, none, _ = session.run(None, {"image": batch.numpy(), "thresholds": np.full(40, 2, dtype=np.float32)})
    assert not none.any()


@pytest.mark.parametrize(("size", "bins"), [(8, 4), (7, 4), (3, 4), (2, 1), (5, 2)])
def test_adaptive_max_pooling(size: int, bins: int) -> None:
    features = torch.randn(2, 3, size, size + 1, generator=torch.Generator().manual_seed(0))
    pooled, _ = onnx_module._adaptive_max_pool(features, (bins, bins))
    assert torch.equal(pooled, functional.adaptive_max_pool2d(features, bins))


def test_parity() -> None:
    expected = [[np.array([[0.1, 0.2]]), np.array([[False, True]])], [np.array([[0.3, 0.4]]), np.array([[True, True]])]]
    found = [[np.array([[0.1, 0.4]]), np.array([[False, True]])], [np.array([[0.3, 0.3]]), np.array([[True, False]])]]
    parity = compare(expected, found)
    assert parity.images == 2 and parity.decisions == 0.25
    assert (parity.greatest, parity.mean) == (pytest.approx(0.2), pytest.approx(0.075))
    check_parity(Parity(2, 1e-5, 1e-6, 0.0), Path("model.onnx"))
    for greatest in (0.2, math.nan):
        with pytest.raises(DataError, match=r"model\.onnx: its probabilities differ"):
            check_parity(Parity(2, greatest, 1e-6, 0.0), Path("model.onnx"))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(ConfigError, match=r"onnxscript.*pip install 'faceattr-lightning\[export\]'"):
        check_installed()


def test_files_that_can_not_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_session(tmp_path / "none.onnx")
    text = tmp_path / "text.onnx"
    text.write_text("no network")
    with pytest.raises(DataError, match=r"text\.onnx: onnxruntime can't open it"):
        open_session(text)
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    same = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "foreign", [value], [same])
    foreign = tmp_path / "foreign.onnx"
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)]), foreign)
    with pytest.raises(DataError, match="not made by faceattr-lightning"):
        read_metadata(open_session(foreign))


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), exported_file(path) as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    told = r"nowhere/model\.onnx: can't be written \(No such file"
    with pytest.raises(DataError, match=told), exported_file(tmp_path / "nowhere" / "model.onnx") as partial:
        partial.write_bytes(b"")
