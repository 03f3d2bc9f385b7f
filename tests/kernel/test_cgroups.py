"""Cgroups are really made here, by root, under names of the test's own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from abilities import needs_root

from layerstore.errors import ConflictError, HostError
from layerstore.kernel.cgroups import Cgroup, Hierarchy, Settings, hierarchies

needs_controllers = pytest.mark.skipif(
    not {"memory", "cpu", "pids"}
    <= {controller for hierarchy in hierarchies() for controller in hierarchy.controllers},
    reason="needs the memory, cpu and pids cgroup controllers",
)
pytestmark = [needs_root, needs_controllers]


@pytest.fixture
def name() -> Iterator[str]:
    name = f"test-{os.getpid()}-{time.monotonic_ns()}"
    yield name
    left = [path for path, _, _ in os.walk("/sys/fs/cgroup") if path.endswith(name)]
    for path in left:
        Path(path).rmdir()
    assert left == []


def _file(cgroup: Cgroup, v1: str, v2: str) -> str:
    for path in cgroup.paths:
        for file in (v1, v2):
            if Path(path, file).exists():
                return Path(path, file).read_text().strip()
    raise FileNotFoundError(v1, v2)


def test_limits_are_in_the_kernels_files(name: str) -> None:
    settings = Settings(memory=32 << 20, memory_swap=48 << 20, cpu_quota_us=50_000, pids=9)
    cgroup = Cgroup.create(name, settings)
    try:
        assert _file(cgroup, "memory.limit_in_bytes", "memory.max") == str(32 << 20)
        assert _file(cgroup, "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
        assert _file(cgroup, "pids.max", "pids.max") == "9"
        swap = 16 << 20 if cgroup.is_v2 else 48 << 20
        assert _file(cgroup, "memory.memsw.limit_in_bytes", "memory.swap.max") == str(swap)
        cgroup.set(Settings(pids=5))
        assert _file(cgroup, "pids.max", "pids.max") == "5"
    finally:
        cgroup.remove()
    assert not any(Path(path).exists() for path in cgroup.paths)


def test_members_are_counted_killed_and_removed(name: str) -> None:
    cgroup = Cgroup.create(name, Settings())
    process = subprocess.Popen(["sleep", "1000"])
    try:
        cgroup.attach(process.pid)
        usage = cgroup.usage()
        assert usage.pids == 1
        assert usage.memory is not None and usage.memory >= 0
        assert usage.cpu_ns is not None
        assert cgroup.oom_kills() == 0
        cgroup.kill()
        assert process.wait(5) == -9
    finally:
        process.kill()
        process.wait()
        cgroup.remove()


def test_removing_kills_who_is_still_in_it(name: str) -> None:
    cgroup = Cgroup.create(name, Settings())
    process = subprocess.Popen(["sh", "-c", "sleep 1000 & sleep 1000"])
    cgroup.attach(process.pid)
    Cgroup.of_paths(cgroup.paths).remove()
    assert process.wait(5) == -9


def test_a_name_is_taken_once(name: str) -> None:
    cgroup = Cgroup.create(name, Settings())
    try:
        with pytest.raises(ConflictError):
            Cgroup.create(name, Settings())
        assert all(Path(path).is_dir() for path in cgroup.paths)
    finally:
        cgroup.remove()


def test_planning_makes_nothing(name: str) -> None:
    cgroup = Cgroup.planned(name, Settings(pids=3))
    assert not cgroup.is_made
    assert not any(Path(path).exists() for path in cgroup.paths)
    cgroup.remove()


def test_a_failure_leaves_nothing(name: str) -> None:
    with pytest.raises(OSError, match="cpu"):
        Cgroup.create(name, Settings(cpu_quota_us=1))  # the kernel wants at least 1000


def test_a_limit_without_its_controller_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    only_pids = (Hierarchy(mountpoint="/nowhere", controllers=("pids",), is_v2=False),)
    monkeypatch.setattr("layerstore.kernel.cgroups.hierarchies", lambda: only_pids)
    with pytest.raises(HostError) as raised:
        Cgroup.planned("x", Settings(memory=1 << 30, pids=5))
    assert raised.value.brief == (
        "this host can't enforce a memory limit: no memory cgroup controller is available"
    )
    assert "cgroup_enable=memory" in (raised.value.hint or "")
