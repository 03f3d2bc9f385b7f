"""Which images an archive holds: from its index or manifest, chosen for one platform."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from layerstore.archive_source import Files, read_document
from layerstore.errors import FormatError
from layerstore.formats.oci import (
    ARCHIVE_MANIFEST_FILE,
    CONFIG_TYPES,
    CONTAINERD_NAME,
    INDEX_FILE,
    INDEX_TYPES,
    LAYER_TYPES,
    LAYOUT_FILE,
    MANIFEST_TYPES,
    REF_NAME,
    Descriptor,
    OciError,
    blob_name,
    check_layout,
    parse_archive_manifest,
    parse_config,
    parse_index,
    parse_manifest,
)
from layerstore.names import Digest, Platform

_MAX_NESTING = 4
_MAX_MANIFESTS = 1_000
_DEFAULT_REGISTRIES = ("docker.io/library/", "docker.io/")
_CONFIG_FILE = re.compile(r"(?:.*/)?(?:sha256:)?([0-9a-f]{64})(?:\.json)?")


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's file in the archive, and what its descriptor says, where there is one."""

    name: str
    digest: Digest | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """An image of the archive. Its config is checked, its layers are not yet."""

    config: bytes
    layers: tuple[Layer, ...]
    names: tuple[str, ...]
    where: str


def find_images(files: Files, platform: Platform) -> list[Found]:
    """Every image but those for other platforms, each once, in the archive's order.

    A tar that docker wrote is a layout too; its own manifest goes first, because the names in it
    are the ones that docker shows. Raises FormatError if the archive is neither.
    """
    if files.has(ARCHIVE_MANIFEST_FILE) and not files.is_folder:
        found = _docker_images(files)
    elif files.has(LAYOUT_FILE) and files.has(INDEX_FILE):
        found = _Layout(files, platform).images()
    else:
        raise FormatError(
            f"{files.where} is neither an OCI layout nor a docker archive",
            hint="layerstore import takes a root filesystem",
        )
    merged: dict[tuple[bytes, tuple[Layer, ...]], Found] = {}
    for image in found:
        key = (image.config, image.layers)
        if key in merged:
            names = dict.fromkeys((*merged[key].names, *image.names))
            image = Found(image.config, image.layers, tuple(names), image.where)
        merged[key] = image
    if not merged:
        raise OciError(f"{files.where} has no image", hint="write the archive again")
    return list(merged.values())


def _familiar(name: str) -> str:
    """The name without docker's own registry, as docker shows it."""
    for prefix in _DEFAULT_REGISTRIES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def _docker_images(files: Files) -> Iterator[Found]:
    where = f"{files.where}: {ARCHIVE_MANIFEST_FILE}"
    for image in parse_archive_manifest(read_document(files, ARCHIVE_MANIFEST_FILE), where=where):
        config = read_document(files, image.config)
        named = _CONFIG_FILE.fullmatch(image.config)
        if named and Digest.of(config).hex != named[1]:
            raise OciError(
                f"{files.where}: {image.config} is damaged: its digest is {Digest.of(config)}",
                hint="get the archive again",
            )
        names = tuple(_familiar(tag) for tag in image.tags if not tag.startswith("<none>"))
        layers = tuple(Layer(layer) for layer in image.layers)
        label = names[0] if names else image.config.rpartition("/")[2][:12]
        yield Found(config, layers, names, f"{files.where}: {label}")


class _Layout:
    """Reads an OCI layout's documents, each checked against its descriptor."""

    def __init__(self, files: Files, platform: Platform) -> None:
        self._files = files
        self._platform = platform
        self._manifests = 0

    def images(self) -> Iterator[Found]:
        where = self._files.where
        check_layout(read_document(self._files, LAYOUT_FILE), where=f"{where}: {LAYOUT_FILE}")
        index = parse_index(read_document(self._files, INDEX_FILE), where=f"{where}: {INDEX_FILE}")
        groups: dict[str, list[Descriptor]] = {}
        for descriptor in index:
            groups.setdefault(self._name(descriptor), []).extend(self._leaves(descriptor, 0))
        for name, leaves in groups.items():
            if leaves and (image := self._choose(name, leaves)) is not None:
                yield image

    def _name(self, descriptor: Descriptor) -> str:
        """What the index calls it; empty if it does not."""
        name = descriptor.annotations.get(CONTAINERD_NAME)
        if name is None:
            name = descriptor.annotations.get(REF_NAME, "")
            if name and ":" not in name and "/" not in name:
                return f"{self._files.stem}:{name}"
        return _familiar(name)

    def _leaves(self, descriptor: Descriptor, depth: int) -> Iterator[Descriptor]:
        """The manifests of images below a descriptor; attestations and the like are none."""
        self._manifests += 1
        if depth > _MAX_NESTING or self._manifests > _MAX_MANIFESTS:
            raise OciError(f"{self._files.where} nests its indexes too deeply")
        if descriptor.media_type in INDEX_TYPES:
            where = f"{self._files.where}: index {descriptor.digest.short}"
            for inner in parse_index(self._read(descriptor), where=where):
                yield from self._leaves(inner, depth + 1)
        elif descriptor.media_type in MANIFEST_TYPES and not _is_attestation(descriptor):
            yield descriptor

    def _choose(self, name: str, leaves: list[Descriptor]) -> Found | None:
        unique = list({leaf.digest: leaf for leaf in leaves}.values())
        if len(unique) == 1:
            return self._image(name, unique[0])
        rated: list[tuple[int, Found]] = []
        others = []
        for leaf in unique:
            platform = leaf.platform
            if platform is not None and _fit(platform, self._platform) is None:
                others.append(str(platform))
                continue
            image = self._image(name, leaf)
            if image is None:
                continue
            platform = platform or parse_config(image.config, where=image.where).platform
            fit = _fit(platform, self._platform)
            if fit is None:
                others.append(str(platform))
            else:
                rated.append((fit, image))
        best = [image for fit, image in rated if fit == max(fit for fit, _ in rated)]
        called = repr(name) if name else "without a name"
        if len(best) > 1:
            raise OciError(
                f"{self._files.where} has {len(best)} images for {self._platform} {called}",
                hint="write the archive again, with one name for each image",
            )
        if not best and others:
            raise OciError(
                f"{self._files.where} has no image {called} for {self._platform}, "
                f"only for {', '.join(others)}",
                hint="get the image for this platform",
            )
        return best[0] if best else None

    def _image(self, name: str, descriptor: Descriptor) -> Found | None:
        """None for a manifest of something that is no image (a signature, a chart)."""
        where = f"{self._files.where}: {name or descriptor.digest.short}"
        manifest = parse_manifest(self._read(descriptor), where=where)
        if manifest.config.media_type not in CONFIG_TYPES:
            return None
        for layer in manifest.layers:
            if layer.media_type not in LAYER_TYPES:
                raise OciError(f"{where}: no known type of layer: {layer.media_type!r}")
        layers = tuple(
            Layer(blob_name(layer.digest), layer.digest, layer.size) for layer in manifest.layers
        )
        return Found(self._read(manifest.config), layers, (name,) if name else (), where)

    def _read(self, descriptor: Descriptor) -> bytes:
        content = read_document(self._files, blob_name(descriptor.digest))
        if len(content) != descriptor.size or Digest.of(content) != descriptor.digest:
            raise OciError(
                f"{self._files.where}: the blob {descriptor.digest} is damaged",
                hint="get the archive again",
            )
        return content


def _is_attestation(descriptor: Descriptor) -> bool:
    platform = descriptor.platform
    return (
        platform is not None and (platform.os, platform.architecture) == ("unknown", "unknown")
    ) or "vnd.docker.reference.type" in descriptor.annotations


def _fit(platform: Platform, wanted: Platform) -> int | None:
    """How well an image for ``platform`` suits; None if it does not run."""
    if (platform.os, platform.architecture) != (wanted.os, wanted.architecture):
        return None
    if platform.variant == wanted.variant:
        return 3
    if platform.variant is None:
        return 2
    if wanted.variant is None:
        # The baseline of an architecture is called v8 or v1; anything above may not run here.
        return 1 if platform.variant in ("v8", "v1") else None
    return 0 if platform.variant < wanted.variant else None
