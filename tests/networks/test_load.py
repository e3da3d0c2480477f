"""A trained network out of its checkpoint: what the LightningModule answers, without Lightning; and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from faceattr_lightning.checkpoint import CHECKPOINT_KEY
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.networks.load import load_network, make_network
from faceattr_lightning.tasks.checkpoint import load_model
from tests.runs import run_here
from tests.test_matrix import MODELS, overrides

DATA = {"baseline": ["fairface"], "mtl_cnn": ["fused", "model.database_bias=true"]}
IMAGES = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained(fused_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """From a model's name to its checkpoint after one step, trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("runs")

    def train(model: str) -> Path:
        path = folder / model / "checkpoints" / "last.ckpt"
        if not path.exists():
            name, *more = DATA.get(model, ["celeba"])
            given = [*overrides(model, name, "uniform", "optimal", fused_data), "calibration.temperature=true", *more]
            with pytest.MonkeyPatch.context() as monkeypatch:
                run_here(
                    *given, "callbacks.report.grid=0", data=fused_data, run_dir=folder / model, monkeypatch=monkeypatch
                )
        return path

    return train


@pytest.mark.parametrize("model", MODELS)
def test_it_answers_as_the_trained_module_does(model: str, trained: Callable[[str], Path]) -> None:
    path = trained(model)
    module = load_model(path).eval()
    with torch.inference_mode():
        loaded = load_network(path)
    assert not any(parameter.is_inference() for parameter in loaded.network.parameters())
    assert not loaded.network.training and type(loaded.network) is type(module.network)
    with torch.inference_mode():
        expected, found = module(IMAGES), loaded.network(IMAGES)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert (loaded.attribute_names, loaded.groups) == (module.attribute_names, module.groups)
    assert loaded.age_groups == module.age_groups and bool(loaded.age_groups) == (model in DATA)
    assert torch.equal(loaded.thresholds, module.calibrator.thresholds)
    assert torch.equal(loaded.temperatures, module.calibrator.temperatures)
    assert (loaded.temperatures != 1).any()
    assert loaded.preprocessing == module.preprocessing
    assert loaded.facts["config"] == module.run_config and loaded.facts["global_step"] >= 1


def test_a_photo_is_of_none_of_the_fused_databases(trained: Callable[[str], Path]) -> None:
    """As a test on a data set that was not among them."""
    path = trained("mtl_cnn")
    module, network = load_model(path).eval(), load_network(path).network
    for one in (module.network, network):
        biases: Any = one.database_bias
        with torch.no_grad():
            biases.copy_(torch.arange(biases.numel(), dtype=torch.float32).view_as(biases))

    def tested(database: int) -> Tensor:
        module._trained_as = [database]
        batch: Any = {"image": IMAGES, "database": torch.zeros(len(IMAGES), dtype=torch.int64)}
        return module.predict(batch)["logits"]

    with torch.inference_mode():
        found = network(IMAGES)["logits"]
        assert torch.equal(found, tested(-1)) and not torch.allclose(found, tested(0))


def test_nothing_of_training_is_imported(trained: Callable[[str], Path]) -> None:
    program = f"""
import importlib, pkgutil, sys
import faceattr_lightning
assert "torch" not in sys.modules
sys.modules["wandb"] = None  # timm imports it where it is installed
import faceattr_lightning.networks
for module in pkgutil.iter_modules(faceattr_lightning.networks.__path__, "faceattr_lightning.networks."):
    importlib.import_module(module.name)
from faceattr_lightning.networks.load import load_network
load_network({str(trained("mgmtn"))!r})
unwanted = {{"lightning", "lightning_fabric", "pytorch_lightning", "hydra", "omegaconf", "torchmetrics"}}
assert not unwanted & set(sys.modules), unwanted & set(sys.modules)
print("loaded", len([name for name in sys.modules if name.startswith("faceattr_lightning.networks.")]))
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "loaded 11\n"


def _network(content: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = content[CHECKPOINT_KEY]["network"]
    return node


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content.pop(CHECKPOINT_KEY), "was not made by faceattr-lightning"),
        (lambda content: content.pop("state_dict"), "is damaged: it lacks state_dict"),
        (lambda content: content[CHECKPOINT_KEY].pop("preprocessing"), "is damaged: it lacks preprocessing"),
        (lambda content: content[CHECKPOINT_KEY].update(version="99.0"), "made by version 99.0, which is newer"),
        (lambda content: content[CHECKPOINT_KEY].pop("network"), "does not say what its network is made of"),
        (lambda content: content[CHECKPOINT_KEY].update(network=None), "does not say what its network is made of"),
        (lambda content: _network(content).pop("_target_"), "does not fit the model of this version"),
        (lambda content: _network(content).update(_target_="gone.Network"), "does not fit the model of this version"),
        (lambda content: _network(content).update(new=1), "does not fit the model of this version"),
        (lambda content: _network(content)["backbone"].update(name="gone"), "timm has no model 'gone'"),
        (lambda content: content["state_dict"].pop("network.head.3.bias"), "Missing key.*head.3.bias"),
    ],
)
def test_what_is_refused(
    damage: Callable[[dict[str, Any]], object], message: str, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    content = torch.load(trained("baseline"), weights_only=True)
    damage(content)
    path = tmp_path / "damaged.ckpt"
    torch.save(content, path)
    with pytest.raises(ConfigError, match=f"model: {path} .*{message}|model: {path} {message}"):
        load_network(path, "model")


@pytest.mark.parametrize(
    ("bytes_of", "message"),
    [
        (lambda whole: b"", r"can't be read as a checkpoint \(0 bytes\)"),
        (lambda whole: b"no checkpoint", "can't be read as a checkpoint"),
        (lambda whole: whole[:-5000], "damaged, cut short or no checkpoint"),
        (lambda whole: whole[:50_000] + bytes([whole[50_000] ^ 1]) + whole[50_001:], "damaged, cut short"),
    ],
)
def test_a_damaged_file_is_refused(
    bytes_of: Callable[[bytes], bytes], message: str, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(bytes_of(trained("baseline").read_bytes()))
    with pytest.raises(ConfigError, match=message):
        load_network(str(path))
    with pytest.raises(ConfigError, match="there is no file"):
        load_network(tmp_path / "gone.ckpt")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("through", [False, True])
def test_a_node_can_name_no_program(
    through: bool, nested: bool, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    node: dict[str, Any] = {"_target_": "os.mkdir", "path": str(tmp_path / "made")}
    if through:
        node = {"_target_": "faceattr_lightning.networks.load.build", "node": node}
    content = torch.load(trained("baseline"), weights_only=True)
    content[CHECKPOINT_KEY]["network"] = {**_network(content), "dropout": node} if nested else node
    torch.save(content, tmp_path / "strange.ckpt")
    with pytest.raises(ConfigError, match=r"'(os\.mkdir|faceattr_lightning\.networks\.load\.build)' is no network"):
        load_network(tmp_path / "strange.ckpt")
    assert not (tmp_path / "made").exists()


def test_a_network_of_ones_own_is_made_too() -> None:
    made = make_network({"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2})
    assert isinstance(made, nn.Linear) and made.weight.shape == (2, 3)


def test_calibrating_an_old_checkpoint_writes_one_that_describes_its_network(
    trained: Callable[[str], Path], fused_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = torch.load(trained("baseline"), weights_only=True)
    del content[CHECKPOINT_KEY]["network"]
    torch.save(content, tmp_path / "old.ckpt")
    given = ["task=calibrate", f"ckpt_path={tmp_path}/old.ckpt", "callbacks.report.grid=0", "callbacks.progress=null"]
    run_here(*given, data=fused_data, run_dir=tmp_path / "run", monkeypatch=monkeypatch)
    with torch.inference_mode():
        expected = load_network(trained("baseline")).network(IMAGES)["logits"]
        assert torch.equal(load_network(tmp_path / "run/checkpoints/best.ckpt").network(IMAGES)["logits"], expected)
