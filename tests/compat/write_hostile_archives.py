"""Writes the tars of ``hostile`` to a directory, for ``go_verdicts.go`` to read."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import hostile

for name, raw in hostile.tars():
    (Path(sys.argv[1]) / name).write_bytes(raw)
