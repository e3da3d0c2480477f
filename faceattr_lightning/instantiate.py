"""The one place where a configuration node becomes an object."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from faceattr_lightning.errors import ConfigError

Built = TypeVar("Built")


def locate(target: str) -> Callable[..., Any]:
    """Return what a dotted path names.

    Raises:
        ImportError: there is no such module or no such name in it.
    """
    module_name, _, name = target.rpartition(".")
    if not module_name:
        raise ImportError(f"'{target}' is not a dotted path")
    module = importlib.import_module(module_name)
    try:
        located: Callable[..., Any] = getattr(module, name)
    except AttributeError as error:
        raise ImportError(f"module '{module_name}' has no '{name}'") from error
    return located


def build(node: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Call a node's ``_target_`` with the node's other keys; nested nodes stay plain dictionaries.

    Not Hydra's ``instantiate``: it would build the nested nodes too (optimizers, which have to stay plain to be opened
    by ``torch.load(weights_only=True)``), and changes between Hydra 1.3 and 1.4.

    Args:
        node: a plain dictionary (no OmegaConf) with ``_target_``.
        args: positional arguments of the call.
        kwargs: arguments that the node does not hold; they win over the node's.
    """
    values = {key: value for key, value in node.items() if key != "_target_"}
    return locate(node["_target_"])(*args, **{**values, **kwargs})


def build_a(base: type[Built], node: Mapping[str, Any], *args: Any, **kwargs: Any) -> Built:
    """Build a node that may come out of a stranger's checkpoint, and so must not name just any program.

    Args:
        base: what ``_target_`` has to be, or a subclass of it.
        node: see `build`, like ``args`` and ``kwargs``.

    Raises:
        ConfigError: ``_target_`` is something else.
    """
    check_class(node["_target_"], base)
    built: Built = build(node, *args, **kwargs)
    return built


def check_class(target: str, base: type) -> None:
    """Raise a ConfigError unless a dotted path names a class, or a subclass of it."""
    located = locate(target)
    if not (isinstance(located, type) and issubclass(located, base)):
        raise ConfigError([f"'{target}' is no {base.__name__}, and was not called."])


def build_profiler(trainer: Mapping[str, Any]) -> Any:
    """Return what a Trainer's node says of its profiler, built if it is a node."""
    profiler = trainer.get("profiler")
    return build(profiler) if isinstance(profiler, Mapping) else profiler
