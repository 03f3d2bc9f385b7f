"""The build cache: what a step with a known recipe gave.

``cache/<key>`` is a JSON record; it keeps nothing alive, and is a hit only while the layer that it
names is there. ``cache/last-<place>`` holds the recipe that a place of a spec had last, so that a
miss can be explained.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from layerstore.names import DiffID, Digest, MalformedName
from layerstore.store.atomic import replace_file
from layerstore.store.layout import Layout


@dataclass(frozen=True, slots=True)
class Record:
    """What a step gave. ``diff_id`` None: it changed nothing."""

    diff_id: DiffID | None
    entries: int
    added: int
    """Bytes of content in the layer."""
    seconds: float


class Cache:
    """Reads and writes records. A record that cannot be read is no record."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def get(self, key: Digest) -> Record | None:
        fields = self._read(key.hex)
        try:
            diff_id = fields["diff_id"]
            record = Record(
                DiffID.parse(diff_id) if diff_id is not None else None,
                int(fields["entries"]),
                int(fields["added"]),
                float(fields["seconds"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, MalformedName):
            return None
        if record.diff_id is not None and not self._layout.layer(record.diff_id).is_dir():
            return None
        return record

    def put(self, key: Digest, record: Record) -> None:
        self._write(
            key.hex,
            {
                "diff_id": record.diff_id,
                "entries": record.entries,
                "added": record.added,
                "seconds": round(record.seconds, 3),
            },
        )

    def last_parts(self, place: Digest) -> tuple[tuple[str, str], ...] | None:
        """The recipe that this place of a spec had when it was last built."""
        fields = self._read("last-" + place.hex)
        try:
            return tuple((str(name), str(value)) for name, value in fields["parts"])
        except (KeyError, TypeError, ValueError):
            return None

    def put_last(self, place: Digest, parts: tuple[tuple[str, str], ...]) -> None:
        if self.last_parts(place) != parts:
            self._write("last-" + place.hex, {"parts": parts})

    def _read(self, name: str) -> dict[str, Any]:  # Any: JSON
        try:
            document = json.loads((self._layout.folder("cache") / name).read_bytes())
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    def _write(self, name: str, document: object) -> None:
        """Not flushed: a record that a crash loses costs one step, a torn one is no record."""
        with suppress(OSError):
            replace_file(
                self._layout, self._layout.folder("cache") / name, json.dumps(document).encode()
            )
