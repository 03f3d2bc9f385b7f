"""Power cuts at any instant of a command, on ext4 and xfs; and mutations that they must find."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import crash_driver as driver
import powercut
import pytest
from abilities import needs_root, needs_tool

pytestmark = [needs_root, needs_tool("strace", "unshare", "losetup")]

FILE_SYSTEMS = [
    pytest.param(name, marks=needs_tool(f"mkfs.{name}"), id=name) for name in powercut.MAKE
]


def cut(folder: Path, *requests: Mapping[str, object]) -> list[powercut.Outcome]:
    result = subprocess.run(
        ["unshare", "-m", "--propagation", "private", sys.executable, powercut.__file__, folder],
        input=json.dumps(requests), capture_output=True, text=True, timeout=3600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return [powercut.Outcome(**outcome) for outcome in json.loads(result.stdout)]


@pytest.mark.parametrize("mode", [1, 2], ids=["data dropped", "nothing flushed"])
@pytest.mark.parametrize("file_system", FILE_SYSTEMS)
def test_a_power_cut_leaves_the_old_state_or_the_new_one_and_loses_no_success(
    tmp_path: Path, file_system: str, mode: int, limit: int | None
) -> None:
    outcomes = cut(
        tmp_path,
        *(
            {"command": command, "file_system": file_system, "mode": mode,
             "limit": limit and limit // 2}
            for command in driver.COMMANDS
        ),
    )  # fmt: skip
    for command, outcome in zip(driver.COMMANDS, outcomes, strict=True):
        assert outcome.tried >= 2 and outcome.flaws == {}, command


def test_a_cut_that_loses_nothing_is_no_cut(tmp_path: Path) -> None:
    """The control run: even a command that flushes nothing is whole after it."""
    request = {"command": "import", "mode": 0, "mutation": "no_flush", "limit": 1}
    (outcome,) = cut(tmp_path, request)
    assert outcome.tried == 1 and outcome.flaws == {}


@pytest.mark.parametrize(
    ("mutation", "command", "mode"),
    [
        ("rename_before_flush", "import", 1),
        ("no_flush", "import", 1),
        ("ref_not_flushed", "tag", 1),
        ("ref_folder_not_flushed", "tag", 2),
        ("ref_before_objects", "import", 1),
        ("records_before_objects", "import", 1),
        ("objects_before_records", "gc", 1),
        ("collected_before_unnamed", "rmi", 1),
    ],
)
def test_a_protocol_with_a_rule_left_out_is_found_wrong(
    tmp_path: Path, mutation: str, command: str, mode: int
) -> None:
    request = {"command": command, "mutation": mutation, "mode": mode, "until_wrong": True}
    (outcome,) = cut(tmp_path, request)
    assert outcome.flaws
