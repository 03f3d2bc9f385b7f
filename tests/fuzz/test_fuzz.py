"""A short fuzzing run of each target. docs/testing.md says how to make a long one."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import fuzz_targets as targets
import pytest
from abilities import IN_CI

HERE = Path(__file__).parent
SECONDS = 5


@pytest.mark.parametrize("target", targets.TARGETS)
def test_every_seed_is_read_or_refused(target: str) -> None:
    seeds = list(targets.seeds(target))
    assert seeds
    for seed in seeds:
        targets.run(target, seed)


@pytest.mark.skipif(find_spec("atheris") is None and not IN_CI, reason="needs the package atheris")
@pytest.mark.parametrize("target", targets.TARGETS)
def test_only_declared_errors_leave(target: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, HERE / "run.py", target, f"-max_total_time={SECONDS}", "-seed=1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    executions = re.search(r"Done (\d+) runs", done.stderr)
    assert executions is not None
    assert int(executions[1]) > 100
