"""A run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from faceattr_lightning.errors import ConfigError


def save_config(config: dict[str, Any], run_dir: Path) -> None:
    """Write ``config.yaml``, whole and resolved.

    Raises:
        ConfigError: the folder can't be written to.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(
            yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
    except OSError as error:
        raise ConfigError(
            [f"paths.output_dir: can't write to {run_dir} ({error.strerror}). Choose another paths.output_dir."]
        ) from error
