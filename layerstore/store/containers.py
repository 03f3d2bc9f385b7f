"""Containers: what was asked for, and where its writable layer is.

A container's folder is a root for the collector until it is removed. Whether its command runs is
the launcher's to say (``state/``, ``runtime.state``).
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from layerstore.errors import ConflictError, DamagedError, NotFoundError, UsageError
from layerstore.kernel.fs import fsync_path, write_all
from layerstore.names import DiffID, ImageID
from layerstore.store.atomic import Transaction, new_id
from layerstore.store.layout import Layout

_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


@dataclass(frozen=True, slots=True)
class Container:
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
            fields = json.loads(raw)
            fields["image_id"] = ImageID.parse(fields["image_id"])
            fields["diff_ids"] = tuple(DiffID.parse(text) for text in fields["diff_ids"])
            fields["argv"] = tuple(fields["argv"])
            return Container(**fields)
        except (ValueError, TypeError, KeyError, UsageError):
            raise DamagedError(
                f"the record of container {container_id} is damaged",
                hint=f"remove the container with layerstore rm {container_id}",
            ) from None

    def all(self) -> list[Container]:
        found = []
        for container_id in self.ids():
            try:
                found.append(self.get(container_id))
            except NotFoundError:
                continue  # removed meanwhile
        return found

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
        folder = transaction.stage_directory(f"container-{container.container_id}")
        for name in ("upper", "work", "state"):
            (folder / name).mkdir(0o755 if name == "upper" else 0o700)
        fields = asdict(container)
        fd = os.open(
            folder / "config.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        try:
            write_all(fd, json.dumps(fields).encode())
            if not container.ephemeral:
                os.fsync(fd)
        finally:
            os.close(fd)
        self._reserve(container.name, container.container_id)
        try:
            if not container.ephemeral:
                fsync_path(folder)
            final = folder.rename(self.path(container.container_id))
            if not container.ephemeral:
                fsync_path(self._layout.folder("containers"))
        except BaseException:
            self._release(container.name, container.container_id)
            raise
        return final

    def _reserve(self, name: str, container_id: str) -> None:
        if not _is_name(name):
            raise UsageError(
                f"{name!r} is not a container name",
                hint="use letters, digits and _ . -, beginning with a letter or digit",
            )
        link = self._layout.folder("names") / name
        for _ in range(3):
            try:
                link.symlink_to(container_id)
                return
            except FileExistsError:
                owner = _try_readlink(link)
                if owner is not None and self.path(owner).exists():
                    break
                # A crash between the name and the folder, or between their removals.
                link.unlink(missing_ok=True)
        raise ConflictError(
            f"the container name {name!r} is taken",
            hint=f"remove that container with layerstore rm {name}, or choose another --name",
        )

    def _release(self, name: str, container_id: str) -> None:
        link = self._layout.folder("names") / name
        if _try_readlink(link) == container_id:
            link.unlink(missing_ok=True)

    def remove(self, container_id: str) -> None:
        """The container is gone, its writable layer too. The caller has seen that it is stopped.

        One rename out of ``containers/`` decides; what a crash leaves in ``trash/`` the next open
        removes.
        """
        name = None
        try:
            name = self.get(container_id).name
        except DamagedError:
            links = self._layout.folder("names")
            for candidate in os.listdir(links):
                if _try_readlink(links / candidate) == container_id:
                    name = candidate
        trash = self._layout.folder("trash") / f"{container_id}-{new_id()}"
        try:
            self.path(container_id).rename(trash)
        except FileNotFoundError:
            raise NotFoundError(f"there is no container {container_id}") from None
        if name is not None:
            self._release(name, container_id)
        fsync_path(self._layout.folder("containers"))
        remove_tree(trash)


def _is_name(name: str) -> bool:
    return bool(name) and len(name) <= 128 and name[0].isalnum() and _NAME.issuperset(name)


def _try_readlink(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def remove_tree(path: Path) -> None:
    """Everything at ``path`` is unlinked, folders without permissions too; what is gone is fine."""

    def unlock(function: object, failed: str, _: object) -> None:
        parent = os.path.dirname(failed)
        for directory in (parent, failed):
            if os.path.isdir(directory) and not os.path.islink(directory):
                os.chmod(directory, 0o700)
        if os.path.isdir(failed) and not os.path.islink(failed):
            shutil.rmtree(failed, ignore_errors=True)
        elif os.path.lexists(failed):
            os.unlink(failed)

    shutil.rmtree(path, onerror=unlock)
