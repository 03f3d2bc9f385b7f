"""Images that are mounted on host directories, so that a collector leaves them alone."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from layerstore.kernel.process import boot_id
from layerstore.names import DiffID, MalformedName
from layerstore.store.atomic import new_id, replace_file
from layerstore.store.layout import Layout


@dataclass(frozen=True, slots=True)
class Mounted:
    """A record of ``mounts/``."""

    mount_id: str
    target: Path
    image_name: str
    diff_ids: tuple[DiffID, ...]
    boot_id: str


def record(layout: Layout, target: Path, image_name: str, diff_ids: tuple[DiffID, ...]) -> Mounted:
    """The mount is on record; mount it after this, not before."""
    mounted = Mounted(new_id(), target, image_name, diff_ids, boot_id())
    document = {
        "target": os.fspath(target),
        "image_name": image_name,
        "diff_ids": list(diff_ids),
        "boot_id": mounted.boot_id,
    }
    replace_file(layout, layout.folder("mounts") / mounted.mount_id, json.dumps(document).encode())
    return mounted


def forget(layout: Layout, mounted: Mounted) -> None:
    (layout.folder("mounts") / mounted.mount_id).unlink(missing_ok=True)


def all_mounted(layout: Layout) -> list[Mounted]:
    """Mounts of this boot; records of earlier ones are removed."""
    found = []
    for mount_id in sorted(os.listdir(layout.folder("mounts"))):
        path = layout.folder("mounts") / mount_id
        try:
            fields = json.loads(path.read_bytes())
            mounted = Mounted(
                mount_id,
                Path(fields["target"]),
                fields["image_name"],
                tuple(DiffID.parse(text) for text in fields["diff_ids"]),
                fields["boot_id"],
            )
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, KeyError, MalformedName):
            # Whole when it got its name, so a power cut took it, and the mount with it.
            path.unlink(missing_ok=True)
            continue
        if mounted.boot_id == boot_id():
            found.append(mounted)
        else:
            path.unlink(missing_ok=True)
    return found


def mounted_stacks(layout: Layout) -> set[tuple[DiffID, ...]]:
    return {mounted.diff_ids for mounted in all_mounted(layout)}
