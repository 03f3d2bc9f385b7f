"""Small containers of busybox, for the tests that really start one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from abilities import IN_CI

from layerstore.kernel.mounts import OverlayMount
from layerstore.runtime.plan import LaunchPlan
from layerstore.runtime.state import cleanup_leftovers
from layerstore.runtime.supervise import Outcome, run

BUSYBOX = Path("/bin/busybox")
APPLETS = (
    *("cat", "chmod", "echo", "env", "false", "grep", "head", "hostname", "id", "ip", "kill"),
    *("ls", "mkdir", "mknod", "mount", "ping", "ps", "pwd", "readlink", "rm", "sh", "sleep"),
    *("stat", "stty", "touch", "true", "tty", "umount", "wc"),
)

needs_busybox = (
    pytest.mark.usefixtures("missing_tool_is_a_failure")
    if IN_CI and not BUSYBOX.exists()
    else pytest.mark.skipif(not BUSYBOX.exists(), reason="needs a static /bin/busybox")
)


class World:
    """The directories of one container, and its launches."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lower, self.upper, self.work, self.state = (
            directory / name for name in ("lower", "upper", "work", "state")
        )
        for made in (self.lower, self.upper, self.work, self.state):
            made.mkdir(parents=True)
        binaries = self.lower / "bin"
        binaries.mkdir()
        shutil.copy(BUSYBOX, binaries / "busybox")
        for applet in APPLETS:
            (binaries / applet).symlink_to("busybox")

    def root(self, *, lowers_above: tuple[Path, ...] = (), userxattr: bool = False) -> OverlayMount:
        return OverlayMount(
            lowerdirs_top_down=(*lowers_above, self.lower),
            upperdir=self.upper,
            workdir=self.work,
            userxattr=userxattr,
        )

    @property
    def name(self) -> str:
        return "test" + str(self.directory).replace("/", "-")

    # object: the field types are LaunchPlan's.
    def plan(self, *argv: str, **fields: object) -> LaunchPlan:
        values: dict[str, object] = {
            "container_id": self.name,
            "argv": tuple(map(os.fsencode, argv)),
            "hostname": b"box",
            "root": self.root(),
            "state_dir": self.state,
        }
        return LaunchPlan(**(values | fields))  # type: ignore[arg-type]

    def run(self, *argv: str, **fields: object) -> tuple[Outcome, str]:
        """The outcome and what the command wrote on standard output and error."""
        written: list[bytes] = []
        outcome = run(self.plan(*argv, **fields), stdout=written.append, stderr=written.append)
        return outcome, b"".join(written).decode()

    def sh(self, script: str, **fields: object) -> str:
        """What the script writes; it must succeed."""
        outcome, written = self.run("sh", "-c", script, **fields)
        assert outcome.exit_code == 0, written
        return written


def launcher(world: World, *argv: str, **options: str) -> list[str]:
    """The command line of a process that runs a container of the world, as ``layerstore run``."""
    words = [f"{name}={value}" for name, value in options.items()]
    return [sys.executable, __file__, str(world.directory), *words, "--", *argv]


def spawn(
    command: list[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.STDOUT,
) -> subprocess.Popen[bytes]:
    """The process of a command line that ``launcher`` made, in a session of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=environment,
        start_new_session=True,
    )
    _spawned.append(process)
    return process


_spawned: list[subprocess.Popen[bytes]] = []


def end_spawned(world: World) -> None:
    """What a failed test left running is ended, and what it left behind removed."""
    while _spawned:
        process = _spawned.pop()
        process.kill()
        process.communicate()
    cleanup_leftovers(world.state)


def leftovers(world: World) -> dict[str, object]:
    """What a launch could leave behind, to compare before and after."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    groups = [path for path, _, _ in os.walk("/sys/fs/cgroup") if f"/{world.name}" in path]
    return {
        "mounts": [line for line in mounts if str(world.directory) in line],
        "cgroups": groups,
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
    }


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "w")
    yield made
    end_spawned(made)


def _main() -> None:
    directory = Path(sys.argv[1])
    at = sys.argv.index("--")
    options = dict(word.split("=", 1) for word in sys.argv[2:at])
    self = World.__new__(World)
    self.directory = directory
    self.lower, self.upper, self.work, self.state = (
        directory / name for name in ("lower", "upper", "work", "state")
    )
    fields: dict[str, object] = {
        "root": self.root(userxattr=os.geteuid() != 0),
        "terminal": options.get("terminal") == "1",
        "interactive": options.get("interactive") == "1",
        "network": options.get("network", "none"),
    }
    if "user" in options:
        from layerstore.runtime.plan import parse_user

        fields["user"] = parse_user(options["user"])
    if "pids" in options:
        from layerstore.runtime.limits import Limits

        fields["limits"] = Limits(pids=int(options["pids"]))
    from layerstore.errors import LayerstoreError

    try:
        outcome = run(self.plan(*sys.argv[at + 1 :], **fields))
    except LayerstoreError as error:
        print(f"{error.brief}\n{error.hint}\n{error.details}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(outcome.exit_code)


if __name__ == "__main__":
    _main()
