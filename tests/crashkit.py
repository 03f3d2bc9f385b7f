"""Killing the driver at a chosen call to the kernel, and judging what it leaves."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import crash_driver as driver
from storekit import du

from layerstore.errors import LayerstoreError
from layerstore.store import fsck
from layerstore.store.store import Store

MUTATING = (
    "openat", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat", "symlink",
    "symlinkat", "unlink", "unlinkat", "rmdir", "write", "pwrite64", "ftruncate", "truncate",
    "fallocate", "chmod", "fchmod", "fchmodat", "chown", "fchown", "fchownat", "lchown",
    "utimensat", "setxattr", "fsetxattr", "lsetxattr", "removexattr", "fremovexattr", "mknod",
    "mknodat", "copy_file_range", "fsync", "fdatasync", "syncfs",
)  # fmt: skip
SYNCS = frozenset(("fsync", "fdatasync", "syncfs"))
_LINE = re.compile(r"(?:\d+ +)?(\w+)\((.*)")


@dataclass(frozen=True)
class Point:
    """The n-th call of one kind that a command makes, if it changes the store."""

    call: str
    when: int
    text: str

    @property
    def is_sync(self) -> bool:
        return self.call in SYNCS

    def __str__(self) -> str:
        return f"{self.call} {self.when}: {self.text[:100]}"


@dataclass(frozen=True)
class Result:
    """What became of the driver."""

    is_done: bool
    """It said that the command succeeded."""
    error: str
    """The error that it reported; empty if it was killed."""
    is_clean: bool
    """It was killed, succeeded, or reported an error: it did not break down."""


# Without --seccomp-bpf: strace 6.1 injects nothing with it.
STRACE = ("strace", "-qq")


def _work(root: Path, command: str, mutation: str | None) -> str:
    """Does the command, in a child; what there is to say of it."""
    try:
        if mutation is not None:
            driver.MUTATIONS[mutation]()
        driver.COMMANDS[command](Store.open(root))
    except (LayerstoreError, OSError) as error:
        return f"error: {error}"
    except BaseException:
        return f"broken: {traceback.format_exc()}"
    return "done"


def traced(options: list[str], root: Path, command: str, mutation: str | None) -> str:
    """The command in a forked child under strace; what the child said, nothing if it was killed."""
    go_reader, go_writer = os.pipe()
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        os.read(go_reader, 1)
        os.write(writer, _work(root, command, mutation).encode())
        os._exit(0)
    os.close(writer)
    with subprocess.Popen([*STRACE, "-p", str(pid), *options], stderr=subprocess.PIPE) as strace:
        try:
            _wait_for_tracer(pid, strace)
        finally:
            os.write(go_writer, b"!")
            with os.fdopen(reader, "rb") as file:
                said = file.read().decode()
            os.waitpid(pid, 0)
            os.close(go_reader)
            os.close(go_writer)
            strace.wait()
    return said


def _wait_for_tracer(pid: int, strace: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while "\nTracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
        if strace.poll() is not None:
            raise RuntimeError(f"strace ended: {strace.stderr and strace.stderr.read()!r}")
        if time.monotonic() > deadline:
            raise TimeoutError("strace does not attach")
        time.sleep(0.001)


def points_of(root: Path, command: str, mutation: str | None = None) -> tuple[list[Point], str]:
    """Every call of a whole run that changes the store, in order; and the trace."""
    log = root.parent / f"{root.name}.trace"
    said = traced(
        ["-y", "-s", "200", "-o", str(log), "-e", f"trace={','.join(MUTATING)}"],
        root, command, mutation,
    )  # fmt: skip
    assert said == "done", said
    trace = log.read_text(errors="replace")
    log.unlink()
    counts: Counter[str] = Counter()
    points = []
    for line in trace.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        call, text = match.groups()
        counts[call] += 1
        if call == "openat" and "O_CREAT" not in text and "O_TRUNC" not in text:
            continue
        if f"{root}/" in text or f"<{root}>" in text or f'"{root}"' in text:
            points.append(Point(call, counts[call], text.replace(str(root), "")[:400]))
    assert points, f"{command} changes nothing: the harness is blind"
    return points, trace


def run_with(
    root: Path, command: str, point: Point | None, *, mutation: str | None = None,
    inject: str = "signal=KILL",
) -> Result:  # fmt: skip
    """The command with a fault at a point: killed on entry, or an error instead of the call."""
    options = ["-e", f"trace={point.call if point else 'none'}"]
    if point is not None:
        options += ["-e", f"inject={point.call}:{inject}:when={point.when}"]
    said = traced(["-o", "/dev/null", *options], root, command, mutation)
    return Result(
        said == "done",
        said.removeprefix("error: ") if said.startswith("error: ") else "",
        not said.startswith("broken: "),
    )


@dataclass(frozen=True)
class Reference:
    """What a store that never crashed looks like."""

    before: driver.State
    after: driver.State
    size: int
    """Bytes on disk after the command and a collection."""


def reference_of(root: Path, command: str) -> Reference:
    """From a pristine store, in which the command is then done."""
    store = Store.open(root)
    before = driver.state_of(store)
    driver.COMMANDS[command](store)
    after = driver.state_of(store)
    driver.do_gc(store)
    return Reference(before, after, du(root))


def judge(root: Path, command: str, reference: Reference, *, is_done: bool) -> list[str]:
    """What is wrong with a store after a crash, in words; nothing if it kept its promises."""
    flaws = []
    try:
        store = Store.open(root)
        flaws += [f"fsck: {problem}" for problem in fsck.check(store, read_data=True).problems]
        flaws += wrong_objects(store)
        state = driver.state_of(store)
        if is_done and state != reference.after:
            flaws.append(f"lost after success: {state}")
        if state not in (reference.before, reference.after):
            flaws.append(f"neither the old state nor the new one: {state}")
        for folder in ("tmp", "leases", "trash"):
            flaws += [f"left in {folder}: {name}" for name in os.listdir(root / folder)]
        flaws += heal(store, command, reference)
    except Exception as error:  # whatever a damaged store leads to is a finding
        flaws.append(f"{type(error).__name__}: {error}")
    return flaws


def heal(store: Store, command: str, reference: Reference) -> list[str]:
    """The command once more, as the user would, gives what it should; and nothing is left over."""
    flaws = []
    driver.COMMANDS[command](store)
    if driver.state_of(store) != reference.after:
        flaws.append(f"doing it again gave {driver.state_of(store)}")
    flaws += [f"not healed: {problem}" for problem in fsck.check(store, read_data=True).problems]
    driver.do_gc(store)
    size = du(store.layout.root)
    if size != reference.size:
        flaws.append(f"{size - reference.size} bytes more than a store that never crashed")
    return flaws


def wrong_objects(store: Store) -> list[str]:
    """Objects of which the content is not what the name says; no layer's word is taken for it."""
    flaws = []
    for digest, _ in store.objects.all():
        content = store.layout.object(digest).read_bytes()
        if hashlib.sha256(content).hexdigest() != digest.hex:
            flaws.append(f"the object {digest.short} has {len(content)} bytes of something else")
    return flaws


def chosen(points: list[Point], limit: int | None) -> list[Point]:
    """All of them, or so many spread evenly over the run, the last one among them."""
    if limit is None or len(points) <= limit:
        return points
    step = (len(points) - 1) / (limit - 1)
    return [points[round(step * number)] for number in range(limit)]


class Stores:
    """Copies of a pristine store, always at the same path, in memory if the host can."""

    def __init__(self, folder: Path) -> None:
        self._pristine = folder / "pristine"
        self.root = folder / "store"
        driver.make_pristine(self._pristine)

    def fresh(self) -> Path:
        subprocess.run(["rm", "-rf", self.root], check=True)
        subprocess.run(["cp", "-a", self._pristine, self.root], check=True)
        return self.root
