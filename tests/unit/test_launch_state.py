from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from layerstore.kernel.process import boot_id, start_time
from layerstore.runtime.state import (
    State,
    Stub,
    acquire_lock,
    open_stubs,
    read_state,
    read_stubs,
    record_stub,
    write_state,
)

RUNNING = State(
    status="running",
    boot_id=boot_id(),
    pid=os.getpid(),
    pid_started=start_time(os.getpid()),
    created_ns=1,
    started_ns=2,
    cgroups=('/a "quoted" \\ \u00fc',),
)


def test_a_container_that_never_ran_is_created(tmp_path: Path) -> None:
    assert read_state(tmp_path) == State(status="created")


def test_a_state_is_json_and_comes_back(tmp_path: Path) -> None:
    state = State(status="exited", exit_code=3, oom_killed=True, cgroups=RUNNING.cgroups)
    write_state(tmp_path, state)
    document = json.loads((tmp_path / "state.json").read_text())
    assert document["exit_code"] == 3
    assert document["oom_killed"] is True
    assert document["pid"] is None
    assert document["cgroups"] == list(RUNNING.cgroups)
    assert read_state(tmp_path) == state
    assert sorted(os.listdir(tmp_path)) == ["state.json"]


def test_while_the_lock_is_held_the_record_is_true(tmp_path: Path) -> None:
    write_state(tmp_path, RUNNING)
    lock = acquire_lock(tmp_path)
    assert read_state(tmp_path) == RUNNING.replace(is_supervised=True)
    os.close(lock)
    assert read_state(tmp_path) == RUNNING  # an orphan: the process itself is there


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"pid_started": 1}, id="another-process-has-the-pid"),
        pytest.param({"pid": 2**22 + 1}, id="no-process"),
        pytest.param({"pid": None}, id="killed-before-the-clone"),
    ],
)
def test_a_free_lock_and_no_process_mean_exited(tmp_path: Path, change: dict[str, int]) -> None:
    write_state(tmp_path, RUNNING.replace(**change))
    state = read_state(tmp_path)
    assert (state.status, state.exit_code, state.pid) == ("exited", None, None)
    assert state.cgroups == RUNNING.cgroups


def test_after_a_reboot_all_have_stopped_and_nothing_is_left(tmp_path: Path) -> None:
    write_state(tmp_path, RUNNING.replace(boot_id="another"))
    state = read_state(tmp_path)
    assert (state.status, state.exit_code, state.cgroups) == ("exited", None, ())


@pytest.mark.parametrize(
    "torn", [b"", b"{", b"{}", b"[]", b"\xff", b'{"status": "running", "x": 1}']
)
def test_a_torn_record_means_exited(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / "state.json").write_bytes(torn)
    assert read_state(tmp_path) == State(status="exited")


def test_stubs_come_back_in_order_and_torn_ones_do_not(tmp_path: Path) -> None:
    assert read_stubs(tmp_path) == []
    stubs = [
        Stub(path=b"/a b\n\xff", kind="dir", parent_mtime_ns=-5),
        Stub(path=b"/a b\n\xff/c", kind="file", parent_mtime_ns=1_700_000_000_123_456_789),
    ]
    for stub in stubs:
        fd = open_stubs(tmp_path)
        record_stub(fd, stub)
        os.close(fd)
    with (tmp_path / "stubs").open("ab") as file:
        file.write(b"dir 12 /half")
    assert read_stubs(tmp_path) == stubs
