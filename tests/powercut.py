"""Power cuts on a real file system in a file: kill, throw away what was not flushed, look.

    powercut.py FOLDER

Reads a request (JSON) from standard input and prints a result. Run it in a mount namespace of its
own with private propagation: another one would keep the dead file system, and the next mount would
give it back as if nothing had happened.
"""

from __future__ import annotations

import fcntl
import gc as garbage
import json
import os
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import crash_driver as driver
import crashkit

GOINGDOWN = 0x8004587D
"""The shutdown ioctl of ext4 and xfs: ``_IOR('X', 125, u32)``."""

MAKE = {"ext4": ("64M", ["mkfs.ext4", "-q"]), "xfs": ("320M", ["mkfs.xfs", "-q"])}


@dataclass(frozen=True)
class Request:
    """What to try. ``mode`` 0 loses nothing, 1 keeps the journal and drops data, 2 drops both."""

    command: str
    file_system: str = "ext4"
    mode: int = 2
    mutation: str | None = None
    limit: int | None = None
    """Points at most, where flushes begin first; None: all."""
    until_wrong: bool = False


@dataclass
class Outcome:
    """How many points there were, and what was wrong at which."""

    tried: int = 0
    flaws: dict[str, list[str]] = field(default_factory=dict)


class Disk:
    """A file system in a file, always mounted at the same place."""

    def __init__(self, folder: Path, file_system: str) -> None:
        self._pristine = folder / "pristine.img"
        self._image = folder / "disk.img"
        self._mount_point = folder / "mnt"
        self._mount_point.mkdir()
        size, make = MAKE[file_system]
        _call("truncate", "-s", size, self._pristine)
        _call(*make, self._pristine)
        self._mount(self._pristine)
        driver.make_pristine(self.root)
        self._unmount(self._pristine)

    @property
    def root(self) -> Path:
        return self._mount_point / "store"

    def fresh(self) -> Path:
        """The store as it was made, on a disk that has all of it."""
        _call("cp", "--sparse=always", "--reflink=auto", self._pristine, self._image)
        fd = os.open(self._image, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        self._mount(self._image)
        return self.root

    def cut(self, mode: int) -> None:
        """The power is gone and back again."""
        fd = os.open(self._mount_point, os.O_RDONLY)
        fcntl.ioctl(fd, GOINGDOWN, struct.pack("I", mode))
        os.close(fd)
        self._unmount(self._image)
        self._mount(self._image)

    def done(self) -> None:
        garbage.collect()
        self._unmount(self._image)

    def _mount(self, image: Path) -> None:
        _call("mount", "-o", "loop", image, self._mount_point)

    def _unmount(self, image: Path) -> None:
        _call("umount", self._mount_point)
        deadline = time.monotonic() + 20
        while subprocess.run(["losetup", "-j", image], capture_output=True, check=True).stdout:
            if time.monotonic() > deadline:
                raise TimeoutError("the loop device does not go: another namespace has the mount")
            time.sleep(0.002)


def _call(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


def run(disk: Disk, request: Request) -> Outcome:
    reference = crashkit.reference_of(disk.fresh(), request.command)
    disk.done()
    points, _ = crashkit.points_of(disk.fresh(), request.command, request.mutation)
    disk.done()
    outcome = Outcome()
    for point in _order(points, request.limit):
        outcome.tried += 1
        root = disk.fresh()
        result = crashkit.run_with(root, request.command, point, mutation=request.mutation)
        disk.cut(request.mode)
        flaws = crashkit.judge(root, request.command, reference, is_done=result.is_done)
        disk.done()
        if flaws:
            outcome.flaws[str(point)] = flaws
            if request.until_wrong:
                break
    return outcome


def _order(points: list[crashkit.Point], limit: int | None) -> list[crashkit.Point | None]:
    """A cut after the end, cuts where a flush is about to begin, then the others.

    What is not flushed is most when a flush begins.
    """
    syncs = [point for point in points if point.is_sync]
    others = [point for point in points if not point.is_sync]
    if limit is None:
        return [None, *syncs, *others]
    return [None, *crashkit.chosen(syncs, limit - 1)]


def main() -> None:
    (folder,) = sys.argv[1:]
    requests = [Request(**fields) for fields in json.load(sys.stdin)]
    disks = {}
    outcomes = []
    for request in requests:
        if request.file_system not in disks:
            place = Path(folder) / request.file_system
            place.mkdir()
            disks[request.file_system] = Disk(place, request.file_system)
        outcomes.append(run(disks[request.file_system], request))
    json.dump([asdict(outcome) for outcome in outcomes], sys.stdout)


if __name__ == "__main__":
    main()
