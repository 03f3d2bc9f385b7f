"""Every path of a store, and what it is the truth of.

::

    FORMAT                         format version and feature flags, see below
    objects/.layerstore/ab/cdef…   file contents: sha256 split 2 + 62. Immutable. The 256 folders
                                   are made once and never removed
    layers/<diff_id>/entries       the layer's entries (formats.entries)
    layers/<diff_id>/tarsplit      what regenerates a foreign tar bit for bit (store.tarsplit);
                                   absent where the tar is the canonical one
    images/<image id>              the OCI config JSON; its sha256 is the name
    refs/<name>                    one image id and a newline. ROOT. The commit point of everything
    containers/<id>/               ROOT. A container:
        config.json                  what was asked for, and the image id
        upper/ work/                 its writable layer
        state/                       the launcher's: state, lock, log, stubs
        ephemeral                    there if nobody meant to keep it: its record is not flushed
    names/<name>                   symlink to a container's id; changed under a lock on the folder
    mounts/<id>                    ROOT until unmounted or rebooted. A view of an image on the host
    cache/<step key>               a build step's record. Weak: keeps nothing alive
    trees/<key>/                   a lower directory of the stacked driver (store.trees).
                                   Derived; files are hard links or clones of objects
    composed/<chain id>.…          merged EROFS images of the composed driver (store.composed).
                                   Derived
    leases/<txid>                  a running transaction's digests. ROOT while its flock is held
    tmp/<txid>/                    staging of one transaction
    trash/                         unreferenced, waiting for unlink
    quarantine/                    damaged things set aside
    derived/                       tables that can be made again
    gate lock gc                   lock files, in this order (store.locks)
    ballast                        given up when the disk is full, so that rm and gc can work

``FORMAT`` is JSON: ``{"layerstore": 1, "compat": [], "ro_compat": [], "incompat": []}``. A store of
a higher version, or with an unknown ``incompat`` flag, is not opened; with an unknown
``ro_compat`` flag it is not written; an unknown ``compat`` flag means nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from layerstore.errors import DamagedError, HostError
from layerstore.names import DiffID, Digest, ImageID, ImageRef

VERSION = 1
KNOWN_INCOMPAT: frozenset[str] = frozenset()
KNOWN_RO_COMPAT: frozenset[str] = frozenset()

RESERVED_OBJECT_FOLDER = ".layerstore"
BALLAST_BYTES = 4 << 20

DIRECTORIES = (
    "layers", "images", "refs", "containers", "names", "mounts", "cache", "trees", "composed",
    "leases", "tmp", "trash", "quarantine", "derived",
)  # fmt: skip


class Layout(NamedTuple):
    """The paths of the store at ``root``."""

    root: Path

    @property
    def format_file(self) -> Path:
        return self.root / "FORMAT"

    @property
    def data_root(self) -> Path:
        """What the composed driver uses as its data-only lower directory."""
        return self.root / "objects"

    @property
    def objects(self) -> Path:
        return self.root / "objects" / RESERVED_OBJECT_FOLDER

    def object(self, digest: Digest) -> Path:
        return self.objects / digest[7:9] / digest[9:]

    def layer(self, diff_id: DiffID) -> Path:
        return self.root / "layers" / diff_id.hex

    def image(self, image_id: ImageID) -> Path:
        return self.root / "images" / image_id.hex

    def ref(self, ref: ImageRef) -> Path:
        return self.root / "refs" / quote_name(str(ref))

    def container(self, container_id: str) -> Path:
        return self.root / "containers" / container_id

    def tree(self, key: str) -> Path:
        return self.root / "trees" / key

    def cache(self, key: Digest) -> Path:
        return self.root / "cache" / key.hex

    def folder(self, name: str) -> Path:
        """One of DIRECTORIES."""
        return self.root / name


def quote_name(name: str) -> str:
    """A name as one path component; ``unquote_name`` gives it back."""
    return "".join([char if char in _PLAIN else _percent(char) for char in name])


def _percent(char: str) -> str:
    return "".join([f"%{byte:02X}" for byte in char.encode("utf-8", "surrogateescape")])


def unquote_name(component: str) -> str:
    if "%" not in component:
        return component
    from urllib.parse import unquote  # only listings ask; a run must not pay for it

    return unquote(component)


_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~:@+")
_HEX = frozenset("0123456789abcdef")


def is_digits(name: str) -> bool:
    """Whether a file has the name that a digest gives: 64 hex digits."""
    return len(name) == 64 and _HEX.issuperset(name)


def emit_format() -> bytes:
    flags: dict[str, object] = {
        "layerstore": VERSION,
        "compat": [],
        "ro_compat": sorted(KNOWN_RO_COMPAT),
        "incompat": sorted(KNOWN_INCOMPAT),
    }
    return json.dumps(flags).encode() + b"\n"


def check_format(raw: bytes, root: Path) -> None:
    """Returns if this version may write the store. Raises HostError or DamagedError."""
    if raw == _CURRENT:  # the ordinary case, without parsing
        return
    try:
        fields = json.loads(raw)
        version = int(fields["layerstore"])
        incompat = set(fields.get("incompat", ()))
        ro_compat = set(fields.get("ro_compat", ()))
    except (ValueError, TypeError, KeyError):
        raise DamagedError(
            f"{root}/FORMAT says nothing that layerstore understands",
            hint="choose another --root if this directory is not a store",
        ) from None
    strange = (incompat - KNOWN_INCOMPAT) | (ro_compat - KNOWN_RO_COMPAT)
    if version > VERSION or strange:
        features = f", features {', '.join(sorted(strange))}" if strange else ""
        raise HostError(
            f"the store {root} has format {version}{features}; this layerstore knows format "
            f"{VERSION}",
            hint="use the layerstore that made it, or a newer one",
        )


_CURRENT = emit_format()
