"""Detached containers of a plain user. Run as root, the tests become one."""

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
from containers import World, leftovers, needs_busybox
from lives import until

import layerstore
from layerstore.runtime.state import read_state

UID = 65534
AGAIN = (
    "import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'import sys; sys.exit(%s)'])"
)


def _as_user() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--"]


def _interpreter() -> str | None:
    """One that a plain user may start, and start again: root's may be in root's home."""
    program = AGAIN % "sys.version_info < (3, 11)"
    for candidate in (sys.executable, "/usr/bin/python3"):
        try:
            command = [*_as_user(), candidate, "-c", program]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return candidate
        except OSError:
            continue
    return None


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
    for name in ("containers.py", "abilities.py"):
        shutil.copy(Path(__file__).parent.parent / name, top / name)
    made = World(top / "w")
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", f"{UID}:{UID}", made.directory], check=True)
    subprocess.run(["chmod", "-R", "a+rX", top], check=True)
    yield made
    # What the kernel left in the work directory belongs to the user and is closed to all.
    subprocess.run(["chmod", "-R", "u+rwX", top], check=False)
    shutil.rmtree(top)


PROGRAM = """
import sys
from pathlib import Path
from containers import World
from layerstore.kernel.process import SIGTERM
from layerstore.runtime import copying, deliver, enter
from layerstore.runtime.copying import Place
from layerstore.runtime.detached import Monitor
from layerstore.runtime.rootview import StoppedRoot, running_root
from layerstore.runtime.state import read_state
from layerstore.runtime.upkeep import MonitorPlan, Upkeep
import os

world = World.__new__(World)
world.directory = Path(sys.argv[1])
for name in ("lower", "upper", "work", "state"):
    setattr(world, name, world.directory / name)
plan = world.plan("sh", "-c", "echo out; exec sleep 1000", root=world.root(userxattr=True))
log = str(world.directory / "log")
monitor = Monitor()
monitor.start(MonitorPlan(plan=plan, upkeep=Upkeep(), log_dir=log))
monitor.close()
state = read_state(world.state)
said = []
for terminal, script in ((False, "id -u; touch /made; exit 3"), (True, "tty; exit 4")):
    inside = plan.replace(argv=(b"sh", b"-c", script.encode()), terminal=terminal)
    said.append(enter.run(inside, state, stdout=said.append).exit_code)
enter.leave_running(plan.replace(argv=(b"sleep", b"99")), state)
host = os.open("/", os.O_PATH)
for root in (running_root(state.pid, state.pid_started), None):
    if root is None:
        deliver.end(world.state, SIGTERM, 5)
        with StoppedRoot(world.state, plan.root) as root:
            copying.copy(Place(root_fd=root, path=b"/made"),
                         Place(root_fd=host, path=os.fsencode(world.directory / "stopped")))
    else:
        copying.copy(Place(root_fd=root, path=b"/made"),
                     Place(root_fd=host, path=os.fsencode(world.directory / "running")))
print(said)
"""


def test_a_plain_user_keeps_enters_copies_and_stops(world: World) -> None:
    top = world.directory.parent
    before = leftovers(world)
    site_packages = [path for path in sys.path if path.endswith("site-packages")]
    done = subprocess.run(
        [*_as_user(), str(_interpreter()), "-c", PROGRAM, str(world.directory)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PYTHONPATH": os.pathsep.join([str(top), *site_packages]), "HOME": "/"},
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[b'0\\n', 3, b'/dev/pts/0\\r\\n', 4]\n"
    until(lambda: not read_state(world.state).is_supervised, "ended")
    assert read_state(world.state).exit_code == 143
    assert (world.directory / "log" / "1").read_text().endswith(" stdout F out\n")
    assert (world.directory / "running").exists() and (world.directory / "stopped").exists()
    assert leftovers(world) == before
