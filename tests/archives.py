"""Image archives made by hand, with nothing of ours but the names of digests."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

from layerstore.store.store import Store

# Any: JSON values, well-formed or not.
Json = dict[str, Any]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def tar_of(files: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    """A tar as GNU tar writes it; contents, or whole entries without content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def link(target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def packed(tar: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(tar, mtime=0)
    if compression == "zstd":
        return zstandard.ZstdCompressor().compress(tar)
    return tar


def config_of(layers: Sequence[bytes], **fields: object) -> bytes:
    """The config of an image of these layer tars."""
    document: Json = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
    }
    return json.dumps(document | fields).encode()


class Layout:
    """An OCI layout in memory; whatever is changed before it is written stays wrong."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
        self.index: list[Json] = []

    def blob(self, content: bytes, media_type: str, **fields: object) -> Json:
        digest = sha256(content)
        self.files[f"blobs/sha256/{digest[7:]}"] = content
        return {"mediaType": media_type, "digest": digest, "size": len(content)} | fields

    def image(
        self,
        layers: Sequence[bytes],
        *,
        compression: str = "none",
        config: bytes | None = None,
        layer_type: str = LAYER,
        config_type: str = CONFIG,
        **fields: object,
    ) -> Json:
        """The descriptor of the manifest of these layer tars."""
        manifest = {
            "schemaVersion": 2,
            "config": self.blob(config or config_of(layers), config_type),
            "layers": [self.blob(packed(layer, compression), layer_type) for layer in layers],
        }
        return self.blob(json.dumps(manifest).encode(), MANIFEST, **fields)

    def nested(self, descriptors: list[Json], **fields: object) -> Json:
        document = {"schemaVersion": 2, "manifests": descriptors}
        return self.blob(json.dumps(document).encode(), INDEX, **fields)

    def all_files(self) -> dict[str, bytes]:
        index = json.dumps({"schemaVersion": 2, "manifests": self.index}).encode()
        return {"index.json": index} | self.files

    def write(self, path: Path) -> Path:
        """A tar where the path ends in .tar, else a directory."""
        if path.suffix == ".tar":
            path.write_bytes(tar_of(self.all_files()))
            return path
        for name, content in self.all_files().items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        return path


def named(tag: str) -> Json:
    return {"annotations": {REF_NAME: tag}}


def docker_files(
    layers: Mapping[str, bytes | tarfile.TarInfo],
    *,
    tags: Sequence[str] | None,
    config: bytes,
) -> dict[str, bytes | tarfile.TarInfo]:
    """The files of a ``docker save`` archive; ``layers`` by name, bottom first."""
    config_name = f"{sha256(config)[7:]}.json"
    manifest = [{"Config": config_name, "RepoTags": tags, "Layers": list(layers)}]
    return {
        **layers,
        config_name: config,
        "manifest.json": json.dumps(manifest).encode(),
    }


def contents_of(store: Store) -> list[str]:
    """Whatever an import could leave in a store: objects, records, names, staging and leases."""
    root = store.layout.root
    folders = ("objects", "layers", "images", "refs", "tmp", "leases", "quarantine", "trash")
    return sorted(
        str(path.relative_to(root))
        for folder in folders
        for path in (root / folder).rglob("*")
        if not (folder == "objects" and path.is_dir())
    )
