"""Where the measurements take place: scratch directories, fresh disks, child processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.harness import Unavailable

PROJECT = Path(__file__).resolve().parent.parent
SCRATCH = Path("/var/tmp")
"""Not the directory for temporary files, which may be a tmpfs."""


class World:
    """A scratch directory that goes away, and a cache of inputs that stays."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._is_installed = False
        self.cache = SCRATCH / f"bench-layerstore-cache-{os.geteuid()}"

    def __enter__(self) -> Self:
        self.cache.mkdir(0o700, exist_ok=True)
        name = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=SCRATCH))
        self.scratch = Path(name)
        self._count = 0
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def directory(self, name: str) -> Path:
        """A new directory on the disk of the scratch directory."""
        self._count += 1
        path = self.scratch / f"{self._count}-{name}"
        path.mkdir()
        return path

    @contextmanager
    def disk(self, size: str = "8G") -> Iterator[Path]:
        """A fresh ext4 with a journal on a loop device.

        Every measurement that writes much gets its own: on a disk where trees were just deleted,
        making files is slower for whoever comes next.
        """
        if os.geteuid() != 0:
            yield self.directory("disk")
            return
        where = self.directory("disk")
        image = where.with_suffix(".img")
        check(["truncate", "-s", size, str(image)])
        check(["mkfs.ext4", "-q", "-E", "nodiscard", str(image)])
        check(["mount", "-o", "loop,noinit_itable", str(image), str(where)])
        try:
            yield where
        finally:
            check(["umount", str(where)])
            image.unlink()

    def installed(self) -> Path:
        """The directory of an installed, not editable, ``layerstore`` and its ``python``.

        Under the distribution's own interpreter if it is new enough: an editable install, or a
        Python that loads its library, starts more slowly.
        """
        home = self.cache / "installed"
        if self._is_installed:
            return home / "bin"
        mark = home / "of"
        state = _state_of_sources()
        if not (mark.exists() and mark.read_text() == state):
            self._install(home)
            mark.write_text(state)
        self._is_installed = True
        return home / "bin"

    def _install(self, home: Path) -> None:
        shutil.rmtree(home, ignore_errors=True)
        python = _distribution_python()
        check([python, "-m", "venv", str(home)])
        source = self.directory("source")  # building leaves things behind
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            if (PROJECT / name).exists():
                shutil.copy(PROJECT / name, source)
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / "layerstore", source / "layerstore", ignore=skip)
        check([str(home / "bin/pip"), "-q", "--disable-pip-version-check", "install", str(source)])
        shutil.copytree(PROJECT / "benchmarks", home / "work/benchmarks", ignore=skip)

    def worker(self) -> Worker:
        """A process of the installed layerstore, whatever becomes of the sources meanwhile."""
        return Worker(self.installed() / "python", self.cache / "installed/work")

    def debian(self) -> Path:
        """A Debian root filesystem as a tar; made once, which needs the network."""
        path = self.cache / "debian-bookworm.tar"
        if not path.exists():
            tool("mmdebstrap")
            part = path.with_suffix(".part")
            check(
                [
                    "mmdebstrap",
                    "--quiet",
                    "--variant=minbase",
                    "--format=tar",
                    "bookworm",
                    str(part),
                ],
                env={"SOURCE_DATE_EPOCH": "0", "LC_ALL": "C.UTF-8"},
            )
            part.rename(path)
        warm(path)
        return path


def _distribution_python() -> str:
    ours = "/usr/bin/python3"
    test = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    is_fit = subprocess.run([ours, "-c", test], capture_output=True, check=False).returncode == 0
    return ours if is_fit else sys.executable


def _state_of_sources() -> str:
    hasher = hashlib.sha256(sys.version.encode())
    for path in sorted([*(PROJECT / "layerstore").rglob("*"), *(PROJECT / "benchmarks").glob("*")]):
        if path.is_file() and "__pycache__" not in path.parts:
            hasher.update(str(path.relative_to(PROJECT)).encode() + b"\0" + path.read_bytes())
    return hasher.hexdigest()


def warm(path: Path) -> None:
    """The file is in the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def tool(name: str) -> str:
    """The path of a foreign program. Raises Unavailable."""
    path = shutil.which(name)
    if path is None:
        raise Unavailable("not installed")
    return path


def check(command: Sequence[str], *, env: Mapping[str, str] | None = None) -> str:
    """What the command prints. Raises Unavailable with the end of its complaint if it fails."""
    result = subprocess.run(
        list(command), stdin=subprocess.DEVNULL, capture_output=True, check=False, text=True,
        errors="replace", env={**os.environ, **(env or {})},
    )  # fmt: skip
    if result.returncode:
        said = (result.stderr.strip() or result.stdout.strip()).splitlines()
        raise Unavailable(f"{Path(command[0]).name} failed: {said[-1] if said else ''}"[:160])
    return result.stdout.strip()


def timed(command: Sequence[str], *, env: Mapping[str, str] | None = None) -> float:
    """Seconds from the start of the command to its end. Raises Unavailable if it fails."""
    environment = {**os.environ, **(env or {})}
    quiet = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
    ]
    with tempfile.TemporaryFile() as errors:
        streams = [*quiet, (os.POSIX_SPAWN_DUP2, errors.fileno(), 2)]
        path = shutil.which(command[0]) or command[0]
        began = time.perf_counter()
        pid = os.posix_spawn(path, list(command), environment, file_actions=streams)
        _, status = os.waitpid(pid, 0)
        took = time.perf_counter() - began
        if status:
            errors.seek(0)
            said = errors.read().decode("utf-8", "replace").strip().splitlines()
            raise Unavailable(f"{Path(path).name} failed: {said[-1] if said else status}"[:160])
    return took


class Worker:
    """A Python process of its own in which ``benchmarks.tasks`` are done, one after another."""

    def __init__(self, python: Path, cwd: Path) -> None:
        self._child = subprocess.Popen(
            [str(python), "-m", "benchmarks.worker"], cwd=cwd, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._child.communicate()

    # Any: what a task takes and gives, as JSON.
    def __call__(self, task: str, **given: Any) -> Any:
        if self._child.stdin is None or self._child.stdout is None:
            raise TypeError("the worker has pipes")
        print(json.dumps([task, given], default=str), file=self._child.stdin, flush=True)
        line = self._child.stdout.readline()
        if not line:
            raise Unavailable(f"the process that did {task} ended")
        answer = json.loads(line)
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer["value"]


def disk_usage(path: Path) -> int:
    """Bytes on disk, as du counts them; what other file systems hold below is left out."""
    return int(check(["du", "-sx", "--block-size=1", str(path)]).split()[0])
