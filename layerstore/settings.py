"""Frozen settings. Only the command line turns the environment into one, by ``from_env``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from layerstore.errors import UsageError


class Settings(NamedTuple):
    """What holds for a whole process."""

    root: Path
    """The store's directory."""
    driver: str = "auto"
    """``auto``, ``stacked`` or ``composed``."""
    source_date_epoch: int | None = None
    """Seconds; later times in new layers are clamped down to it."""


def from_env(environ: Mapping[str, str], *, uid: int, root: str | None = None) -> Settings:
    """Settings of this environment. ``root`` is the command line's ``--root``, if given."""
    chosen = root or environ.get("LAYERSTORE_ROOT")
    if chosen is None:
        if uid == 0:
            chosen = "/var/lib/layerstore"
        else:
            home = environ.get("XDG_DATA_HOME") or environ.get("HOME", "/") + "/.local/share"
            chosen = home + "/layerstore"
    return Settings(
        root=Path(chosen).absolute(),
        driver=environ.get("LAYERSTORE_DRIVER", "auto"),
        source_date_epoch=_epoch(environ.get("SOURCE_DATE_EPOCH")),
    )


def _epoch(text: str | None) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit():
        raise UsageError(
            f"SOURCE_DATE_EPOCH is {text!r}, not a number of seconds",
            hint="set it to the output of date +%s, or unset it",
        )
    return int(text)
