"""Images that attack their launcher. Each rule of a CVE that applies to ``run``, tried."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from abilities import needs_overlay, needs_root
from containers import World, needs_busybox, world

from layerstore.runtime.plan import Bind, LaunchError, Tmpfs

__all__ = ["world"]
pytestmark = [needs_root, needs_overlay, needs_busybox]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A host directory that nothing may touch."""
    directory = tmp_path / "victim"
    directory.mkdir()
    (directory / "hosts").write_text("host's")
    return directory


def _tree(directory: Path) -> list[tuple[str, bytes]]:
    return sorted(
        (str(path.relative_to(directory)), path.read_bytes() if path.is_file() else b"")
        for path in directory.rglob("*")
    )


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("target", ["absolute", "relative", "inside"])
def test_cve_2019_19921_system_directories_are_no_links(
    world: World, victim: Path, name: str, target: str
) -> None:
    before = _tree(victim)
    (world.lower / "elsewhere").mkdir()
    text = {
        "absolute": str(victim),
        "relative": "../" * 30 + str(victim),
        "inside": "/elsewhere",
    }[target]
    (world.lower / name).symlink_to(text)
    with pytest.raises(LaunchError) as raised:
        world.run("true")
    assert f"/{name} in the image" in raised.value.brief
    assert _tree(victim) == before


@pytest.mark.parametrize("up", ["", "/..", "/../../../../../.."])
def test_cve_2018_15664_etc_as_a_link_stays_inside(world: World, victim: Path, up: str) -> None:
    before = _tree(victim)
    (world.lower / "etc").symlink_to(up + str(victim))
    assert "127.0.0.1\tbox\n" in world.sh("cat /etc/hosts")
    assert _tree(victim) == before
    assert (world.upper / str(victim).lstrip("/") / "hosts").read_bytes() == b""


def test_cve_2021_30465_a_dangling_link_is_made_inside(world: World, victim: Path) -> None:
    before = _tree(victim)
    (world.lower / "etc").mkdir()
    (world.lower / "etc/resolv.conf").symlink_to(f"../..{victim}/new/resolv.conf")
    (world.lower / "data").symlink_to(str(victim / "volume"))
    world.sh("cat /etc/resolv.conf; touch /data/x", tmpfs=(Tmpfs(target=b"/data"),))
    assert _tree(victim) == before


def test_links_that_go_round_are_an_error(world: World) -> None:
    (world.lower / "a").symlink_to("b")
    (world.lower / "b").symlink_to("a")
    with pytest.raises(LaunchError, match="symbolic links"):
        world.run("true", tmpfs=(Tmpfs(target=b"/a/x"),))


@pytest.mark.parametrize("link", ["/proc/self/cwd/x", "/proc/1/root", "/proc"])
def test_cve_2025_31133_nothing_is_mounted_into_proc(
    world: World, link: str, tmp_path: Path
) -> None:
    (world.lower / "way").symlink_to(link)
    with pytest.raises(LaunchError):
        world.run("true", binds=(Bind(source=tmp_path, target=b"/way"),))


def test_cve_2024_21626_the_directory_is_never_a_descriptor_of_the_host(world: World) -> None:
    for number in range(3, 30):
        (world.lower / f"d{number}").symlink_to(f"/proc/self/fd/{number}")
        for cwd in (f"/proc/self/fd/{number}", f"/d{number}"):
            try:
                seen = world.sh("pwd; ls ..", cwd=cwd.encode())
            except LaunchError:
                continue
            raise AssertionError(f"started in {cwd}: {seen}")


@pytest.mark.parametrize("interpreter", ["/proc/self/exe", "proc/self/exe"])
def test_cve_2019_5736_a_script_does_not_get_the_hosts_interpreter(
    world: World, interpreter: str
) -> None:
    script = world.lower / "script"
    script.write_text(f"#!{interpreter}\nimport os; os.write(1, b'host python')\n")
    script.chmod(0o755)
    outcome, written = world.run("/script", "-c", "print('host python')")
    assert (outcome.exit_code, written) == (126, "")


def test_cve_2019_5736_the_stub_cannot_be_written(world: World) -> None:
    # The command opens its own executable for writing: it is a file of the image, not ours.
    written = world.sh("readlink /proc/1/exe")
    assert written == "/bin/busybox\n"


def test_cve_2022_0492_cgroups_are_read_only(world: World) -> None:
    seen = world.sh(
        "for f in $(ls -d /sys/fs/cgroup/*/ /sys/fs/cgroup/*/*); do echo 1 > $f 2>/dev/null &&"
        " echo WRITTEN $f; done; mkdir /sys/fs/cgroup/memory/x || mkdir /sys/fs/cgroup/x || true"
    )
    assert "WRITTEN" not in seen
    assert "Read-only file system" in seen


def test_cve_2017_5226_the_session_has_no_terminal_of_the_host(world: World) -> None:
    assert "No such device" in world.sh("echo x > /dev/tty || true")


def test_a_fifo_for_passwd_does_not_hang_the_launch(world: World) -> None:
    (world.lower / "etc").mkdir()
    os.mkfifo(world.lower / "etc/passwd")
    assert world.run("true")[0].exit_code == 0


def test_device_nodes_of_an_image_do_not_work(world: World) -> None:
    os.mknod(world.lower / "null", 0o20666, os.makedev(1, 3))
    assert "Permission denied" in world.sh("cat /null || true")


def test_masks_hold_against_files_with_these_names(world: World) -> None:
    (world.lower / "proc").mkdir()
    (world.lower / "proc/keys").write_text("image's")
    assert world.sh("cat /proc/keys; cat /proc/self/comm") == "cat\n"
