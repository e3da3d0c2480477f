"""The configuration's checks: every problem at once, one line each, before any work starts.

`check_command_line` reads the command line before Hydra does and needs neither torch nor Lightning as long as all is
well. `validate` checks each job's composed configuration against the classes that it names. To add a check to the
latter, write a function that yields problems and put it into `CHECKS`; a mere range goes into `RANGES`.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import logging
import os
import re
import tempfile
import types
import typing
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES, GENDER, resolve_attributes, resolve_groups
from faceattr_lightning.errors import ConfigError, DataError, did_you_mean
from faceattr_lightning.going_on import folder_overrides
from faceattr_lightning.instantiate import build, build_profiler, locate
from faceattr_lightning.search import check_search

Config = Mapping[str, Any]

# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------

_MOST_JOBS = 20
# Of other launchers the jobs run on other machines, with other devices and folders.
_LOCAL_LAUNCHERS = ("BasicLauncher", "JoblibLauncher")


def check_command_line(arguments: Sequence[str], conf: Path) -> list[str]:
    """Check groups, their options and keys of a command line, and that the output folder can be made.

    A sweep is also put through `validate`, each of its values once (up to a limit), so that it does not fail after
    hours. Left to Hydra are its own keys, calls that run nothing (``--help``, ``--cfg``) and those that bring more
    folders of configuration.

    Args:
        arguments: as in ``sys.argv[1:]``.
        conf: the folder of the configuration.

    Returns:
        what has to be added to the command line, see `folder_overrides`.

    Raises:
        ConfigError: every problem; if there is one here, then also what `validate` finds in the first job.
    """
    flags = get_args_parser().parse_args(list(arguments))
    shows = flags.help or flags.hydra_help or flags.cfg or flags.info or flags.shell_completion
    elsewhere = flags.config_path or flags.config_dir or flags.experimental_rerun
    if shows or elsewhere or any(argument.startswith("hydra.searchpath=") for argument in flags.overrides):
        return []
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        checker = _CommandLine(flags.config_name or "config", flags.multirun)
        problems, config = checker.check(flags.overrides)
        params = config.hydra.sweeper.get("params") if config and checker.multirun else None
        if params:
            problems, config = checker.check([*(f"{key}={value}" for key, value in params.items()), *flags.overrides])
        if config:
            job, unresolved = _resolve(config)
            # Hydra makes the run's folder before the job's own checks.
            problems += [*_check_output_dir(config), *unresolved, *(check_sections(job) if job else ())]
            problems += check_search(config, flags.overrides) if checker.multirun else []
            if problems:
                problems += _problems_of_job(config)
            elif checker.multirun and config.hydra.launcher._target_.endswith(_LOCAL_LAUNCHERS):
                for one in checker.jobs():
                    problems += _problems_of_job(one)
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))
        return folder_overrides(config, checker.multirun, flags.overrides) if config else []


class _CommandLine:
    """Checks overrides against a folder of configuration; needs an initialised Hydra.

    Args:
        config_name: of the primary configuration.
        multirun: whether several values for a key make several jobs; also set by what a file or an override says.
    """

    def __init__(self, config_name: str, multirun: bool) -> None:
        self.config_name = config_name
        self.multirun = multirun
        self.loader: ConfigLoader = GlobalHydra.instance().config_loader()
        self._parts: list[list[str]] = []

    def check(self, arguments: Sequence[str]) -> tuple[list[str], DictConfig | None]:
        """Return every problem, and the first job's configuration without the overrides that have one."""
        overrides, problems = self._parse(arguments)
        groups = [override for override in overrides if self._is_group(override)]
        values = [override for override in overrides if override not in groups]
        choices = []
        for override in groups:
            alternatives, wrong = self._options(override)
            choices.append(alternatives)
            problems += wrong

        self._parts = [*choices, *map(_alternatives, values)]
        config, error = self._compose(_first(self._parts))
        # Hydra takes any key behind a plus.
        if error or not all(_top(override) in ("hydra", *SECTIONS[""]) for override in values):
            values, wrong = self._check_keys(values, choices)
            problems += wrong
            self._parts = [*choices, *map(_alternatives, values)]
            config, error = self._compose(_first(self._parts))
        if error:
            problems.append(error)
        if config is not None and config.hydra.mode == RunMode.MULTIRUN:
            self.multirun = True
        if not self.multirun:
            problems += [
                f"{override.input_line}: several values are a sweep; add -m for a job each, or quote the value."
                for override in overrides
                if override.is_sweep_override()
            ]
        return problems, config

    def jobs(self) -> Iterator[DictConfig]:
        """Yield configurations, of which together each alternative of each override stands in one."""
        for overrides in [_first(self._parts), *_others(self._parts)][:_MOST_JOBS]:
            config, _ = self._compose(overrides)
            if config is not None:
                yield config

    def _parse(self, arguments: Sequence[str]) -> tuple[list[Override], list[str]]:
        parser = OverridesParser.create(self.loader)
        overrides, problems = [], []
        for argument in arguments:
            try:
                overrides += parser.parse_overrides([argument])
            except HydraException as error:
                # Hydra's first line may repeat the argument; the next one says where it stumbled.
                reason = re.sub(r"^Error parsing override .*\n", "", str(error)).splitlines()[0]
                problems.append(
                    f"{argument}: can't be read as key=value ({reason}). Quote special characters: \"a='b=c'\"."
                )
        return overrides, problems

    def _is_group(self, override: Override) -> bool:
        if override.is_hydra_override() or override.package or isinstance(override.value(), dict):
            return False
        parent, _, name = override.key_or_group.rpartition("/")
        return name in self.loader.list_groups(parent)

    def _options(self, override: Override) -> tuple[list[str], list[str]]:
        """Return the alternatives of a group's override, and its problems.

        With a problem there is one without effect, and then every option, since what was meant is not known.
        """
        group, value = override.key_or_group, override.value()
        known = self.loader.get_group_options(group)
        if override.is_discrete_sweep():
            chosen = list(override.sweep_string_iterator())
        else:
            chosen = [str(option) for option in (value if isinstance(value, list) else [value]) if option is not None]
        problems = []
        if value is None and not override.is_delete():
            leave_out = f"; ~{group} leaves the group out" if group not in _required("") else ""
            problems.append(f"{group}: null is no option{leave_out}. Known: {', '.join(known)}.")
        if override.is_sweep_override() and not chosen:
            problems.append(f"{override.input_line}: no file of conf/{group} matches. Known: {', '.join(known)}.")
        for option in chosen:
            folder, _, name = option.rpartition("/")
            if option != "null" and name not in self.loader.get_group_options(f"{group}/{folder}".rstrip("/")):
                near = did_you_mean(option, known)
                problems.append(f"{group}: there is no '{option}'.{near} Known: {', '.join(known)}.")
        return (["", *(f"{group}={option}" for option in known)] if problems else _alternatives(override)), problems

    def _check_keys(self, values: list[Override], choices: list[list[str]]) -> tuple[list[Override], list[str]]:
        """Return the overrides whose key exists in the first job, and the problems of those that exist in no job."""
        exempt = [override for override in values if override.is_hydra_override() or override.package]
        config, _ = self._compose(_first(choices))
        if config is None:
            return exempt, []
        known: Config = _plain(config)
        fit = [override for override in values if override in exempt or _is_known(override, known)]
        missing = [override for override in values if override not in fit]
        # A key may exist for one option of a sweep alone.
        for overrides in _others(choices)[:_MOST_JOBS] if missing else ():
            other, _ = self._compose(overrides)
            known = _merge(known, _plain(other)) if other is not None else known
        groups = [name for name in self.loader.list_groups("") if name != "hydra"]
        return fit, [_unknown_key(override, known, groups) for override in missing if not _is_known(override, known)]

    def _compose(self, overrides: list[str]) -> tuple[DictConfig | None, str]:
        try:
            return compose(self.config_name, list(filter(None, overrides)), return_hydra_config=True), ""
        except Exception as error:  # Hydra, OmegaConf and the YAML parser raise dozens of types
            return None, " ".join(f"{error} {error.__cause__ or ''}".split())


def _alternatives(override: Override) -> list[str]:
    """Return an override once for each value of its sweep."""
    value = override.value()
    if not override.is_sweep_override():
        return [override.input_line or ""]
    values = [value.start, value.end] if isinstance(value, IntervalSweep) else override.sweep_string_iterator()
    return [f"{override.get_key_element()}={one}" for one in itertools.islice(values, _MOST_JOBS)]


def _first(parts: list[list[str]]) -> list[str]:
    return [alternatives[0] for alternatives in parts if alternatives]


def _others(parts: list[list[str]]) -> list[list[str]]:
    """Return the first alternatives with one of them replaced, once for each other alternative."""
    return [
        _first([*parts[:place], [alternative], *parts[place + 1 :]])
        for place, alternatives in enumerate(parts)
        for alternative in alternatives[1:]
    ]


def _plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as it was written, without Hydra's."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    plain.pop("hydra", None)
    return dict(plain)


def _merge(one: Config, other: Config) -> Config:
    """Return the keys of both."""
    shared = [key for key in one if isinstance(one[key], Mapping) and isinstance(other.get(key), Mapping)]
    return {**one, **other, **{key: _merge(one[key], other[key]) for key in shared}}


def _top(override: Override) -> str:
    return override.key_or_group.partition(".")[0]


def _is_known(override: Override, config: Config) -> bool:
    keys = override.key_or_group.split(".")
    if override.is_add() or override.is_force_add():
        keys = keys[:1]
    return _depth(keys, config) == len(keys)


def _depth(keys: list[str], config: Config) -> int:
    """Return how many of the keys lead into the configuration, one below the other."""
    node: Any = config
    for depth, key in enumerate(keys):
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, Mapping) and key in node:
            node = node[key]
        else:
            return depth
    return len(keys)


def _unknown_key(override: Override, config: Config, groups: list[str]) -> str:
    key = override.key_or_group
    keys = key.split(".")
    depth = _depth(keys, config)
    above = ".".join(keys[:depth])
    if not above and keys[0] in groups:
        return f"{key}: the group '{keys[0]}' was left out of this job."
    parent = _get(config, above) if above else dict.fromkeys([*config, *groups])
    near = _suggest(above, keys[depth], parent) if isinstance(parent, Mapping) else ""
    if not near:
        # batch_size=32 means data.batch_size=32
        below = [path for path in _leaves(config) if path.endswith(f".{key}")]
        near = f" Did you mean '{below[0]}'?" if below else ""
    if above:
        return f"{key}: there is no such key.{near or f' If {above} takes it all the same, write ++{key}=.'}"
    near = near or f" Known: {', '.join(parent)}."
    return f"{key}: there is no group or key '{keys[0]}'.{near}"


def _leaves(node: Any, path: str = "") -> Iterator[str]:
    if not isinstance(node, dict):
        yield path
        return
    for key, value in node.items():
        yield from _leaves(value, _join(path, key))


def _check_output_dir(config: DictConfig) -> Iterator[str]:
    try:
        output_dir = OmegaConf.select(config, "paths.output_dir")
    except OmegaConfBaseException:  # `_resolve` tells
        return
    if not isinstance(output_dir, str):  # `check_sections` tells
        return
    folder = Path(output_dir).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    if not existing.is_dir():
        yield f"paths.output_dir: can't make {folder}: {existing} is a file. Choose another folder."
        return
    try:
        os.rmdir(tempfile.mkdtemp(dir=existing))
    except OSError as error:
        reason = f"can't write to {existing} ({error.strerror})"
        yield f"paths.output_dir: can't make {folder}: {reason}. Choose another folder."


def _resolve(config: DictConfig) -> tuple[dict[str, Any] | None, list[str]]:
    """Return a job's plain configuration, or why an interpolation in it leads nowhere."""
    job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    OmegaConf.set_struct(job, False)
    # Known only when the job runs.
    OmegaConf.update(job, "paths.run_dir", ".")
    try:
        return OmegaConf.to_container(job, resolve=True), []  # type: ignore[return-value]
    except InterpolationKeyError as error:
        return None, [f"{error.full_key}: {str(error).splitlines()[0]}."]
    except OmegaConfBaseException:  # more that is known only then, such as other values of Hydra's
        return None, []


def _problems_of_job(config: DictConfig) -> list[str]:
    """Return what `validate` finds, so that a command line with an error shows its other errors at once."""
    job, problems = _resolve(config)
    try:
        if job is not None:
            validate(job)
    except ConfigError as error:
        problems += error.problems
    return problems


# ---------------------------------------------------------------------------------------------------------------------
# A job
# ---------------------------------------------------------------------------------------------------------------------

_Node = dict[str, Any]

SECTIONS: dict[str, dict[str, Any]] = {
    "": {
        "seed": int,
        "ckpt_path": str | None,
        "images": str | None,
        "runs": list[str] | None,
        "keep_freed_memory": bool,
        "strict_resume": bool,
        "sweep": _Node,
        "task": _Node,
        "model": _Node,
        "backbone": _Node,
        "data": _Node,
        "weighting": _Node,
        "calibration": _Node,
        "callbacks": _Node | None,
        "trainer": _Node,
        "keypoints": _Node,
        "logger": _Node | None,
        "paths": _Node,
    },
    "paths": {"output_dir": str, "run_dir": str, "cache_dir": str},
    "sweep": {"resume": bool},
    "backbone": {"name": str, "pretrained": bool | str, "freeze": int | Literal["all"], "channels_last": bool},
    "model.schedule": {
        "name": Literal["one_cycle", "cosine", "constant"],
        "warmup": float,
        "batch_rule": Literal["none", "sqrt", "linear"],
    },
}
"""The keys of the parts that are no call and their types; required are those that may not be None."""


def _required(path: str) -> list[str]:
    return [key for key, kind in SECTIONS[path].items() if not _matches(None, kind)]


INJECTED: dict[str, tuple[str, ...]] = {
    "task": ("config", "ranks"),
    "model": (
        "attribute_names",
        "age_groups",
        "databases",
        "labelled",
        "landmarks",
        "preprocessing",
        "backbone",
        "weighting",
        "calibration",
    ),
    "model.optimizer": ("params",),
    "weighting": ("attributes", "group_of", "tasks"),
    "calibration": ("attributes",),
    "trainer": ("logger", "callbacks", "default_root_dir"),
}
"""The arguments of a call that the program gives itself."""

REQUIRED: dict[str, tuple[str, ...]] = {"trainer": ("accelerator", "devices", "num_nodes", "strategy", "precision")}
"""The arguments that the program reads from a call's node, whatever their defaults."""

CHOSEN: dict[str, dict[str, Any]] = {"trainer": {"precision": Literal["auto"], "profiler": _Node}}
"""Values of a call's arguments for which the program puts in another one."""

RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "seed": ("from 0 to 4294967295", lambda value: 0 <= value < 2**32),
    "data.seed": ("from 0 to 4294967295", lambda value: 0 <= value < 2**32),
    "data.draw_seed": ("from 0 to 4294967295", lambda value: 0 <= value < 2**32),
    "data.batch_size": ("of at least 1", lambda value: value >= 1),
    "data.image_size": ("of at least 32", lambda value: value >= 32),
    "data.num_workers": ("of at least 0", lambda value: value >= 0),
    "data.train_fraction": ("in (0, 1]", lambda value: 0 < value <= 1),
    "backbone.freeze": ("of at least 0, or all", lambda value: value >= 0),
    "model.dropout": ("in [0, 1)", lambda value: 0 <= value < 1),
    "model.hidden": ("of at least 1", lambda value: value >= 1),
    "model.pyramid_channels": ("of at least 1", lambda value: value >= 1),
    "model.width": ("of at least 1", lambda value: value >= 1),
    "model.mask_epochs": ("of at least 1", lambda value: value >= 1),
    "model.mask_lr": ("above 0", lambda value: value > 0),
    "model.mask_width": ("of at least 1", lambda value: value >= 1),
    "model.mask_weight": ("of at least 0", lambda value: value >= 0),
    "model.center_weight": ("of at least 0", lambda value: value >= 0),
    "model.center_rate": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "model.schedule.warmup": ("in [0, 1)", lambda value: 0 <= value < 1),
    "trainer.max_epochs": ("of at least 1, or -1 for no limit", lambda value: value >= 1 or value == -1),
    "trainer.max_steps": ("of at least 1, or -1 for no limit", lambda value: value >= 1 or value == -1),
    "trainer.check_val_every_n_epoch": ("of at least 1", lambda value: value >= 1),
    "trainer.accumulate_grad_batches": ("of at least 1", lambda value: value >= 1),
    "trainer.overfit_batches": (
        "0 (it replaces our order of samples)",
        lambda value: value == 0,
    ),
    "trainer.num_nodes": ("of at least 1", lambda value: value >= 1),
    "task.batch_size": ("of at least 1", lambda value: value >= 1),
    "task.most_pixels": ("of at least 1", lambda value: value >= 1),
    "task.most_megabytes": ("of at least 1", lambda value: value >= 1),
    "task.gallery": ("of at least 0", lambda value: value >= 0),
    "task.calibration_images": ("of at least 1", lambda value: value >= 1),
    "task.most": ("of at least 1", lambda value: value >= 1),
    "task.level": ("in (0, 1)", lambda value: 0 < value < 1),
    "task.replicates": ("of at least 100", lambda value: value >= 100),
}
"""Key to what its number has to be, where no constructor says so in time."""


def validate(config: dict[str, Any]) -> None:
    """Check a job's configuration.

    Args:
        config: composed, resolved, plain.

    Raises:
        ConfigError: every problem.
    """
    problems = [problem for check in CHECKS for problem in check(config)]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def check_sections(config: Config) -> Iterator[str]:
    """Check the keys and types of `SECTIONS`."""
    for path, kinds in SECTIONS.items():
        section = _get(config, path) if path else config
        if isinstance(section, Mapping):
            yield from _compare(path, section, kinds, _required(path))


def check_calls(config: Config) -> Iterator[str]:
    """Compare every ``_target_`` node with the signature of what it names."""
    for path in ("task", "model", "model.optimizer", "data", "weighting", "calibration", "keypoints", "trainer"):
        node = _get(config, path)
        if isinstance(node, Mapping) and "_target_" not in node:
            yield f"{path}._target_: it is missing; choose one of the files of conf/{path.partition('.')[0]}."
    for part in ("callbacks", "logger"):
        for name, node in (_get(config, part) or {}).items():
            if not (isinstance(node, Mapping) and "_target_" in node) and not (part == "callbacks" and node is None):
                yield f"{part}.{name}: expected a mapping with _target_, found {node!r}.{did_you_mean(name, config)}"
    for path, node in _calls(config):
        yield from check_call(path, node)


def check_ranges(config: Config) -> Iterator[str]:
    """Check the numbers of `RANGES`."""
    for path, (text, in_range) in RANGES.items():
        value = _get(config, path)
        if _matches(value, float) and not in_range(value):
            yield f"{path}: expected a number {text}, found {value}."


def check_augmentation(config: Config) -> Iterator[str]:
    """Check the keys and numbers of ``data.augmentation``."""
    from faceattr_lightning.data.augment import Augmentation

    augmentation = _get(config, "data.augmentation")
    if isinstance(augmentation, Mapping):
        problems = list(_compare("data.augmentation", augmentation, typing.get_type_hints(Augmentation)))
        yield from problems or _attempt("data.augmentation", lambda: Augmentation(**augmentation))


def check_constructors(config: Config) -> Iterator[str]:
    """Make what is cheap to make, for the ranges that the classes check themselves; and look for the data's folder."""
    import torch

    count = len(CELEBA_ATTRIBUTES)
    for path, arguments in (
        # Whether the model has a task beside the attributes is only known from the data.
        ("weighting", (count, (), ("another",))),
        ("calibration", (count,)),
        ("model.optimizer", ([torch.nn.Parameter(torch.zeros(1))],)),
    ):
        if _is_sound(config, path):
            yield from _attempt(path, build, _get(config, path), *arguments)
    callbacks = _get(config, "callbacks")
    for name in callbacks if isinstance(callbacks, Mapping) else ():
        if _is_sound(config, f"callbacks.{name}"):
            yield from _attempt(f"callbacks.{name}", build, callbacks[name])
    if _is_sound(config, "data"):
        yield from _attempt("data", lambda: build(config["data"]).find_data())


def check_backbone(config: Config) -> Iterator[str]:
    """Check that timm has the backbone and that the weights asked for are there."""
    from faceattr_lightning.networks import backbone

    name, pretrained = _get(config, "backbone.name"), _get(config, "backbone.pretrained")
    if isinstance(name, str):
        source = pretrained if isinstance(pretrained, str | bool) else False
        problems = list(_attempt("backbone", backbone.check_backbone, name, source))
        yield from problems
        image_size = _get(config, "data.image_size")
        if not problems and _matches(image_size, int) and image_size >= 32:
            model = locate(config["model"]["_target_"]) if _is_sound(config, "model") else None
            needs = getattr(model, "backbone_needs", "map")
            freeze = _get(config, "backbone.freeze")
            freeze = freeze if freeze == "all" or (_matches(freeze, int) and freeze >= 0) else 0
            yield from _attempt("backbone", backbone.check_feature_map, name, image_size, needs, freeze)


def check_attributes(config: Config) -> Iterator[str]:
    """Check attribute names and groups where the vocabulary is known without reading a file."""
    from faceattr_lightning.models.mtl_cnn import check_tasks

    available = _vocabulary(_get(config, "data"))
    if available is None:
        return
    names, groups = _get(config, "data.attributes"), _get(config, "model.groups")
    names = names if _matches(names, list[str]) else None
    problems = list(_attempt("data.attributes", resolve_attributes, names, available))
    yield from problems
    if _matches(groups, str | dict[str, list[str]] | None):
        attributes = available if names is None or problems else names
        problems = list(_attempt("model.groups", resolve_groups, groups, attributes))
        yield from problems
        if not problems:
            yield from _check_masks(config, list(resolve_groups(groups, attributes)))
        required = _get(config, "model.required_tasks")
        if _matches(required, list[Literal["age_group", "gender", "visual"]]) and _is_sound(config, "data"):
            # What the data module refuses is told by `check_constructors`.
            with suppress(ConfigError, DataError):
                ages = bool(build(config["data"]).age_group_names)
                yield from _attempt("model.required_tasks", check_tasks, required, attributes, ages)


def _check_masks(config: Config, groups: list[str]) -> Iterator[str]:
    """Check what a model with masks says of the groups' parts, and the checkpoint that its masks come from."""
    from faceattr_lightning.models.mgmtn import parts_of_groups, read_mask_network

    parts, checkpoint = _get(config, "model.parts"), _get(config, "model.mask_checkpoint")
    if _matches(parts, dict[str, list[str]] | None):
        problems = list(_attempt("model.parts", parts_of_groups, groups, parts))
        yield from problems
        # A run that goes on has its mask network in its own checkpoint.
        if isinstance(checkpoint, str) and not problems and _get(config, "ckpt_path") is None:
            yield from _attempt("model.mask_checkpoint", read_mask_network, checkpoint, parts_of_groups(groups, parts))


def check_accelerator(config: Config) -> Iterator[str]:
    """Check that the machine has the accelerator."""
    from lightning.pytorch.accelerators import AcceleratorRegistry

    accelerator = _get(config, "trainer.accelerator")
    known = ["auto", "gpu", *sorted(AcceleratorRegistry.available_accelerators())]
    if not isinstance(accelerator, str) or accelerator == "auto":
        return
    if accelerator not in known:
        near = did_you_mean(accelerator, known)
        yield f"trainer.accelerator: there is no '{accelerator}'.{near} Known: {', '.join(known)}."
        return

    def is_available(name: str) -> bool:
        try:
            return bool(AcceleratorRegistry.get(name).is_available())
        except ImportError:  # the package that drives it is not installed
            return False

    if not any(map(is_available, ("cuda", "mps") if accelerator == "gpu" else (accelerator,))):
        yield f"trainer.accelerator: this machine has no {accelerator}. Use trainer.accelerator=auto."


def check_devices(config: Config) -> Iterator[str]:
    """Check that the machine has the devices, and that Lightning has a strategy for them which we can start."""
    import torch
    from lightning.pytorch.strategies import StrategyRegistry

    from faceattr_lightning.strategy import choose_strategy, is_one_of_several_machines

    keys = ("accelerator", "devices", "strategy", "num_nodes")
    accelerator, devices, strategy, nodes = (_get(config, f"trainer.{key}") for key in keys)
    if not _matches(devices, int | str | list[int]):
        return
    gpus = torch.cuda.device_count() if accelerator in ("auto", "gpu", "cuda") else 0
    if not _is_number_of_devices(devices):
        yield f"trainer.devices: expected at least 1, -1 or auto for all, or a list of indices, found {devices!r}."
    elif gpus and isinstance(devices, int) and devices > gpus:
        yield f"trainer.devices: this machine has {gpus} GPUs, not {devices}. Take fewer, or trainer.accelerator=cpu."
    elif _matches(nodes, int) and nodes > 1 and not is_one_of_several_machines():
        yield (
            f"trainer.num_nodes: {nodes} machines were asked for, but nothing says where they are; start the program "
            "with torchrun or SLURM, or set MASTER_ADDR, MASTER_PORT and NODE_RANK on each."
        )
    elif isinstance(strategy, str) and isinstance(accelerator, str) and _matches(nodes, int):
        known = ["auto", *StrategyRegistry.available_strategies()]
        if strategy in known:
            yield from _attempt("trainer.strategy", choose_strategy, strategy, devices, accelerator, nodes, [])
        else:
            yield f"trainer.strategy: Lightning has no '{strategy}'.{did_you_mean(strategy, known)}"


def check_sharding(config: Config) -> Iterator[str]:
    """Check that nothing looks into a network between steps, of which each process has a part alone."""
    target, every = str(_get(config, "weighting._target_")), _get(config, "weighting.every")
    looks = target.endswith("GradNormWeighting") or (target.endswith("DMMWeighting") and _matches(every, int))
    if _get(config, "trainer.strategy") == "fsdp" and looks:
        yield (
            "trainer.strategy: with fsdp no process has the whole network, which this weighting looks into between "
            "steps; take ddp, another weighting, or weighting.every=epoch."
        )


def check_trainer(config: Config) -> Iterator[str]:
    """Make the Trainer, for what Lightning itself refuses in its arguments and beside our callbacks."""
    from faceattr_lightning.precision import AUTO
    from faceattr_lightning.strategy import choose_accelerator, choose_strategy

    node = _get(config, "trainer")
    earlier = (*check_accelerator(config), *check_devices(config), *check_ranges(config))
    if not _is_sound(config, "trainer") or any(problem.startswith("trainer.") for problem in earlier):
        return
    callbacks = _get(config, "callbacks") or {}

    def make() -> None:
        accelerator = choose_accelerator(node["accelerator"])
        strategy = choose_strategy(node["strategy"], node["devices"], accelerator, node["num_nodes"], [])
        made = []
        for name in callbacks:
            # What a callback itself refuses is told by `check_constructors`.
            with suppress(Exception):
                made.append(build(callbacks[name]))
        # What it says of itself comes again with the real one.
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                precision = None if node["precision"] == AUTO else node["precision"]
                chosen = {"accelerator": accelerator, "strategy": strategy, "precision": precision}
                chosen["profiler"] = build_profiler(node)
                build(node, **chosen, callbacks=made, logger=False)
        finally:
            logging.disable(logging.NOTSET)

    yield from _attempt("trainer", make)


def check_length(config: Config) -> Iterator[str]:
    """Check that training ends, since the schedule of the learning rate counts on all of its steps."""
    if _get(config, "trainer.max_epochs") in (-1, None) and _get(config, "trainer.max_steps") == -1:
        yield "trainer.max_epochs: the schedule needs an end; set trainer.max_epochs or trainer.max_steps."


def check_batch(config: Config) -> Iterator[str]:
    """Check that a training batch has more than one sample, over which layers normalise."""
    if _task(config) == "train" and _get(config, "data.batch_size") == 1:
        yield "data.batch_size: training normalises over a batch; expected at least 2, found 1."


def check_checkpoint(config: Config) -> Iterator[str]:
    """Check that there is the checkpoint that ``ckpt_path`` means, and that it is one."""
    from faceattr_lightning.checkpoint import read_checkpoint
    from faceattr_lightning.tasks.checkpoint import checkpoint_to_go_on_from

    if str(_get(config, "ckpt_path")).endswith((".onnx", ".pt2")) and _task(config) in ("predict", "demo"):
        return
    if isinstance(_get(config, "ckpt_path"), str) and _matches(_get(config, "paths"), dict[str, str]):
        yield from _attempt("ckpt_path", lambda: read_checkpoint(checkpoint_to_go_on_from(config)))


def check_packages(config: Config) -> Iterator[str]:
    """Check that the packages are there which a task or a logger needs beside the package's own."""
    task = str(_get(config, "task._target_"))
    checks = {
        "faceattr_lightning.tasks.audit.audit": "faceattr_lightning.tasks.audit.check_installed",
        "faceattr_lightning.tasks.dashboard.dashboard": "faceattr_lightning.tasks.dashboard.check_installed",
        "faceattr_lightning.tasks.demo.demo": "faceattr_lightning.tasks.demo.check_installed",
    }
    if task in checks:
        yield from _attempt("task", locate(checks[task]))
    for name, node in (_get(config, "logger") or {}).items():
        wanted = isinstance(node, Mapping) and str(node.get("_target_")).endswith("TensorBoardLogger")
        if wanted and importlib.util.find_spec("tensorboard") is None:
            advice = "run: pip install 'faceattr-lightning[tensorboard]'"
            yield f"logger.{name}: the package tensorboard is not installed; {advice}."


CHECKS: tuple[Callable[[Config], Iterator[str]], ...] = (
    check_sections,
    check_calls,
    check_ranges,
    check_augmentation,
    check_constructors,
    check_backbone,
    check_attributes,
    check_accelerator,
    check_devices,
    check_sharding,
    check_trainer,
    check_length,
    check_batch,
    check_checkpoint,
    check_packages,
)
"""Each yields its problems, on its own: a value that has the wrong type is another one's problem."""


def _get(config: Config, path: str) -> Any:
    """Return the value at a dotted path; None where there is none."""
    node: Any = config
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _task(config: Config) -> str:
    return str(_get(config, "task._target_")).rpartition(".")[2]


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _suggest(path: str, key: str, candidates: Collection[str]) -> str:
    near = did_you_mean(key, candidates)
    return near.replace("'", f"'{path}.", 1) if path else near


def _attempt(path: str, function: Callable[..., Any], *arguments: Any) -> Iterator[str]:
    """Call a function and yield the problems that it raises."""
    try:
        function(*arguments)
    except ConfigError as error:
        yield from error.problems
    except DataError as error:
        yield str(error)
    except Exception as error:  # a class of torch or Lightning refuses a value, in whatever way
        yield f"{path}: {' '.join(str(error).split())} ({type(error).__name__})"


def _vocabulary(data: Any) -> Sequence[str] | None:
    """Return the attributes of a data node, or ``None`` where only its files know them."""
    if not isinstance(data, Mapping):
        return None
    name = str(data.get("_target_")).rpartition(".")[2]
    if name in ("Synthetic", "CelebA") or (name == "LFWA" and data.get("label_set", 40) == 40):
        return CELEBA_ATTRIBUTES
    if name in ("FairFace", "Adience"):
        return (GENDER,)
    sets, members = data.get("sets"), data.get("members")
    if name == "Fused" and _matches(sets, list[str]) and isinstance(members, Mapping):
        known = [_vocabulary(members.get(member)) for member in sets or ()]
        if all(known):
            return list(dict.fromkeys(attribute for names in known for attribute in names or ()))
    return None


def _is_number_of_devices(devices: int | str | list[int]) -> bool:
    if isinstance(devices, str):
        parts = devices.split(",")
        return devices in ("auto", "-1") or (all(part.strip().isdecimal() for part in parts) and devices.strip() != "0")
    return bool(devices) if isinstance(devices, list) else devices >= 1 or devices == -1


def _calls(node: Config, path: str = "") -> Iterator[tuple[str, Config]]:
    """Yield every node with a ``_target_``, with its path."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            inner = _join(path, key)
            if "_target_" in value:
                yield inner, value
            yield from _calls(value, inner)


def _is_sound(config: Config, path: str) -> bool:
    """Return whether a node names something that can be called with it."""
    node = _get(config, path)
    if not isinstance(node, Mapping) or "_target_" not in node:
        return False
    inner = [*check_ranges(config), *check_augmentation(config)]
    return not any(problem.startswith(f"{path}.") for problem in inner) and not any(check_call(path, node))


def check_call(path: str, node: Config) -> Iterator[str]:
    """Compare one ``_target_`` node with the signature of what it names."""
    try:
        target = locate(node["_target_"])
        kinds, required, takes_more = _signature(target)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        yield f"{path}._target_: can't use '{node['_target_']}': {error}."
        return
    if node["_target_"].endswith("WandbLogger"):
        try:
            kinds = {**_signature(locate("wandb.init"))[0], **kinds}
        except ImportError:
            yield f"{path}: the package wandb is not installed; run: pip install 'faceattr-lightning[wandb]'."
            return
        takes_more = False
    injected = INJECTED.get(path, ())
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    for key in [key for key in arguments if key in injected]:
        del arguments[key]
        yield f"{path}.{key}: the program gives this argument itself; leave it out."
    if takes_more:
        kinds = {**dict.fromkeys(arguments, Any), **kinds}
    for key, kind in CHOSEN.get(path, {}).items():
        kinds[key] = kind | kinds.get(key, Any)
    needed = [key for key in (*required, *REQUIRED.get(path, ())) if key not in injected]
    yield from _compare(path, arguments, {key: kind for key, kind in kinds.items() if key not in injected}, needed)


def _signature(target: Callable[..., Any]) -> tuple[dict[str, Any], list[str], bool]:
    """Return a call's arguments with their types, which of them have no default, and whether it takes any other."""
    parameters = inspect.signature(target).parameters.values()
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # names that exist for type checkers only, in whatever way they fail
        hints = {}
    named = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    kinds = {one.name: hints.get(one.name, Any) for one in named}
    others = [hints.get(one.name) for one in parameters if one.kind is one.VAR_KEYWORD]
    for options in others:
        if typing.get_origin(options) is typing.Unpack:
            kinds |= typing.get_type_hints(typing.get_args(options)[0])
    takes_more = any(typing.get_origin(options) is not typing.Unpack for options in others)
    return kinds, [one.name for one in named if one.default is one.empty], takes_more


def _compare(path: str, values: Config, kinds: Config, required: Collection[str] = ()) -> Iterator[str]:
    """Yield the keys that are unknown, of a wrong type or missing."""
    for key, value in values.items():
        if key not in kinds:
            near = _suggest(path, str(key), kinds) or f" Known: {', '.join(kinds)}."
            yield f"{_join(path, key)}: there is no such key.{near}"
        else:
            yield from _mismatches(_join(path, key), value, kinds[key])
    yield from (f"{_join(path, key)}: it is missing." for key in required if key not in values)


_PLAIN: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    Path: "a path",
    os.PathLike: "a path",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}


def _kind(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return what an annotation is: Union, Literal, list, tuple, dict, a key of `_PLAIN` or None; and its arguments."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        # What is no plain data, such as a Tensor, can't stand in a configuration.
        plain = tuple(one for one in arguments if _kind(one)[0] is not None)
        return (typing.Union, plain) if plain and typing.Any not in arguments else (None, ())
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return Literal, arguments
    base = origin or annotation
    if base in _PLAIN:
        return base, arguments
    if inspect.isclass(base) and issubclass(base, Sequence):
        return list, arguments
    if inspect.isclass(base) and issubclass(base, Mapping):
        return dict, arguments
    return None, ()


def _matches(value: Any, annotation: Any) -> bool:
    """Return whether a plain value fits a type; any value fits a type that is no plain data's."""
    kind, arguments = _kind(annotation)
    if kind is None:
        return True
    if kind is typing.Union:
        return any(_matches(value, one) for one in arguments)
    if kind is Literal:
        return any(type(value) is type(one) and value == one for one in arguments)
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        fits = isinstance(value, list | tuple) and len(value) == len(arguments)
        return fits and all(_matches(item, one) for item, one in zip(value, arguments, strict=True))
    if kind in (list, tuple):
        return isinstance(value, list | tuple) and all(_matches(item, arguments[0]) for item in value if arguments)
    if kind is dict:
        return isinstance(value, Mapping) and all(_matches(item, arguments[1]) for item in value.values() if arguments)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str if kind in (Path, os.PathLike) else kind)


def _mismatches(path: str, value: Any, annotation: Any) -> Iterator[str]:
    """Yield what does not fit a type: the value, or of a list or mapping its items."""
    if _matches(value, annotation):
        return
    kind, arguments = _kind(annotation)
    for one_kind, inner in map(_kind, arguments) if kind is typing.Union else [(kind, arguments)]:
        if one_kind is dict and isinstance(value, Mapping):
            for key, item in value.items():
                yield from _mismatches(_join(path, key), item, inner[1])
            return
        if one_kind is list and isinstance(value, list):
            for place, item in enumerate(value):
                yield from _mismatches(_join(path, place), item, inner[0])
            return
    words = _words(annotation)
    near = did_you_mean(value, words) if isinstance(value, str) else ""
    yield f"{path}: expected {' or '.join(words)}, found {value!r}.{near}"


def _words(annotation: Any) -> list[str]:
    """Return a type's alternatives in words."""
    kind, arguments = _kind(annotation)
    if kind is typing.Union:
        return list(dict.fromkeys(word for one in arguments for word in _words(one)))
    if kind is Literal:
        return [str(one) for one in arguments]
    return [_PLAIN[kind]]
