"""An image written as an OCI layout or a docker archive: the same image, the same bytes.

A docker archive is written as docker itself does since version 25: a tar of an OCI layout with a
``manifest.json``, so that tools of either kind read it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, Self

from layerstore.errors import ConflictError, HostError, UsageError
from layerstore.formats import tar
from layerstore.formats.compress import Compression, compressed
from layerstore.formats.entries import Entry, Kind
from layerstore.formats.oci import (
    ARCHIVE_MANIFEST_FILE,
    CONFIG_TYPE,
    CONTAINERD_NAME,
    INDEX_FILE,
    LAYER_TYPE,
    LAYOUT_FILE,
    MANIFEST_TYPE,
    MAX_DOCUMENT,
    REF_NAME,
    ArchiveImage,
    Descriptor,
    Manifest,
    blob_name,
    check_layout,
    emit_archive_manifest,
    emit_index,
    emit_json,
    emit_layout,
    emit_manifest,
    load_json,
    parse_index,
)
from layerstore.formats.streams import chunks_of
from layerstore.kernel.fs import fsync_path, write_all
from layerstore.names import DiffID, Digest, ImageRef
from layerstore.store.atomic import Transaction, new_id, told_of_full_disk
from layerstore.store.images import Image
from layerstore.store.store import Store

Form = Literal["oci", "docker"]

_SUFFIX = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}


def save(
    store: Store,
    image: Image,
    path: Path | BinaryIO,
    *,
    refs: Sequence[ImageRef],
    form: Form,
    compression: Compression | None = None,
) -> Descriptor:
    """The image is at ``path``, complete and flushed. The descriptor is that of its manifest.

    ``oci``: a layout in a new or empty directory, or added to the layout that is there, whose
    images of the same tags lose them; a tar of one where the path ends in ``.tar``. ``docker``:
    always a tar. A tar replaces the file that is there once it is complete; pipes, devices and
    file objects are written to directly. ``compression`` is zstd by default in a layout, none in a
    docker archive. Raises UsageError, ConflictError or HostError.
    """
    if form == "docker" and compression == "zstd":
        raise UsageError(
            "a docker archive with zstd layers is not read by docker before version 23",
            hint="use --compression gzip or none, or --format oci",
        )
    with store.transaction() as transaction:
        transaction.lease([image.image_id, *image.diff_ids])
        with _target(path, form, _Spool(store, transaction)) as target:
            packing = compression or ("none" if form == "docker" else "zstd")
            return _write(store, image, target, refs, form, packing)


class _Target(Protocol):
    """Where the files of a layout go."""

    def blob(self, chunks: Iterable[bytes], known: tuple[Digest, int] | None) -> tuple[Digest, int]:
        """A blob is written; ``known`` is its digest and size, where they are known before."""
        ...

    def finish(self, descriptors: list[Descriptor], extra: dict[str, bytes]) -> None:
        """The index names the descriptors; the files ``extra`` are beside it."""
        ...


def _write(
    store: Store,
    image: Image,
    target: _Target,
    refs: Sequence[ImageRef],
    form: Form,
    compression: Compression,
) -> Descriptor:
    layers: dict[DiffID, Descriptor] = {}
    for diff_id in dict.fromkeys(image.diff_ids):
        size = sum(len(piece.raw) + piece.length for piece in store.layers.pieces(diff_id))
        known = (diff_id, size) if compression == "none" else None
        chunks = compressed(store.layers.tar(diff_id), compression, size=size)
        media_type = LAYER_TYPE + _SUFFIX[compression]
        layers[diff_id] = Descriptor(media_type, *target.blob(chunks, known))
    stack = tuple(layers[diff_id] for diff_id in image.diff_ids)
    config = _document(target, CONFIG_TYPE, image.raw_config)
    manifest = _document(target, MANIFEST_TYPE, emit_manifest(Manifest(config, stack)))
    extra = {}
    if form == "docker":
        files = ArchiveImage(
            blob_name(config.digest),
            tuple(map(str, refs)),
            tuple(blob_name(layer.digest) for layer in stack),
        )
        extra[ARCHIVE_MANIFEST_FILE] = emit_archive_manifest([files])
    target.finish(_named(manifest, image, refs), extra)
    return manifest


def _document(target: _Target, media_type: str, content: bytes) -> Descriptor:
    known = (Digest.of(content), len(content))
    return Descriptor(media_type, *target.blob([content], known))


def _named(manifest: Descriptor, image: Image, refs: Sequence[ImageRef]) -> list[Descriptor]:
    """The manifest once for each name. A tag may be there only once: most tools know tags alone."""
    platform = image.config.platform
    if not refs:
        return [Descriptor(*_base(manifest), {}, platform)]
    descriptors = []
    tags: set[str] = set()
    for ref in dict.fromkeys(refs):
        annotations = {CONTAINERD_NAME: _full_name(ref)}
        if ref.tag not in tags:
            annotations[REF_NAME] = ref.tag
            tags.add(ref.tag)
        descriptors.append(Descriptor(*_base(manifest), annotations, platform))
    return descriptors


def _base(descriptor: Descriptor) -> tuple[str, Digest, int]:
    return descriptor.media_type, descriptor.digest, descriptor.size


def _full_name(ref: ImageRef) -> str:
    """With the registry, as containerd wants it: docker's own where the name has none."""
    head, slash, _ = ref.name.partition("/")
    if not slash:
        return f"docker.io/library/{ref}"
    if "." in head or ":" in head or head == "localhost":
        return str(ref)
    return f"docker.io/{ref}"


# -- where it goes ---------------------------------------------------------------------------


@contextmanager
def _target(path: Path | BinaryIO, form: Form, spool: _Spool) -> Iterator[_Target]:
    if not isinstance(path, Path):
        yield _Tarball(path.write, spool)
        return
    with _told_of(path):
        try:
            mode: int | None = path.stat().st_mode
        except FileNotFoundError:
            mode = None
        if mode is None:
            path.parent.mkdir(parents=True, exist_ok=True)
    is_tar = form == "docker" or path.suffix == ".tar"
    if mode is not None and stat.S_ISDIR(mode):
        if is_tar:
            raise UsageError(f"{str(path)!r} is a directory", hint="give the path of a file")
        yield _Folder(path)
    elif mode is not None and not stat.S_ISREG(mode):
        with _Stream(path) as stream:
            yield _Tarball(stream.write, spool)
    elif is_tar:
        with _Partial(Path(os.path.realpath(path))) as partial:
            yield _Tarball(partial.write, spool)
            partial.finish()
    elif mode is not None:
        raise UsageError(
            f"{str(path)!r} is a file, and an OCI layout is a directory",
            hint="end the path in .tar for an archive, or choose another",
        )
    else:
        with _new_folder(path) as folder:
            yield folder


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(
            f"{str(path)!r} cannot be written: {error.strerror}",
            hint="check its directory, who may write there, and the space on its disk",
        ) from error


class _Partial:
    """A file that is written beside its final name and renamed when it is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name[:100]}-{new_id()}.partial")

    def __enter__(self) -> Self:
        with _told_of(self._path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(self._partial, flags, 0o666)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        self._partial.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        with _told_of(self._path):
            write_all(self._fd, chunk)

    def finish(self, final: Path | None = None) -> None:
        with _told_of(self._path):
            os.fsync(self._fd)
            self._partial.rename(final or self._path)
            fsync_path(self._path.parent)


class _Stream:
    """A pipe or device: written to as it is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        with _told_of(self._path):
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def write(self, chunk: bytes) -> None:
        with _told_of(self._path):
            write_all(self._fd, chunk)


@contextmanager
def _new_folder(path: Path) -> Iterator[_Folder]:
    """A layout that is written beside the path and renamed to it when it is complete."""
    partial = path.with_name(f".{path.name[:100]}-{new_id()}.partial")
    with _told_of(path):
        partial.mkdir()
    try:
        yield _Folder(partial)
        with _told_of(path):
            partial.rename(path)
            fsync_path(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Folder:
    """A layout in a directory. Files appear there complete, the index last."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "blobs" / "sha256"
        with _told_of(root):
            names = os.listdir(root)
            if names:
                _check_is_layout(root, names)
            self._blobs.mkdir(parents=True, exist_ok=True)
            fsync_path(self._blobs.parent)
        self._file(LAYOUT_FILE, emit_layout())

    def _file(self, name: str, content: bytes) -> None:
        with _Partial(self._root / name) as partial:
            partial.write(content)
            partial.finish()

    def blob(self, chunks: Iterable[bytes], known: tuple[Digest, int] | None) -> tuple[Digest, int]:
        hasher = hashlib.sha256()
        size = 0
        with _Partial(self._blobs / "blob") as partial:
            for chunk in chunks:
                partial.write(chunk)
                hasher.update(chunk)
                size += len(chunk)
            digest = Digest("sha256:" + hasher.hexdigest())
            partial.finish(self._blobs / digest.hex)
        return digest, size

    def finish(self, descriptors: list[Descriptor], extra: dict[str, bytes]) -> None:
        directory = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Two that save into one layout must not lose each other's line of the index.
            fcntl.flock(directory, fcntl.LOCK_EX)
            self._file(INDEX_FILE, self._index(descriptors))
        finally:
            os.close(directory)

    def _index(self, descriptors: list[Descriptor]) -> bytes:
        """The index that is there with the new lines; whatever else it says is kept."""
        path = self._root / INDEX_FILE
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return emit_index(descriptors)
        document = load_json(raw, where=str(path))
        before = parse_index(raw, where=str(path))
        new = [descriptor.to_json() for descriptor in descriptors]
        names = {descriptor.annotations.get(CONTAINERD_NAME) for descriptor in descriptors}
        tags = {descriptor.annotations.get(REF_NAME) for descriptor in descriptors}
        kept = []
        for item, descriptor in zip(document["manifests"], before, strict=True):
            name, tag = (descriptor.annotations.get(k) for k in (CONTAINERD_NAME, REF_NAME))
            if item in new or (name is not None and name in names):
                continue
            if tag is not None and tag in tags:
                if name is None:
                    continue
                # Most tools know a tag alone: it is the new image's. The old one keeps its name.
                annotations = {k: v for k, v in item["annotations"].items() if k != REF_NAME}
                item = {**item, "annotations": annotations}
            kept.append(item)
        return emit_json({**document, "manifests": kept + new})


def _check_is_layout(root: Path, names: list[str]) -> None:
    if LAYOUT_FILE not in names:
        raise ConflictError(
            f"{str(root)!r} is not empty and is no OCI layout",
            hint="choose a new directory, or end the path in .tar for an archive",
        )
    with (root / LAYOUT_FILE).open("rb") as file:
        check_layout(file.read(MAX_DOCUMENT), where=str(root / LAYOUT_FILE))


class _Spool:
    """Where a blob waits until its size is known: the staging directory of the store."""

    def __init__(self, store: Store, transaction: Transaction) -> None:
        self._root = store.layout.root
        self._transaction = transaction

    def keep(self, chunks: Iterable[bytes]) -> tuple[BinaryIO, Digest, int]:
        """The open file, at its start; nobody else has a name for it."""
        path = self._transaction.stage_directory(f"spool-{new_id()}") / "blob"
        hasher = hashlib.sha256()
        file = path.open("x+b", buffering=0)
        path.unlink()
        try:
            with told_of_full_disk(self._root):
                for chunk in chunks:
                    write_all(file.fileno(), chunk)
                    hasher.update(chunk)
            size = file.tell()
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file, Digest("sha256:" + hasher.hexdigest()), size


class _Tarball:
    """A layout as a tar, written from its start to its end."""

    def __init__(self, write: Callable[[bytes], object], spool: _Spool) -> None:
        self._write = write
        self._spool = spool
        self._names: set[str] = set()
        for folder in ("blobs", "blobs/sha256"):
            self._write(tar.header(Entry(folder.encode(), Kind.DIRECTORY, 0o755)))

    def blob(self, chunks: Iterable[bytes], known: tuple[Digest, int] | None) -> tuple[Digest, int]:
        if known is not None:
            self._member(blob_name(known[0]), known[1], chunks)
            return known
        # A header says the size before the content comes: compress first, then copy.
        file, digest, size = self._spool.keep(chunks)
        with file:
            self._member(blob_name(digest), size, chunks_of(file))
        return digest, size

    def _member(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        if name in self._names:
            return
        self._names.add(name)
        self._write(tar.header(Entry(name.encode(), Kind.FILE, 0o644, size=size)))
        for chunk in chunks:
            self._write(chunk)
        self._write(bytes(-size % tar.BLOCK))

    def finish(self, descriptors: list[Descriptor], extra: dict[str, bytes]) -> None:
        files = {INDEX_FILE: emit_index(descriptors), **extra, LAYOUT_FILE: emit_layout()}
        for name, content in files.items():
            self._member(name, len(content), [content])
        self._write(tar.END)
