"""OCI image documents: config, manifest and index, and docker's archive manifest.

Sources: image-spec config.md, manifest.md, image-index.md, image-layout.md; docker's image spec
v1.2 for ``docker save``. What a document says beyond the fields read here is kept: a config is
stored and given back as the bytes it came in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from layerstore.errors import FormatError
from layerstore.names import DiffID, Digest, MalformedName, Platform

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX_TYPE = "application/vnd.docker.distribution.manifest.list.v2+json"
REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"

CONFIG_TYPES = frozenset((CONFIG_TYPE, "application/vnd.docker.container.image.v1+json"))
MANIFEST_TYPES = frozenset((MANIFEST_TYPE, DOCKER_MANIFEST_TYPE))
INDEX_TYPES = frozenset((INDEX_TYPE, DOCKER_INDEX_TYPE))
LAYER_TYPES = frozenset(
    base + suffix
    for base, suffixes in (
        (LAYER_TYPE, ("", "+gzip", "+zstd")),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", ("", "+gzip", "+zstd")),
        ("application/vnd.docker.image.rootfs.diff.tar", ("", ".gzip", ".zstd")),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar", ("", ".gzip")),
    )
    for suffix in suffixes
)
"""Layers that are tars. How one is compressed its first bytes tell: media types have lied."""

MAX_DOCUMENT = 8 << 20
"""Bytes of a config or manifest that are read; registries allow 4 MiB."""

# Any: JSON values as they come.
Json = dict[str, Any]


_NONE: Mapping[str, str] = MappingProxyType({})


class OciError(FormatError):
    """A document of an image is malformed."""


class RunConfig(NamedTuple):
    """How a container of the image is started (image-spec config.md, ``config``)."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    labels: Mapping[str, str] = _NONE
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    stop_signal: str = ""


class ImageConfig(NamedTuple):
    """What layerstore reads of an image's config."""

    platform: Platform
    diff_ids: tuple[DiffID, ...]
    run: RunConfig
    created: str | None
    history: tuple[Json, ...]


class Descriptor(NamedTuple):
    """A typed reference to a blob (image-spec descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = _NONE
    platform: Platform | None = None

    def to_json(self) -> Json:
        document: Json = {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
        }
        if self.platform is not None:
            document["platform"] = platform_json(self.platform)
        if self.annotations:
            document["annotations"] = dict(sorted(self.annotations.items()))
        return document


class Manifest(NamedTuple):
    """One image: its config and its layers, bottom first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


def emit_json(document: Any) -> bytes:  # Any: any JSON value
    """Compact JSON, keys in the order given: the same document, the same digest."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def load_json(raw: bytes, *, where: str) -> Json:
    """A JSON object. Raises OciError for anything else, repeated keys included."""
    if len(raw) > MAX_DOCUMENT:
        raise OciError(f"{where} is {len(raw)} bytes long; at most {MAX_DOCUMENT} are read")
    document = _parsed(raw, where)
    if not isinstance(document, dict):
        raise OciError(f"{where} is no JSON object")
    return document


def _parsed(raw: bytes, where: str) -> Any:  # Any: a JSON value
    try:
        document = json.loads(raw, object_pairs_hook=_unique)
        if b"\\ud" in raw.lower():
            # An escaped half of a surrogate pair is no character: nothing could print it.
            emit_json(document)
    except (ValueError, RecursionError) as error:
        raise OciError(f"{where} is no JSON document: {error}") from None
    return document


def _unique(pairs: list[tuple[str, Any]]) -> Json:  # Any: JSON values
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key is there twice")
    return document


class _Reader:
    """Typed access to a document, with errors that name the place."""

    def __init__(self, document: Json, where: str) -> None:
        self.document = document
        self.where = where

    def get(self, key: str, kind: type, default: Any) -> Any:  # Any: a JSON value of ``kind``
        value = self.document.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise OciError(f"{self.where}: {key!r} is {type(value).__name__}, not {kind.__name__}")
        return value

    def need(self, key: str, kind: type) -> Any:  # Any: a JSON value of ``kind``
        value = self.get(key, kind, None)
        if value is None:
            raise OciError(f"{self.where} has no {key!r}")
        return value

    def inner(self, key: str) -> _Reader:
        return _Reader(self.get(key, dict, {}), f"{self.where}: {key}")

    def strings(self, key: str) -> tuple[str, ...]:
        values = self.get(key, list, [])
        if not all(isinstance(value, str) for value in values):
            raise OciError(f"{self.where}: {key!r} is not a list of strings")
        return tuple(values)

    def mapping(self, key: str) -> dict[str, str]:
        values = self.get(key, dict, {})
        if not all(isinstance(value, str) for value in values.values()):
            raise OciError(f"{self.where}: {key!r} is not a mapping of strings")
        return dict(values)

    def digest(self, key: str) -> Digest:
        return read_digest(self.need(key, str), self.where)


def read_digest(text: str, where: str) -> Digest:
    try:
        return Digest.parse(text)
    except MalformedName as error:
        raise OciError(f"{where}: {error.brief}", hint=error.hint) from None


def parse_config(raw: bytes, *, where: str) -> ImageConfig:
    """Raises OciError, naming ``where``, for whatever the image-spec requires and is not there."""
    reader = _Reader(load_json(raw, where=where), where)
    rootfs = reader.inner("rootfs")
    if rootfs.need("type", str) != "layers":
        raise OciError(f"{where}: rootfs.type is not 'layers'")
    diff_ids = tuple(DiffID(read_digest(text, where)) for text in rootfs.strings("diff_ids"))
    history = reader.get("history", list, [])
    if not all(isinstance(item, dict) for item in history):
        raise OciError(f"{where}: 'history' is not a list of objects")
    config = reader.inner("config")
    return ImageConfig(
        platform=Platform(
            reader.need("os", str),
            reader.need("architecture", str),
            reader.get("variant", str, None),
        ),
        diff_ids=diff_ids,
        run=RunConfig(
            entrypoint=config.strings("Entrypoint"),
            cmd=config.strings("Cmd"),
            env=config.strings("Env"),
            user=config.get("User", str, ""),
            working_dir=config.get("WorkingDir", str, ""),
            labels=config.mapping("Labels"),
            volumes=tuple(sorted(config.get("Volumes", dict, {}))),
            exposed_ports=tuple(sorted(config.get("ExposedPorts", dict, {}))),
            stop_signal=config.get("StopSignal", str, ""),
        ),
        created=reader.get("created", str, None),
        history=tuple(history),
    )


def platform_json(platform: Platform) -> Json:
    document: Json = {"architecture": platform.architecture, "os": platform.os}
    if platform.variant is not None:
        document["variant"] = platform.variant
    return document


def run_config_json(run: RunConfig) -> Json:
    """Only what is set, keys sorted."""
    document: Json = {}
    if run.cmd:
        document["Cmd"] = list(run.cmd)
    if run.entrypoint:
        document["Entrypoint"] = list(run.entrypoint)
    if run.env:
        document["Env"] = list(run.env)
    if run.exposed_ports:
        document["ExposedPorts"] = {port: {} for port in sorted(run.exposed_ports)}
    if run.labels:
        document["Labels"] = dict(sorted(run.labels.items()))
    if run.stop_signal:
        document["StopSignal"] = run.stop_signal
    if run.user:
        document["User"] = run.user
    if run.volumes:
        document["Volumes"] = {volume: {} for volume in sorted(run.volumes)}
    if run.working_dir:
        document["WorkingDir"] = run.working_dir
    return document


def emit_config(
    *,
    platform: Platform,
    diff_ids: Sequence[DiffID],
    run: Json,
    created: str,
    history: Sequence[Json],
) -> bytes:
    """An image's config: the same arguments, the same bytes, hence the same image id.

    ``run`` is the ``config`` object; see ``run_config_json``.
    """
    return emit_json(
        {
            "created": created,
            **platform_json(platform),
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": [str(diff_id) for diff_id in diff_ids]},
            "history": list(history),
        }
    )


def emit_manifest(manifest: Manifest) -> bytes:
    return emit_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": manifest.config.to_json(),
            "layers": [layer.to_json() for layer in manifest.layers],
        }
    )


LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
ARCHIVE_MANIFEST_FILE = "manifest.json"


def blob_name(digest: Digest) -> str:
    """Where an image layout keeps a blob (image-layout.md)."""
    return f"blobs/sha256/{digest.hex}"


def emit_layout() -> bytes:
    return emit_json({"imageLayoutVersion": "1.0.0"})


def check_layout(raw: bytes, *, where: str) -> None:
    """Raises OciError unless it is the ``oci-layout`` file of a version that is known."""
    version = _Reader(load_json(raw, where=where), where).need("imageLayoutVersion", str)
    if version != "1.0.0":
        raise OciError(f"{where}: the version {version!r} of the image layout is unknown")


def emit_index(manifests: Sequence[Descriptor]) -> bytes:
    return emit_json(
        {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [descriptor.to_json() for descriptor in manifests],
        }
    )


def parse_descriptor(document: Any, *, where: str) -> Descriptor:  # Any: JSON from outside
    if not isinstance(document, dict):
        raise OciError(f"{where} is no descriptor")
    reader = _Reader(document, where)
    size = reader.need("size", int)
    if size < 0:
        raise OciError(f"{where}: a negative size")
    platform = None
    if reader.get("platform", dict, None) is not None:
        inner = reader.inner("platform")
        platform = Platform(
            inner.get("os", str, ""),
            inner.get("architecture", str, ""),
            inner.get("variant", str, None),
        )
    return Descriptor(
        reader.get("mediaType", str, ""),
        reader.digest("digest"),
        size,
        reader.mapping("annotations"),
        platform,
    )


def parse_manifest(raw: bytes, *, where: str) -> Manifest:
    reader = _Reader(load_json(raw, where=where), where)
    if reader.need("schemaVersion", int) != 2:
        raise OciError(f"{where}: schemaVersion is not 2", hint="pull the image with a newer tool")
    return Manifest(
        parse_descriptor(reader.need("config", dict), where=f"{where}: config"),
        tuple(
            parse_descriptor(layer, where=f"{where}: layers[{index}]")
            for index, layer in enumerate(reader.need("layers", list))
        ),
    )


def parse_index(raw: bytes, *, where: str) -> tuple[Descriptor, ...]:
    reader = _Reader(load_json(raw, where=where), where)
    return tuple(
        parse_descriptor(item, where=f"{where}: manifests[{index}]")
        for index, item in enumerate(reader.need("manifests", list))
    )


class ArchiveImage(NamedTuple):
    """One image of a ``docker save`` archive: file names inside the archive."""

    config: str
    tags: tuple[str, ...]
    layers: tuple[str, ...]


def emit_archive_manifest(images: Sequence[ArchiveImage]) -> bytes:
    return emit_json(
        [
            {"Config": image.config, "RepoTags": list(image.tags), "Layers": list(image.layers)}
            for image in images
        ]
    )


def parse_archive_manifest(raw: bytes, *, where: str) -> tuple[ArchiveImage, ...]:
    """``manifest.json`` of a docker archive."""
    document = _parsed(raw, where)
    if not isinstance(document, list):
        raise OciError(f"{where} is no JSON list")
    images = []
    for index, item in enumerate(document):
        if not isinstance(item, dict):
            raise OciError(f"{where}[{index}] is no JSON object")
        reader = _Reader(item, f"{where}[{index}]")
        images.append(
            ArchiveImage(
                reader.need("Config", str), reader.strings("RepoTags"), reader.strings("Layers")
            )
        )
    return tuple(images)
