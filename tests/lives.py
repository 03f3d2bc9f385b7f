"""A store with a small image of busybox, for the tests that keep containers alive."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from containers import BUSYBOX

from layerstore import life
from layerstore import run as running
from layerstore.api import Layerstore
from layerstore.errors import LayerstoreError
from layerstore.live import ExecOptions
from layerstore.names import ImageRef
from layerstore.run import RunOptions
from layerstore.runtime.state import State, read_state
from layerstore.runtime.supervise import Outcome
from layerstore.store.containers import Container
from layerstore.store.store import Store

APPLETS = (
    *("cat", "chmod", "cp", "date", "dd", "echo", "env", "false", "grep", "head", "id", "kill"),
    *("ln", "ls", "mkdir", "mkfifo", "mv", "ps", "pwd", "readlink", "rm", "seq", "sh", "sleep"),
    *("stat", "stty", "tail", "touch", "true", "tty", "wc", "yes"),
)


class Lives:
    """A store, and the containers that a test makes in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store.open(root)
        self._ids: set[str] = set()

    # object: the field types are RunOptions'.
    def run(self, script: str, **fields: object) -> Container:
        """A detached container of a shell script."""
        container = running.run_detached(self.store, self.options(script, **fields))
        self._ids.add(container.container_id)
        return container

    def options(self, script: str, **fields: object) -> RunOptions:
        words: dict[str, object] = {"image": "box", "argv": ("sh", "-c", script)}
        return RunOptions(**(words | fields))  # type: ignore[arg-type]

    def sleeper(self, **fields: object) -> Container:
        """A container whose command does nothing, and knows no signal."""
        return self.run("", argv=("sleep", "1000"), **fields)

    def state(self, container: Container) -> State:
        return running.status(self.store, container).state

    def state_dir(self, container: Container) -> Path:
        return self.store.containers.path(container.container_id) / "state"

    def upper(self, container: Container) -> Path:
        return self.store.containers.path(container.container_id) / "upper"

    def logged(self, container: Container) -> bytes:
        return b"".join(text for _, _, text in life.logs(self.store, container.name))

    def exec(self, container: Container, *argv: str, **fields: object) -> tuple[Outcome, str]:
        """The outcome, and what the command wrote on both streams."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        options = ExecOptions(argv=argv, **fields)  # type: ignore[arg-type]
        try:
            outcome = life.execute(
                self.store, container.name, options, stdout=write_end, stderr=write_end
            )
            os.close(write_end)
            write_end = -1
            return outcome, b"".join(iter(lambda: os.read(read_end, 1 << 16), b"")).decode()
        finally:
            os.close(read_end)
            if write_end >= 0:
                os.close(write_end)

    def until(self, container: Container, what: Callable[[State], bool]) -> State:
        """The first state of which that is true."""
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            state = read_state(self.state_dir(container))
            if what(state):
                return state
            time.sleep(0.005)
        raise AssertionError(f"still {state}")

    def until_logged(self, container: Container, mark: bytes) -> None:
        until(lambda: mark in self.logged(container), f"{mark!r} in the log")

    def leftovers(self) -> dict[str, object]:
        """What containers could leave behind, to compare before and after."""
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return {
            "mounts": [line for line in mounts if str(self.root) in line],
            "cgroups": sorted(
                path
                for path, _, _ in os.walk("/sys/fs/cgroup")
                if "/layerstore/" in path and path.rpartition("/")[2] in self._ids
            ),
            "descriptors": sorted(os.listdir("/proc/self/fd")),
            "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
            "monitors": monitors(self.root),
            "containers": self.store.containers.ids(),
            "transactions": sorted(os.listdir(self.root / "leases")),
        }

    def end_all(self) -> None:
        """Nothing that a failed test left running runs on."""
        for container in self.store.containers.all():
            self._ids.add(container.container_id)
            with suppress(LayerstoreError):
                running.remove(self.store, container.container_id, force=True)


def monitors(root: Path) -> list[int]:
    """The pids of the monitors that keep something of the store open."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if "(layerstore-mon" not in Path("/proc", name, "stat").read_text():
                continue
            folder = Path("/proc", name, "fd")
            if any(str(root) in os.readlink(folder / fd) for fd in os.listdir(folder)):
                found.append(int(name))
    return sorted(found)


def until(is_true: Callable[[], bool], what: str, patience_s: float = 15) -> None:
    deadline = time.monotonic() + patience_s
    while not is_true():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def is_gone(pid: int | None) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def python(program: str, *arguments: str, **how: object) -> subprocess.Popen[bytes]:
    """A process that runs a program with ``layerstore`` at hand, as a command line does."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", program, *arguments], env=environment, **how
    )


@pytest.fixture(scope="module")
def store_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a store with the image ``box``."""
    directory = tmp_path_factory.mktemp("lives")
    binaries = directory / "image" / "bin"
    binaries.mkdir(parents=True)
    shutil.copy(BUSYBOX, binaries / "busybox")
    for applet in APPLETS:
        (binaries / applet).symlink_to("busybox")
    root = directory / "store"
    Layerstore(root).import_root(directory / "image", ImageRef.parse("box"))
    return root


@pytest.fixture
def lives(store_root: Path) -> Iterator[Lives]:
    """Fails a test that passes but leaves something behind."""
    made = Lives(store_root)
    before = made.leftovers()
    yield made
    made.end_all()
    # Ending takes a monitor's process a moment longer than it takes its container.
    until(lambda: made.leftovers() == before, f"something is left: {made.leftovers()} != {before}")
