"""A whole Debian, made once for real: the same on both drivers as ``tar x`` makes it, and alive."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import facts
import pytest
from abilities import needs_overlay, needs_root, needs_tool

from layerstore import rootfs
from layerstore.api import Layerstore
from layerstore.errors import HostError
from layerstore.host.debian import bootstrap
from layerstore.kernel.mounts import mount_overlay
from layerstore.kernel.namespaces import in_private_mounts
from layerstore.names import ImageRef
from layerstore.run import RunOptions

pytestmark = [needs_root, needs_overlay, needs_tool("mmdebstrap", "tar")]


class Debian:
    """The image in a store, and the same archive unpacked by GNU tar."""

    def __init__(self, folder: Path) -> None:
        self.archive = bootstrap("bookworm", target=folder / "debian.tar")
        self.unpacked = folder / "unpacked"
        self.unpacked.mkdir()
        subprocess.run(
            ["tar", "--xattrs", "--xattrs-include=*", "-xpf", self.archive, "-C", self.unpacked],
            check=True,
        )
        self.store = Layerstore(folder / "store")
        self.store.import_root(self.archive, ImageRef("debian"))
        self.image = self.store.store.images.find("debian")

    def run(self, *argv: str, name: str | None = None) -> tuple[int, str]:
        read_end, write_end = os.pipe()
        with open(os.devnull) as nothing, os.fdopen(read_end) as output:
            options = RunOptions(image="debian", argv=argv, remove=name is None, name=name)
            outcome = self.store.run(
                options, stdin=nothing.fileno(), stdout=write_end, stderr=write_end
            )
            os.close(write_end)
            return outcome.exit_code, output.read()


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Debian]:
    try:
        yield Debian(tmp_path_factory.mktemp("debian"))
    except HostError as error:
        if error.hint and "apt-get update" in error.hint:
            pytest.skip("needs a Debian mirror in reach")
        raise


@pytest.mark.parametrize("driver", [rootfs.COMPOSED, rootfs.STACKED])
def test_every_path_is_what_tar_makes_of_it(debian: Debian, driver: str, tmp_path: Path) -> None:
    root = rootfs.overlay(debian.store.store, debian.image.diff_ids, driver=driver)

    def compare() -> str:
        mount_overlay(root.replace(read_only=True), tmp_path)
        shown = facts.of_directory(os.fsencode(tmp_path))
        expected = facts.of_directory(os.fsencode(debian.unpacked))
        wrong = [
            os.fsdecode(path)
            for path in sorted(shown.keys() | expected.keys())
            if shown.get(path) != expected.get(path)
        ]
        return f"{len(expected)} paths, different: {wrong[:5]}"

    assert (
        in_private_mounts(compare)
        == f"{len(list(debian.unpacked.rglob('*')))} paths, different: []"
    )


def test_the_archive_comes_back_bit_for_bit(debian: Debian) -> None:
    with debian.archive.open("rb") as original:
        for chunk in debian.store.layer_tar(debian.image.diff_ids[0]):
            assert chunk == original.read(len(chunk))
        assert original.read(1) == b""


def test_its_programs_run_and_find_their_files_unchanged(debian: Debian) -> None:
    code, output = debian.run("sh", "-c", "apt-get --version && dpkg -l && dpkg -V")
    assert (code, output.splitlines()[0].split()[0]) == (0, "apt")
    assert "ii  dpkg " in output
    assert not [line for line in output.splitlines() if line.startswith(("?", "."))], "dpkg -V"


def test_a_removed_tree_is_a_whiteout_and_gone_in_the_commit(debian: Debian) -> None:
    assert debian.run("rm", "-rf", "/usr/share/doc", name="removes-doc")[0] == 0
    changes = debian.store.container_diff("removes-doc")
    assert [(change.kind, change.path) for change in changes] == [
        ("C", b"/usr"), ("C", b"/usr/share"), ("D", b"/usr/share/doc"),
    ]  # fmt: skip
    debian.store.commit("removes-doc", ImageRef("debian", "bare"))
    tree = debian.store.store.layers.tree(debian.store.store.images.find("debian:bare").diff_ids)
    assert tree.lookup(b"usr/share/doc") is None
    assert tree.lookup(b"usr/share/doc-base") is not None
    debian.store.remove_container("removes-doc")


def test_the_store_takes_no_more_room_than_the_unpacked_tree(debian: Debian) -> None:
    def blocks(path: Path) -> int:
        done = subprocess.run(["du", "-s", "--block-size=1", path], capture_output=True, check=True)
        return int(done.stdout.split()[0])

    usage = debian.store.usage()
    assert usage.physical == blocks(debian.store.settings.root)
    assert usage.physical < 1.1 * blocks(debian.unpacked)
