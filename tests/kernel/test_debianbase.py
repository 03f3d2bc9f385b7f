"""Debian roots: made for real through mmdebstrap, and refused in words that help."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from abilities import needs_root, needs_tool

from layerstore.errors import HostError, LayerstoreError, UsageError
from layerstore.events import Event, Note
from layerstore.host.debian import bootstrap


@needs_root
@needs_tool("mmdebstrap", "apt-get")
def test_a_minimal_root_has_packages_and_nothing_of_this_host(tmp_path: Path) -> None:
    """Takes 10 to 30 s and the host's own Debian mirror."""
    seen: list[Event] = []
    target = tmp_path / "root.tar"
    try:
        made = bootstrap("bookworm", variant="essential", target=target, epoch=1, sink=seen.append)
    except HostError as error:
        if error.hint and "apt-get update" in error.hint:
            pytest.skip("needs a Debian mirror in reach")
        raise
    assert made == target
    assert seen == [Note("making a Debian bookworm (essential) with mmdebstrap")]
    with tarfile.open(made) as archive:
        members = {member.name: member for member in archive}
        sources = archive.extractfile("./etc/apt/sources.list")
        assert sources is not None
        assert b" bookworm main" in sources.read()
    assert {"./usr/bin/dpkg", "./bin", "./etc/debian_version"} <= set(members)
    assert not {"./etc/hostname", "./etc/resolv.conf"} & set(members)
    assert max(member.mtime for member in members.values()) == 1, "later than the epoch"


@needs_root
@needs_tool("mmdebstrap")
def test_an_archive_out_of_reach_leaves_nothing_and_says_what_to_check(tmp_path: Path) -> None:
    target = tmp_path / "root.tar"
    with pytest.raises(HostError) as caught:
        bootstrap("bookworm", target=target, mirror="http://127.0.0.1:9/debian")
    error = caught.value
    assert error.brief.startswith("mmdebstrap could not make a Debian bookworm (exit status ")
    assert error.hint == (
        "see whether apt-get update works here; from: {host: [...]} needs no network"
    )
    assert "127.0.0.1" in (error.details or "")
    assert not target.exists()


@pytest.mark.parametrize(
    ("suite", "packages", "variant", "brief"),
    [
        ("--help", [], "minbase", "'--help' is not the name of a Debian suite"),
        ("Book worm", [], "minbase", "'Book worm' is not the name of a Debian suite"),
        ("sid", ["curl,wget"], "minbase", "'curl,wget' is not the name of a Debian package"),
        ("sid", ["curl"], "tiny", "'tiny' is not a variant of a Debian base"),
    ],
)
def test_names_that_no_archive_has_are_refused_before_anything_runs(
    tmp_path: Path, suite: str, packages: list[str], variant: str, brief: str
) -> None:
    with pytest.raises(UsageError) as caught:
        bootstrap(suite, packages=packages, variant=variant, target=tmp_path / "root.tar")
    assert caught.value.brief == brief


def test_without_a_tool_the_hint_names_one_and_a_way_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LayerstoreError) as caught:
        bootstrap("bookworm", target=tmp_path / "root.tar")
    assert caught.value.brief == (
        "neither mmdebstrap nor debootstrap is installed: cannot make a Debian bookworm"
    )
    assert caught.value.hint == (
        "apt-get install mmdebstrap, or start from: {host: [sh, coreutils]}"
    )
