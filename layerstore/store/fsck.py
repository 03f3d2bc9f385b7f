"""Whether the store is what it says it is, and whom it concerns where it is not.

A check reads and never raises on damage: each problem names what is wrong, the images and
containers that it affects, and what to do. A repair moves what is damaged to ``quarantine/``, so
that importing or building the image again heals it; it removes no image and no container.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerstore.errors import DamagedError, FormatError, LayerstoreError, NotFoundError
from layerstore.formats.entries import Entry, Extents
from layerstore.kernel.fs import data_extents
from layerstore.names import DiffID, Digest, ImageID
from layerstore.store import locks, tarsplit
from layerstore.store.atomic import leases
from layerstore.store.containers import Container
from layerstore.store.layout import DIRECTORIES, is_digits
from layerstore.store.objects import canonical_extents, digest_of_file
from layerstore.store.quarantine import set_aside, set_aside_trees
from layerstore.store.refs import is_ref
from layerstore.store.store import Store

_AGAIN = "import, load or build it again"
_SET_ASIDE = f"set it aside with layerstore fsck --repair, then {_AGAIN}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    kind: str
    """``object-missing``, ``object-damaged``, ``layer-missing``, ``layer-damaged``,
    ``image-missing``, ``image-damaged``, ``name-damaged``, ``container-damaged``,
    ``container-name`` or ``orphan``."""
    subject: str
    detail: str
    affects: tuple[str, ...]
    """Names of images, or ``container NAME``."""
    hint: str
    path: str | None = None
    """What a repair sets aside, relative to the store."""
    inode: int = 0

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        return {
            "kind": self.kind, "subject": self.subject, "detail": self.detail,
            "affects": list(self.affects), "hint": self.hint,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found."""

    problems: tuple[Problem, ...]
    images: int
    layers: int
    objects: int
    read_data: bool
    """Whether contents were read, or only names, sizes and records."""

    @property
    def is_clean(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        return {
            "clean": self.is_clean,
            "read_data": self.read_data,
            "images": self.images,
            "layers": self.layers,
            "objects": self.objects,
            "problems": [problem.to_json() for problem in self.problems],
        }


def check(store: Store, *, read_data: bool = False) -> Report:
    """Names, sizes, references and unowned files; with ``read_data`` every byte, too."""
    return _Check(store, read_data).run()


@dataclass(slots=True)
class _Expected:
    """What layers say of an object."""

    size: int
    extents: Extents | None
    layers: list[DiffID]


class _Check:
    def __init__(self, store: Store, read_data: bool) -> None:
        self._store = store
        self._layout = store.layout
        self._read_data = read_data
        self._problems: list[Problem] = []
        self._users: dict[ImageID, list[str]] = {}
        self._layer_users: dict[DiffID, set[str]] = {}
        self._expected: dict[Digest, _Expected] = {}
        self._bad_layers: set[DiffID] = set()
        self._counts = [0, 0, 0]

    def run(self) -> Report:
        self._check_folders()
        self._check_refs()
        containers = list(self._containers())
        self._check_images()
        for container in containers:
            self._check_stack(container.diff_ids, f"container {container.name}")
        self._check_layers()
        self._check_objects()
        if self._read_data:
            self._check_tars()
        images, layers, objects = self._counts
        return Report(tuple(self._problems), images, layers, objects, self._read_data)

    def _add(
        self,
        kind: str,
        subject: str,
        detail: str,
        affects: Iterator[str] | set[str] | list[str],
        hint: str,
        path: Path | None = None,
    ) -> None:
        inode = 0
        if path is not None:
            try:
                inode = path.lstat().st_ino
            except OSError:
                return  # removed meanwhile
        relative = os.fspath(path.relative_to(self._layout.root)) if path else None
        self._problems.append(
            Problem(kind, subject, detail, tuple(sorted(affects)), hint, relative, inode)
        )

    # -- names and records -------------------------------------------------------------------

    def _check_folders(self) -> None:
        """Every name in the store is one that the layout knows."""
        known = {*DIRECTORIES, "objects", "FORMAT", "gate", "lock", "gc", "ballast", "lost+found"}
        root = self._layout.root
        rules: list[tuple[Path, Callable[[str, Path], bool]]] = [
            (root, lambda name, _: name in known),
            (root / "objects", lambda name, _: name == self._layout.objects.name),
            (self._layout.objects, lambda name, path: len(name) == 2 and path.is_dir()),
            (root / "images", lambda name, path: is_digits(name) and path.is_file()),
            (root / "layers", lambda name, path: is_digits(name) and path.is_dir()),
            (root / "trees", lambda name, path: is_digits(name) and path.is_dir()),
            (root / "refs", lambda name, path: is_ref(name) and path.is_file()),
            (root / "containers", lambda _, path: path.is_dir()),
            (root / "names", lambda _, path: path.is_symlink()),
        ]
        for folder, is_ours in rules:
            try:
                names = sorted(os.listdir(folder))
            except OSError as error:
                self._add(
                    "orphan", os.fspath(folder), f"it cannot be listed: {error.strerror}", [],
                    "restore the directory",
                )  # fmt: skip
                continue
            for name in names:
                if not is_ours(name, folder / name):
                    self._orphan(folder / name)

    def _orphan(self, path: Path) -> None:
        self._add(
            "orphan", os.fspath(path.relative_to(self._layout.root)),
            "no part of the store owns it", [],
            "remove it, or set it aside with layerstore fsck --repair", path,
        )  # fmt: skip

    def _check_refs(self) -> None:
        for ref in self._store.refs.names():
            try:
                image_id = self._store.refs.get(ref)
            except (DamagedError, OSError) as error:
                self._add(
                    "name-damaged", str(ref), str(error), [str(ref)], _SET_ASIDE,
                    self._layout.ref(ref),
                )  # fmt: skip
                continue
            if image_id is None:
                continue
            if not self._layout.image(image_id).exists() and self._store.refs.get(ref) == image_id:
                self._add(
                    "image-missing", image_id, f"the name {ref} means an image that is not there",
                    [str(ref)], f"{_AGAIN}, or remove the name with layerstore rmi {ref}",
                )  # fmt: skip
            self._users.setdefault(image_id, []).append(str(ref))

    def _containers(self) -> Iterator[Container]:
        names = self._layout.folder("names")
        for container_id in self._store.containers.ids():
            try:
                container = self._store.containers.get(container_id)
            except NotFoundError:
                continue
            except DamagedError as error:
                lost = self._store.containers.is_lost(container_id)
                self._add(
                    "container-damaged", container_id, error.brief, [f"container {container_id}"],
                    "run layerstore gc" if lost else error.hint or "",
                )  # fmt: skip
                continue
            label = f"container {container.name}"
            self._users.setdefault(container.image_id, []).append(label)
            try:
                found = os.readlink(names / container.name)
            except OSError:
                found = None
            if found != container_id:
                self._add(
                    "container-name", container.name, f"it does not lead to {container_id}",
                    [label], "run layerstore fsck --repair",
                )  # fmt: skip
            if not self._layout.image(container.image_id).exists():
                self._add(
                    "image-missing", container.image_id, f"{label} was made of it", [label], _AGAIN
                )
            yield container
        for name in sorted(os.listdir(names)):
            target = names / name
            if target.is_symlink() and not self._layout.container(os.readlink(target)).exists():
                self._add(
                    "container-name", name, "it leads to a container that is not there", [],
                    "it is free to be used again, or run layerstore fsck --repair", target,
                )  # fmt: skip

    def _check_images(self) -> None:
        for image_id in self._store.images.all():
            self._counts[0] += 1
            users = self._users.get(image_id, [])
            try:
                image = self._store.images.get(image_id)
            except NotFoundError:
                continue
            except (DamagedError, FormatError, OSError) as error:
                self._add(
                    "image-damaged", image_id, str(error), users, _SET_ASIDE,
                    self._layout.image(image_id),
                )  # fmt: skip
                continue
            for user in users or [f"an image without a name, {image_id.short}"]:
                self._check_stack(image.diff_ids, user, image_id)

    def _check_stack(
        self, diff_ids: tuple[DiffID, ...], user: str, image_id: ImageID | None = None
    ) -> None:
        for diff_id in diff_ids:
            self._layer_users.setdefault(diff_id, set()).add(user)
            is_there = self._store.layers.has(diff_id)
            if not is_there and (image_id is None or self._layout.image(image_id).exists()):
                self._bad_layers.add(diff_id)
                self._add("layer-missing", diff_id, "it is not in the store", [user], _AGAIN)

    def _check_layers(self) -> None:
        for diff_id in self._store.layers.all():
            self._counts[1] += 1
            folder = self._layout.layer(diff_id)
            try:
                entries = self._store.layers.entries(diff_id)
            except (LayerstoreError, OSError) as error:
                self._bad_layer(diff_id, str(error))
                continue
            split = folder / "tarsplit"
            if split.exists() and not tarsplit.is_whole(split):
                self._bad_layer(diff_id, "what gives its tar back bit for bit is damaged")
            for name in sorted(set(os.listdir(folder)) - {"entries", "tarsplit"}):
                self._orphan(folder / name)
            for entry in entries:
                if entry.digest is not None:
                    self._expect(entry.digest, entry, diff_id)

    def _bad_layer(self, diff_id: DiffID, detail: str) -> None:
        self._bad_layers.add(diff_id)
        self._add(
            "layer-damaged", diff_id, detail, self._layer_users.get(diff_id, set()), _SET_ASIDE,
            self._layout.layer(diff_id),
        )  # fmt: skip

    def _expect(self, digest: Digest, entry: Entry, diff_id: DiffID) -> None:
        expected = self._expected.get(digest)
        if expected is None:
            self._expected[digest] = _Expected(entry.size, entry.extents, [diff_id])
        elif expected.layers[-1] != diff_id:
            expected.layers.append(diff_id)

    # -- contents ----------------------------------------------------------------------------

    def _check_objects(self) -> None:
        missing = dict(self._expected)
        for digest, status in self._store.objects.all():
            self._counts[2] += 1
            detail = self._flaw_of(digest, status, missing.pop(digest, None))
            if detail is not None:
                self._bad_object("object-damaged", digest, detail, self._layout.object(digest))
        for prefix in range(256):
            folder = self._layout.objects / f"{prefix:02x}"
            with suppress(OSError):
                for name in os.listdir(folder):
                    if not is_digits(folder.name + name):
                        self._orphan(folder / name)
        for digest, expected in missing.items():
            # Looked at once more: it may have been collected, or healed, since.
            is_wanted = any(self._store.layers.has(diff_id) for diff_id in expected.layers)
            if is_wanted and not self._layout.object(digest).exists():
                self._bad_object("object-missing", digest, "it is not in the store", None)

    def _bad_object(self, kind: str, digest: Digest, detail: str, path: Path | None) -> None:
        expected = self._expected.get(digest)
        layers = expected.layers if expected is not None else []
        self._bad_layers.update(layers)
        users = {user for diff_id in layers for user in self._layer_users.get(diff_id, ())}
        self._add(kind, digest, detail, users, _SET_ASIDE if path else _AGAIN, path)

    def _flaw_of(
        self, digest: Digest, status: os.stat_result, expected: _Expected | None
    ) -> str | None:
        if not stat.S_ISREG(status.st_mode):
            return "it is not a file"
        if expected is not None and status.st_size != expected.size:
            return f"it has {status.st_size} bytes instead of {expected.size}"
        if not status.st_size:
            return "it is empty"
        if not self._read_data:
            return None
        try:
            fd = os.open(self._layout.object(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None  # collected meanwhile
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        try:
            if self._is_named(fd, status.st_size, digest, expected):
                return None
            return "its content is not what its name says"
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        finally:
            os.close(fd)

    def _is_named(self, fd: int, size: int, digest: Digest, expected: _Expected | None) -> bool:
        if expected is not None:
            return digest_of_file(fd, expected.extents) == digest
        # No layer says whether it is a sparse file, and with which map.
        maps = (None, canonical_extents(fd, size), tuple(data_extents(fd, size)))
        return any(digest_of_file(fd, extents) == digest for extents in maps)

    def _check_tars(self) -> None:
        """Layers whose parts are all sound give the tar that they are named after."""
        for diff_id in self._store.layers.all():
            if diff_id in self._bad_layers:
                continue
            try:
                for _ in self._store.layers.tar(diff_id):
                    pass
            except NotFoundError:
                continue
            except (LayerstoreError, OSError) as error:
                self._bad_layer(diff_id, str(error))


def repair(store: Store, report: Report) -> tuple[Problem, ...]:
    """What the report found damaged is in ``quarantine/``; the problems that this ended.

    What has changed since the check, and what a running transaction counts on, is left alone. A
    damaged container and a name of a missing image stay: only their owner can tell what they were.
    """
    done = []
    with locks.collecting(store.layout.root):
        leased: set[str] = set().union(*leases(store.layout))
        for problem in report.problems:
            if problem.path is None or problem.kind == "container-name":
                continue
            if problem.subject in leased:
                continue
            path = store.layout.root / problem.path
            with suppress(OSError):
                if path.lstat().st_ino != problem.inode:
                    continue
                if problem.kind == "object-damaged":
                    set_aside_trees(store.layout, path)
                set_aside(store.layout, path)
                done.append(problem)
    store.containers.repair_names()
    done += [problem for problem in report.problems if problem.kind == "container-name"]
    return tuple(done)
