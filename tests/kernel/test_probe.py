"""What doctor says of a host, held against what the host does."""

from __future__ import annotations

import os
from pathlib import Path

from abilities import needs_overlay, needs_root

from layerstore.kernel import namespaces
from layerstore.kernel.probe import probe_host


def _everything(directory: Path) -> set[str]:
    return {str(path) for path in directory.rglob("*")}


def test_the_report_names_every_ability_and_leaves_nothing(tmp_path: Path) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    descriptors = os.listdir("/proc/self/fd")
    report = probe_host(tmp_path / "not/yet/there")
    assert report.directory == tmp_path
    assert (report.kernel, report.uid) == (os.uname().release, os.geteuid())
    assert [ability.name for ability in report.abilities] == [
        *("kernel", "overlay", "overlay-userxattr", "overlay-lowerdir+", "erofs-file"),
        *("user-namespaces", "sub-ids", "limit-memory", "limit-cpu", "limit-pids"),
        *("reflink", "loop", "seccomp"),
    ]
    assert all(a.is_there or (a.why and a.hint) for a in report.abilities)
    assert _everything(tmp_path) == set()
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert os.listdir("/proc/self/fd") == descriptors


@needs_root
@needs_overlay
def test_overlays_that_work_are_reported(tmp_path: Path) -> None:
    report = probe_host(tmp_path)
    assert report["overlay"].is_there


def test_a_directory_that_is_not_writable_says_so(tmp_path: Path) -> None:
    report = probe_host(Path("/proc/self/nosuch"))
    assert not report["overlay"].is_there
    assert "not writable" in report["overlay"].why


def test_sub_ids_of_names_and_numbers(tmp_path: Path) -> None:
    table = tmp_path / "subuid"
    table.write_text("root:100000:65536\n0:300000:10\nother:1:2\nbroken\nroot:x:5\n")
    assert namespaces.sub_ids(str(table), 0) == ((100000, 65536), (300000, 10))
    assert namespaces.sub_ids(str(tmp_path / "none"), 0) == ()
