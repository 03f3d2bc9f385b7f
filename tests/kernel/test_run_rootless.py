"""Containers of a plain user. Run as root, the tests become one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from abilities import needs_tool, needs_userns
from containers import World, launcher, leftovers, needs_busybox

import layerstore
from layerstore.runtime.state import read_state

UID = 65534


def _interpreter() -> str | None:
    """One that a plain user may start; this one may be in root's home."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        command = [*_as_user(), candidate, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return candidate
        except OSError:
            continue
    return None


def _as_user() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--"]


pytestmark = [
    needs_userns,
    needs_busybox,
    needs_tool("setpriv"),
    pytest.mark.skipif(_interpreter() is None, reason="needs a Python that plain users may start"),
]


@pytest.fixture
def world() -> Iterator[World]:
    """In a place that plain users may reach, which a test directory of root is not."""
    top = Path(tempfile.mkdtemp(prefix="layerstore-", dir="/var/tmp"))
    top.chmod(0o755)
    source = Path(layerstore.__file__).parent
    shutil.copytree(source, top / "layerstore", ignore=shutil.ignore_patterns("__pycache__"))
    here = Path(__file__).parent.parent
    for name in ("containers.py", "abilities.py"):
        shutil.copy(here / name, top / name)
    world = World(top / "w")
    _give_away(world)
    subprocess.run(["chmod", "-R", "a+rX", top], check=True)
    yield world
    # What the kernel left in the work directory belongs to the user and is closed to all.
    subprocess.run(["chmod", "-R", "u+rwX", top], check=False)
    shutil.rmtree(top)


def _give_away(world: World) -> None:
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", f"{UID}:{UID}", world.directory], check=True)


def _run(world: World, *argv: str, **options: str) -> subprocess.CompletedProcess[str]:
    top = world.directory.parent
    command = launcher(world, *argv, **options)
    site_packages = [path for path in sys.path if path.endswith("site-packages")]
    return subprocess.run(
        [*_as_user(), str(_interpreter()), str(top / "containers.py"), *command[2:]],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={"PYTHONPATH": os.pathsep.join([str(top), *site_packages]), "HOME": "/"},
        cwd="/",
    )


def test_a_plain_user_is_root_inside(world: World) -> None:
    before = leftovers(world)
    result = _run(world, "sh", "-c", "id -u; hostname; echo new > /f; rm /bin/wc; exit 4")
    assert (result.returncode, result.stdout) == (4, "0\nbox\n"), result.stderr
    assert (world.upper / "f").read_text() == "new\n"
    uid = os.geteuid() or UID
    assert (world.upper / "f").stat().st_uid == uid
    assert leftovers(world) == before
    assert read_state(world.state).exit_code == 4


def test_directories_can_be_removed_and_made_again(world: World) -> None:
    (world.lower / "d").mkdir()
    (world.lower / "d/f").touch()
    _give_away(world)
    result = _run(world, "sh", "-c", "rm -r /d && mkdir /d && ls /d | wc -l")
    assert (result.returncode, result.stdout) == (0, "0\n"), result.stderr


def test_what_it_sees(world: World) -> None:
    script = "ip -o link | wc -l; echo x > /dev/null && ls /sys/fs/cgroup | wc -l; grep CapEff "
    script += "/proc/self/status; touch /proc/sys/kernel/hostname; tty; true"
    result = _run(world, "sh", "-c", script)
    assert result.stdout.splitlines() == ["1", "0", "CapEff:\t00000000800405fb", "not a tty"]
    assert "Read-only file system" in result.stderr


def test_the_network_of_the_host(world: World) -> None:
    links = str(len(os.listdir("/sys/class/net")))
    result = _run(world, "sh", "-c", "ip -o link | wc -l; touch /sys/x", network="host")
    assert result.stdout.split() == [links], result.stderr
    assert "Read-only file system" in result.stderr


def test_a_terminal(world: World) -> None:
    result = _run(world, "sh", "-c", "tty; ls -l /dev/console", terminal="1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("/dev/pts/0\ncrw")


def test_another_user_needs_sub_ids(world: World) -> None:
    result = _run(world, "id", user="1000")
    assert result.returncode == 125
    assert "uid 1000" in result.stderr
    assert "/etc/subuid" in result.stderr


def test_a_limit_that_it_cannot_have_is_an_error_that_says_so(world: World) -> None:
    result = _run(world, "true", pids="5")
    assert result.returncode == 1
    assert "no permission to make the cgroup" in result.stderr
    assert "run as root" in result.stderr
