"""Containers: what was asked for, and where its writable layer is.

A container's folder is a root for the collector until it is removed. Whether its command runs is
the launcher's to say (``state/``, ``runtime.state``).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple  # Any: JSON

from layerstore.errors import ConflictError, DamagedError, NotFoundError, UsageError, is_full
from layerstore.kernel.fs import fsync_path, write_all
from layerstore.names import DiffID, Digest, ImageID
from layerstore.store.atomic import Transaction, new_id
from layerstore.store.deep import remove_tree
from layerstore.store.layout import Layout

_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class Container(NamedTuple):
    """A container's record."""

    container_id: str
    name: str
    image_id: ImageID
    image_name: str
    """What the user called the image."""
    diff_ids: tuple[DiffID, ...]
    """The layers below the upper directory, bottom first."""
    created: str
    """RFC 3339."""
    argv: tuple[str, ...]
    driver: str
    xattr_prefix: str
    """The namespace of overlayfs' marks in ``upper``: how it was mounted, and must be read."""
    ephemeral: bool
    """Removed when the command ends; its writable layer is never flushed."""


class Containers:
    """Makes, reads and removes container records."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def path(self, container_id: str) -> Path:
        return self._layout.container(container_id)

    def ids(self) -> list[str]:
        return sorted(os.listdir(self._layout.folder("containers")))

    def get(self, container_id: str) -> Container:
        """Raises NotFoundError or DamagedError."""
        try:
            raw = (self.path(container_id) / "config.json").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"there is no container {container_id}") from None
        try:
            fields = _unseal(raw)
            fields["image_id"] = ImageID.parse(fields["image_id"])
            fields["diff_ids"] = tuple(DiffID.parse(text) for text in fields["diff_ids"])
            fields["argv"] = tuple(fields["argv"])
            return Container(**fields)
        except (ValueError, TypeError, KeyError, AttributeError, UsageError):
            raise DamagedError(
                f"the record of container {container_id} is damaged",
                hint=f"remove the container with layerstore rm {container_id}",
            ) from None

    def all(self) -> list[Container]:
        """Those whose record can be read: fsck reports the others, and ``remove`` takes them."""
        found = []
        for container_id in self.ids():
            with suppress(NotFoundError, DamagedError):  # not found: removed meanwhile
                found.append(self.get(container_id))
        return found

    def is_lost(self, container_id: str) -> bool:
        """Whether a power cut took the record of a container that nobody meant to keep."""
        try:
            self.get(container_id)
        except NotFoundError:
            return False
        except DamagedError:
            return (self.path(container_id) / "ephemeral").exists()
        return False

    def find(self, name: str) -> str:
        """The id of the container that a user means: a name, an id, or its first digits."""
        target = _try_readlink(self._layout.folder("names") / name) if _is_name(name) else None
        ids = self.ids()
        if target in ids:
            return target
        matches = [container_id for container_id in ids if name and container_id.startswith(name)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UsageError(f"{name!r} fits {len(matches)} containers", hint="give more digits")
        raise NotFoundError(
            f"there is no container {name!r}", hint="layerstore ps -a lists the containers"
        )

    def create(self, transaction: Transaction, container: Container) -> Path:
        """The container's folder, with an empty ``upper``, ``work`` and ``state``.

        The image must be leased by ``transaction``. Raises ConflictError if the name is taken.
        """
        if not _is_name(container.name):
            raise UsageError(
                f"{container.name!r} is not a container name",
                hint="use letters, digits and _ . -, beginning with a letter or digit",
            )
        folder = transaction.stage_directory(f"container-{container.container_id}")
        for name in ("upper", "work", "state"):
            (folder / name).mkdir(0o755 if name == "upper" else 0o700)
        if container.ephemeral:
            # Not flushed, but a name outlives a power cut that its unflushed record does not.
            (folder / "ephemeral").touch(0o600)
        fd = os.open(
            folder / "config.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        try:
            write_all(fd, _seal(container._asdict()))
            if not container.ephemeral:
                os.fsync(fd)
        finally:
            os.close(fd)
        if not container.ephemeral:
            fsync_path(folder)
        final = self.path(container.container_id)
        with self._names_locked():
            self._reserve(container.name, container.container_id)
            try:
                folder.rename(final)
            except BaseException:
                self._release(container.name, container.container_id)
                raise
        if not container.ephemeral:
            fsync_path(self._layout.folder("containers"))
            fsync_path(self._layout.folder("names"))
        return final

    @contextmanager
    def _names_locked(self) -> Iterator[None]:
        """Nobody else takes or frees a name: a name without a folder is a crash's, then."""
        fd = os.open(self._layout.folder("names"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _reserve(self, name: str, container_id: str) -> None:
        link = self._layout.folder("names") / name
        owner = _try_readlink(link)
        if owner is not None:
            if self.path(owner).exists():
                raise ConflictError(
                    f"the container name {name!r} is taken",
                    hint=f"remove that container with layerstore rm {name}, "
                    "or choose another --name",
                )
            link.unlink()
        link.symlink_to(container_id)

    def _release(self, name: str, container_id: str) -> None:
        link = self._layout.folder("names") / name
        if _try_readlink(link) == container_id:
            link.unlink(missing_ok=True)

    def _names_of(self, container_id: str) -> list[str]:
        links = self._layout.folder("names")
        return [name for name in os.listdir(links) if _try_readlink(links / name) == container_id]

    def remove(self, container_id: str) -> None:
        """The container is gone, its writable layer too. The caller has seen that it is stopped.

        One rename out of ``containers/`` decides; what a crash leaves in ``trash/`` the next open
        removes.
        """
        is_ephemeral = False
        try:
            container = self.get(container_id)
            names, is_ephemeral = [container.name], container.ephemeral
        except DamagedError:
            names = self._names_of(container_id)
        trash = self._layout.folder("trash") / f"{container_id}-{new_id()}"
        with self._names_locked():
            try:
                self._move_to(trash, container_id)
            except FileNotFoundError:
                raise NotFoundError(f"there is no container {container_id}") from None
            for name in names:
                self._release(name, container_id)
        if not is_ephemeral:  # one that a power cut brings back is removed at the next collection
            fsync_path(self._layout.folder("containers"))
        remove_tree(trash)

    def forget_lost_names(self) -> None:
        """No name leads to a container that is not there."""
        links = self._layout.folder("names")
        with self._names_locked():
            for name in os.listdir(links):
                owner = _try_readlink(links / name)
                if owner is not None and not self.path(owner).exists():
                    (links / name).unlink()

    def repair_names(self) -> None:
        """Each container has its name, and no name leads nowhere."""
        self.forget_lost_names()
        with self._names_locked():
            for container in self.all():
                link = self._layout.folder("names") / container.name
                if _try_readlink(link) is None:
                    link.symlink_to(container.container_id)

    def _move_to(self, trash: Path, container_id: str) -> None:
        try:
            self.path(container_id).rename(trash)
        except OSError as error:
            if not is_full(error):
                raise
            # Even a name may need a block: that is what the ballast is for.
            (self._layout.root / "ballast").unlink(missing_ok=True)
            self.path(container_id).rename(trash)


def _seal(fields: dict[str, Any]) -> bytes:
    """JSON in which the last key is the sha256 of the JSON without it."""
    digest = Digest.of(json.dumps(fields).encode())
    return json.dumps({**fields, "seal": digest}).encode()


def _unseal(raw: bytes) -> dict[str, Any]:
    """The fields. Raises ValueError or KeyError if a bit is another than was written."""
    fields: dict[str, Any] = json.loads(raw)
    seal = fields.pop("seal")
    if seal != Digest.of(json.dumps(fields).encode()):
        raise ValueError("the seal is another's")
    return fields


def _is_name(name: str) -> bool:
    return bool(name) and len(name) <= 128 and name[0].isalnum() and _NAME.issuperset(name)


def _try_readlink(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
