"""Files that take normalised images, ``.pt2`` files and model folders, against the model that they come from."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import faceattr_lightning
from faceattr_lightning.attributes import CELEBA_ATTRIBUTES
from faceattr_lightning.description import without_folders
from faceattr_lightning.errors import ConfigError, DataError
from faceattr_lightning.export.deployed import describe_folder, loaded_from
from faceattr_lightning.export.folder import write_folder
from faceattr_lightning.export.int8 import quantise
from faceattr_lightning.export.onnx import export_onnx, set_metadata
from faceattr_lightning.export.session import open_session, read_metadata
from faceattr_lightning.export.torch_export import export_program, open_program
from faceattr_lightning.inference.engine import open_engine
from faceattr_lightning.models.baseline import Baseline
from faceattr_lightning.models.far_amtn import FARAMTN
from faceattr_lightning.models.module import AttributeModule
from faceattr_lightning.networks.backbone import Backbone, load_pretrained
from faceattr_lightning.networks.load import load_network
from tests.export.test_onnx import MODELS, PREPROCESSING, images, make
from tests.runs import ROOT

MEAN, STD = (np.array(values, np.float64).reshape(3, 1, 1) for values in (PREPROCESSING.mean, PREPROCESSING.std))
TOLERANCE = 1e-5


def answers(model: AttributeModule, batch: torch.Tensor) -> list[NDArray[np.float32]]:
    """Return a model's probabilities, and those of the age groups."""
    with torch.inference_mode():
        output = model.network(batch)
    return [output["logits"].sigmoid().numpy(), output["age_group"].softmax(dim=1).numpy()]


def pixels(batch: torch.Tensor) -> NDArray[np.uint8]:
    """Return images as an engine takes them."""
    array: NDArray[np.uint8] = batch.permute(0, 2, 3, 1).contiguous().numpy()
    return array


def check_engine(path: Path, model: AttributeModule) -> None:
    engine = open_engine(path)
    assert engine.facts.attribute_names == list(CELEBA_ATTRIBUTES)
    np.testing.assert_array_equal(engine.facts.thresholds, model.calibrator.thresholds.numpy())
    for count in (1, 5):
        batch = images(count, seed=count)
        for found, expected in zip(engine(pixels(batch)), answers(model, batch), strict=True):
            assert found is not None
            np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_onnx_of_normalised_images(tmp_path: Path) -> None:
    model, file = make("baseline.Baseline"), tmp_path / "model.onnx"
    export_onnx(model, file, "outside")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [(one.name, one.type, one.shape) for one in session.get_inputs()] == [
        ("image", "tensor(float)", ["batch", 3, 64, 64])
    ]
    batch = images(3)
    normalised = ((batch.double().numpy() / 255 - MEAN) / STD).astype(np.float32)
    probabilities, decisions, _ = session.run(None, {"image": normalised})
    np.testing.assert_allclose(probabilities, answers(model, batch)[0], atol=TOLERANCE)
    np.testing.assert_array_equal(decisions, probabilities >= model.calibrator.thresholds.numpy())
    metadata = read_metadata(session)
    assert not metadata["preprocessing_inside"] and metadata["licence"] is None
    assert metadata["input"] == "float32 (B, 3, 64, 64), RGB, (pixel / 255 - mean) / std"
    assert metadata["preprocessing"]["template"] == [[0.3, 0.4]] * 5
    check_engine(file, model)
    code = (
        "import sys; from pathlib import Path; import numpy\n"
        "from faceattr_lightning.inference.engine import OnnxEngine\n"
        f"OnnxEngine(Path({str(file)!r}))(numpy.zeros((2, 64, 64, 3), numpy.uint8))\n"
        "assert not {'torch', 'lightning', 'hydra', 'onnx'} & set(sys.modules), 'too much is imported'"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.slow
def test_int8_of_normalised_images(tmp_path: Path) -> None:
    model, file = make("baseline.Baseline"), tmp_path / "model.onnx"
    export_onnx(model, file, "outside")
    small = tmp_path / "small.onnx"
    quantise(file, small, images(8).numpy())
    assert read_metadata(open_session(small)) == {**read_metadata(open_session(file)), "precision": "int8"}
    batch = images(32, seed=3)
    assert np.abs(open_engine(small)(pixels(batch))[0] - answers(model, batch)[0]).mean() < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in MODELS if path != "baseline.Baseline"])
@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_every_part_of_a_network_gets_its_pixels_back(path: str, export: Callable[..., None], tmp_path: Path) -> None:
    """MGMTN's mask network normalises otherwise than its backbone."""
    model = make(path)
    file = tmp_path / ("model.onnx" if export is export_onnx else "model.pt2")
    export(model if export is export_onnx else loaded_from(model), file, "outside")
    check_engine(file, model)


def test_pt2(tmp_path: Path) -> None:
    model, file = make("baseline.Baseline"), tmp_path / "model.pt2"
    export_program(loaded_from(model), file, licence="MIT")
    check_engine(file, model)
    program, metadata = open_program(file)
    assert (metadata["licence"], metadata["precision"], metadata["preprocessing_inside"]) == ("MIT", "float32", True)
    batch, thresholds = images(3), torch.linspace(0.7, 0.3, 40)
    probabilities, decisions, ages = program(batch, thresholds)
    assert torch.equal(decisions, probabilities >= thresholds) and ages.shape == (3, 3)
    with pytest.raises(ConfigError, match="device: torch has no 'tpu' here"):
        open_engine(file, device="tpu")

    whole = file.read_bytes()
    file.write_bytes(whole[:-4000])
    with pytest.raises(DataError, match=r"model\.pt2: can't be read as a \.pt2 file; it is damaged"):
        open_engine(file)
    file.write_bytes(whole)
    _change_metadata(file, lambda said: said.update(version="99.0"))
    with pytest.raises(DataError, match=r"model\.pt2 was made by version 99\.0, which is newer"):
        open_engine(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data", "another's")
    with pytest.raises(DataError, match=r"model\.pt2 was not made by faceattr-lightning"):
        open_engine(file)


def _change_metadata(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in parts if name.endswith("/extra/faceattr_lightning.json"))
    said = json.loads(parts[name])
    change(said)
    with zipfile.ZipFile(file, "w") as archive:
        for part, content in {**parts, name: json.dumps(said).encode()}.items():
            archive.writestr(part, content)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"version": "99.0"}, r"model\.onnx was made by version 99\.0, which is newer"),
        ({"version": "0.1.0"}, r"model\.onnx is damaged: it lacks attribute_names"),
        (7, "was not made by faceattr-lightning"),
    ],
)
def test_metadata_that_can_not_be_used(metadata: Any, message: str, tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    same = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "small", [value], [same])
    made = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)])
    set_metadata(made, metadata)
    onnx.save(made, tmp_path / "model.onnx")
    with pytest.raises(DataError, match=message):
        open_engine(tmp_path / "model.onnx")


def write(model: AttributeModule, path: Path) -> Path:
    loaded = loaded_from(model)
    write_folder(path, describe_folder(loaded, "MIT"), loaded.network.state_dict(), "# A card\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(make("baseline.Baseline"), tmp_path_factory.mktemp("folders") / "baseline")


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.mark.parametrize("path", ["baseline.Baseline", "far_amtn.FARAMTN", "mgmtn.MGMTN"])
def test_a_folder_answers_bit_for_bit(path: str, tmp_path: Path) -> None:
    model = make(path)
    folder = write(model, tmp_path / "a name, with 'quotes'\nand lines")
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert load_file(folder / "model.safetensors").keys() == model.network.state_dict().keys()
    loaded, batch = load_network(folder), images(5)
    with torch.inference_mode():
        expected, found = model.network(batch), loaded.network(batch)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert torch.equal(loaded.thresholds, model.calibrator.thresholds)
    assert torch.equal(loaded.temperatures, model.calibrator.temperatures)
    assert (loaded.groups, loaded.age_groups, loaded.preprocessing) == (model.groups, model.age_groups, PREPROCESSING)
    assert loaded.facts["licence"] == "MIT" and loaded.version == faceattr_lightning.__version__


def test_a_folder_is_whole_and_replaces_none(tmp_path: Path) -> None:
    model = make("baseline.Baseline")
    for place in (tmp_path / "file", tmp_path / "folder"):
        if place.name == "folder":
            place.mkdir()
            (place / "mine.txt").write_text("mine")
        else:
            place.write_text("mine")
        with pytest.raises(DataError, match=f"{place.name}: this is there already"):
            write(model, place)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/mine.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="JSON"):
        write_folder(tmp_path / "half", {"thresholds": [float("nan")]}, model.network.state_dict(), "")
    (tmp_path / ".whole.1.partial").mkdir()
    write(model, tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "whole"]
    with pytest.raises(DataError, match=r"gone/model: can't be written \(No such file"):
        write(model, tmp_path / "gone" / "model")


def _change(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        change(content["faceattr_lightning"])
        (folder / "config.json").write_text(json.dumps(content))

    return apply


def _cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])


def _flip(folder: Path) -> None:
    whole = bytearray((folder / "model.safetensors").read_bytes())
    whole[-100] ^= 1
    (folder / "model.safetensors").write_bytes(whole)


def _anothers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "config.json").unlink(),
            "has no config.json; expected a checkpoint, or a model folder",
        ),
        (lambda folder: (folder / "config.json").write_text('{"faceattr'), r"config\.json can't be read as JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), r"config\.json can't be read as JSON"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), r"config\.json can't be read as JSON"),
        (
            lambda folder: (folder / "config.json").write_text(
                '{"architectures": ["BertModel"], "model_type": "bert"}'
            ),
            r"config\.json was not made by faceattr-lightning",
        ),
        (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json was not made by faceattr-lightning"),
        (_change(lambda own: own.update(version="99.0")), r"made by version 99\.0, which is newer than this one"),
        (_change(lambda own: own.update(version=[1])), r"is damaged: its version is '\[1\]'"),
        (_change(lambda own: own.pop("preprocessing")), "is damaged: it lacks preprocessing"),
        (_change(lambda own: own["thresholds"].pop()), "is damaged: its thresholds can't be used"),
        (_change(lambda own: own.update(attribute_names="Smiling")), "is damaged: its attribute_names, thresholds"),
        (_change(lambda own: own.update(temperatures=[None] * 40)), "is damaged: its temperatures can't be used"),
        (_change(lambda own: own["preprocessing"].pop("crop")), "does not fit the model of this version .*crop"),
        (_change(lambda own: own["network"].update(new=1)), "does not fit the model of this version"),
        (_change(lambda own: own["network"].update(attributes=3)), "does not fit the model of this version"),
        (_change(lambda own: own.update(network=None)), "does not say what its network is made of"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            r"model\.safetensors can't be read as weights \(No such",
        ),
        (_cut, "is not what config.json describes"),
        (_flip, "is not what config.json describes"),
        (_anothers, "is not what config.json describes"),
    ],
)
def test_a_folder_that_is_refused(damage: Callable[[Path], object], message: str, folder: Path, tmp_path: Path) -> None:
    damage(copied(folder, tmp_path / "folder"))
    with pytest.raises(ConfigError, match=f"model: .*{message}") as error:
        open_engine(tmp_path / "folder")
    assert len(error.value.problems) == 1 and "\n" not in error.value.problems[0]


@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_can_name_no_program(nested: bool, folder: Path, tmp_path: Path) -> None:
    node = {"_target_": "os.mkdir", "path": str(tmp_path / "made")}
    copied(folder, tmp_path / "folder")
    _change(lambda own: own["network"].update(dropout=node) if nested else own.update(network=node))(
        tmp_path / "folder"
    )
    with pytest.raises(ConfigError, match=r"'os\.mkdir' is no network"):
        open_engine(tmp_path / "folder")
    assert not (tmp_path / "made").exists()


def test_a_backbone_begins_with_a_folder(folder: Path, tmp_path: Path) -> None:
    image = (PREPROCESSING.mean, PREPROCESSING.std)
    target, source = Backbone("test_resnet", *image), load_network(folder).network.backbone
    load_pretrained(target, str(folder))
    batch = images(3).float()
    with torch.inference_mode():
        assert torch.equal(target.eval()(batch), source(batch))  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"backbone\.pretrained: the folder .* has no config\.json"):
        load_pretrained(Backbone("test_resnet", *image), str(tmp_path))
    with pytest.raises(ConfigError, match="has the backbone 'test_resnet', not 'test_efficientnet'"):
        load_pretrained(Backbone("test_efficientnet", *image), str(folder))


def test_blocks_of_groups_go_to_those_of_as_many(tmp_path: Path) -> None:
    def model(attention: str, groups: str) -> FARAMTN:
        return FARAMTN(
            list(CELEBA_ATTRIBUTES),
            {"name": "test_resnet"},
            PREPROCESSING.to_dict(),
            groups=groups,
            attention=attention,  # type: ignore[arg-type]
            width=32,
        )

    trained = model("separate", "objective_subjective")
    with torch.no_grad():
        for number, tensor in enumerate(trained.network.backbone.parameters()):
            tensor.fill_(number)
    folder = write(trained, tmp_path / "folder")
    same = model("separate", "objective_subjective")
    same.load_pretrained(str(folder))
    state = trained.network.backbone.body.state_dict()
    blocks = [name for name in state if ".blocks." in name and name.endswith("weight")]
    assert blocks
    for name in blocks:
        assert torch.equal(same.network.backbone.body.state_dict()[name], state[name]), name
    single = Baseline(list(CELEBA_ATTRIBUTES), {"name": "test_resnet"}, PREPROCESSING.to_dict())
    single.load_pretrained(str(folder))
    expected = {name: tensors[0] for name, tensors in trained.network.backbone.tensors().items()}
    for name, tensor in single.network.backbone.body.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ann/celeba", "celeba"),
        ("data.root=/home/ann/celeba", "data.root=celeba"),
        ("data.root='/home/ann/my data'", "data.root='my data'"),
        ("data.members={lfwa:/data/x/lfwa,celeba:/y/celeba/}", "data.members={lfwa:lfwa,celeba:celeba/}"),
        ("runs=[/a/b,/c/d]", "runs=[b,d]"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("images='a/b/*.jpg'", "images='a/b/*.jpg'"),
        ("~/.cache/faceattr", "~/.cache/faceattr"),
    ],
)
def test_folders_are_left_out(text: str, expected: str) -> None:
    assert without_folders({"key": [text, 3, None]}) == {"key": [expected, 3, None]}
