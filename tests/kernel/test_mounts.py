"""Mounts on the host, in a mount namespace of the test's own child."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from abilities import needs_overlay, needs_root

from layerstore.errors import HostError
from layerstore.kernel import mounts, namespaces
from layerstore.kernel.mounts import OverlayMount

pytestmark = [needs_root, needs_overlay]


def isolated(check: Callable[[], None]) -> None:
    """Runs the check in a mount namespace of its own; fails as it does."""
    pid, pidfd = namespaces.clone(namespaces.NEWNS)
    if pid == 0:
        try:
            mounts.make_private()
            check()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(pidfd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture
def spec(tmp_path: Path) -> OverlayMount:
    names = ("top, layer", "middle:layer", "bottom\\layer", "upper", "work", "merged")
    made = [tmp_path / name for name in names]
    for directory in made:
        directory.mkdir()
    for directory in made[:3]:
        (directory / "which").write_text(directory.name)
        (directory / directory.name.split()[0].strip(",")).touch()
    return OverlayMount(
        lowerdirs_top_down=tuple(made[:3]), upperdir=made[3], workdir=made[4], index=False
    )


MOUNTERS = [
    pytest.param(mounts.mount_overlay, id="fsconfig"),
    pytest.param(mounts.mount_overlay_by_option_string, id="option-string"),
]


@pytest.mark.parametrize("mounter", MOUNTERS)
def test_the_first_lower_directory_is_the_top(
    spec: OverlayMount, tmp_path: Path, mounter: Callable[[OverlayMount, Path], None]
) -> None:
    target = tmp_path / "merged"

    def check() -> None:
        before = os.getcwd()
        mounter(spec, target)
        assert (target / "which").read_text() == "top, layer"
        assert len(list(target.iterdir())) == 4
        (target / "new").touch()
        assert os.getcwd() == before
        mounts.umount(target)
        assert list(target.iterdir()) == []

    isolated(check)
    assert [path.name for path in (tmp_path / "upper").iterdir()] == ["new"]


@pytest.mark.parametrize("mounter", MOUNTERS)
def test_no_descriptor_is_left_open(
    spec: OverlayMount, tmp_path: Path, mounter: Callable[[OverlayMount, Path], None]
) -> None:
    def check() -> None:
        before = os.listdir("/proc/self/fd")
        mounter(spec, tmp_path / "merged")
        with pytest.raises(HostError):
            mounter(spec.replace(redirect_dir="sideways"), tmp_path / "merged")
        assert os.listdir("/proc/self/fd") == before

    isolated(check)


@pytest.mark.parametrize("mounter", MOUNTERS)
def test_three_hundred_layers_can_be_mounted(
    spec: OverlayMount, tmp_path: Path, mounter: Callable[[OverlayMount, Path], None]
) -> None:
    layers: list[Path] = []
    for number in range(300):
        layers.insert(0, tmp_path / f"a-rather-long-name-of-a-layer-{number}")
        layers[0].mkdir()
        (layers[0] / "which").write_text(str(number))

    def check() -> None:
        mounter(spec.replace(lowerdirs_top_down=tuple(layers)), tmp_path / "merged")
        assert (tmp_path / "merged/which").read_text() == "299"

    isolated(check)


@pytest.mark.parametrize("lowers", [1, 3])
def test_an_overlay_without_an_upper_directory_is_read_only(
    spec: OverlayMount, tmp_path: Path, lowers: int
) -> None:
    target = tmp_path / "merged"
    bare = spec.replace(
        lowerdirs_top_down=spec.lowerdirs_top_down[:lowers], upperdir=None, workdir=None
    )

    def check() -> None:
        mounts.mount_overlay(bare, target)
        assert (target / "which").read_text() == "top, layer"
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").touch()
        assert os.access(spec.lowerdirs_top_down[0], os.W_OK)

    isolated(check)


KERNEL = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))


@pytest.mark.skipif(KERNEL < (6, 5), reason="needs data-only lower directories: Linux 6.5")
@pytest.mark.parametrize("mounter", MOUNTERS)
def test_data_only_directories_are_found_by_redirects_alone(
    spec: OverlayMount, tmp_path: Path, mounter: Callable[[OverlayMount, Path], None]
) -> None:
    objects = tmp_path / "objects"
    objects.mkdir()
    (objects / "blob").write_text("content")
    top = spec.lowerdirs_top_down[0]
    (top / "file").touch()
    os.truncate(top / "file", 7)
    os.setxattr(top / "file", "trusted.overlay.metacopy", b"")
    os.setxattr(top / "file", "trusted.overlay.redirect", b"/blob")
    composed = spec.replace(
        lowerdirs_top_down=(top,), datadirs=(objects,), metacopy=True, redirect_dir="on"
    )

    def check() -> None:
        mounter(composed, tmp_path / "merged")
        assert (tmp_path / "merged/file").read_text() == "content"
        assert not (tmp_path / "merged/blob").exists()

    isolated(check)


@pytest.mark.skipif(KERNEL < (6, 7), reason="needs an overlayfs that explains itself: Linux 6.7")
def test_a_failure_has_the_kernels_own_words(spec: OverlayMount, tmp_path: Path) -> None:
    with pytest.raises(HostError) as raised:
        mounts.mount_overlay(spec.replace(redirect_dir="sideways"), tmp_path / "merged")
    assert raised.value.brief == ("cannot mount overlay (redirect_dir=sideways): Invalid argument")
    assert "redirect_dir" in (raised.value.details or "")


def test_a_bind_can_be_read_only(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()

    def check() -> None:
        mounts.bind(source, target, read_only=True)
        (source / "f").touch()
        assert (target / "f").exists()
        with pytest.raises(OSError, match="Read-only"):
            (target / "g").touch()

    isolated(check)
