"""Images in and out: OCI layouts, docker archives and root filesystems.

An archive is taken whole or not at all: every blob is checked against its descriptor, every layer
against its DiffID, and the layers are merged once in memory, before anything is published. The
same archive is accepted or refused whatever the store holds already.

What an image is called: the NAME that is given; else ``RepoTags`` of a docker archive; else the
annotations ``io.containerd.image.name`` or ``org.opencontainers.image.ref.name`` of a layout, a
bare tag there being one of an image called as the archive's file or directory is. docker's own
registry is left out of a name, as docker does. An image that gets no name that way is an error:
without one it would be collected.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from layerstore import snapshot
from layerstore.archive_images import Found, Layer, find_images
from layerstore.archive_save import save as save
from layerstore.archive_source import Files, Part, open_input, opened
from layerstore.errors import DamagedError, FormatError, NotFoundError, UsageError
from layerstore.events import Caution, Sink, ignore
from layerstore.formats.changes import diff
from layerstore.formats.entries import Entry
from layerstore.formats.oci import Json, OciError, emit_config, parse_config
from layerstore.formats.streams import Limits, ReadAhead, decompressed
from layerstore.formats.tree import Tree, TreeError, apply
from layerstore.names import (
    DiffID,
    Digest,
    ImageID,
    ImageRef,
    MalformedName,
    Platform,
    platform_of,
)
from layerstore.store.atomic import Transaction, new_id, told_of_full_disk
from layerstore.store.layers import Stored, stage_entries, stage_tar
from layerstore.store.store import Store


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that came out of an archive."""

    image_id: ImageID
    refs: tuple[ImageRef, ...]


def load(
    store: Store,
    path: Path,
    *,
    name: ImageRef | None = None,
    platform: Platform | None = None,
    limits: Limits | None = None,
    sink: Sink = ignore,
) -> list[Loaded]:
    """The images of an OCI layout (a directory or a tar) or a docker archive are in the store.

    Told by content; compressed archives too. Of an image for several platforms the one for
    ``platform`` is taken, this host's by default. Raises FormatError for what is not whole or not
    true, UsageError if ``name`` is missing, or given for several images; nothing is stored then.
    """
    with told_of_full_disk(store.layout.root), store.transaction() as transaction:
        loaded = _stage(
            store,
            transaction,
            path,
            platform,
            limits,
            sink,
            choose=lambda found: _named(found, name, str(path), sink),
        )
        transaction.publish({ref: image.image_id for image in loaded for ref in image.refs})
    return loaded


def stage_archive(
    store: Store,
    transaction: Transaction,
    path: Path,
    *,
    platform: Platform | None = None,
    limits: Limits | None = None,
    sink: Sink = ignore,
) -> ImageID:
    """The one image of an archive, as ``load`` has it, is staged: nothing is published or named.

    Raises UsageError for an archive of several images.
    """

    def only(found: list[Found]) -> _Named:
        if len(found) > 1:
            raise UsageError(
                f"{path} has {len(found)} images, and one is wanted",
                hint="layerstore load it, and take one by its name",
            )
        return [(image, ()) for image in found]

    return _stage(store, transaction, path, platform, limits, sink, choose=only)[0].image_id


_Named = list[tuple[Found, tuple[ImageRef, ...]]]


def _stage(
    store: Store,
    transaction: Transaction,
    path: Path,
    platform: Platform | None,
    limits: Limits | None,
    sink: Sink,
    *,
    choose: Callable[[list[Found]], _Named],
) -> list[Loaded]:
    bounds = limits or Limits()
    wanted = platform or platform_of(os.uname().machine)

    def spool() -> Path:
        return transaction.stage_directory(f"archive-{new_id()}") / "tar"

    with opened(path, spool=spool, limits=bounds) as files:
        named = choose(find_images(files, wanted))
        loader = _Loader(store, transaction, files, bounds, sink)
        return [Loaded(loader.load(image, wanted), refs) for image, refs in named]


def _named(found: list[Found], name: ImageRef | None, where: str, sink: Sink) -> _Named:
    """The images that are taken, with what they are called."""
    if name is not None:
        if len(found) > 1:
            called = ", ".join(" ".join(image.names) or "(no name)" for image in found)
            raise UsageError(
                f"{where} has {len(found)} images, and only one can be called {name}: {called}",
                hint="leave out the name, to load all as they are called there",
            )
        return [(image, (name,)) for image in found]
    taken: dict[ImageRef, Found] = {}
    named = []
    for image in found:
        refs = tuple(dict.fromkeys(_refs(image, sink)))
        for ref in refs:
            if taken.setdefault(ref, image) is not image:
                raise OciError(f"{where} calls two images {ref}")
        if refs:
            named.append((image, refs))
    nameless = len(found) - len(named)
    if not named:
        raise UsageError(
            f"{where} does not say what its image is called",
            hint="give a name after the path"
            if len(found) == 1
            else "write the archive again with names",
        )
    if nameless:
        sink(Caution(f"left out {nameless} images that have no name", where))
    return named


def _refs(image: Found, sink: Sink) -> Iterator[ImageRef]:
    for text in image.names:
        try:
            yield ImageRef.parse(text)
        except MalformedName as error:
            sink(Caution(f"{error.brief} and is left out", image.where))


class _Loader:
    """Stages images of one archive."""

    def __init__(
        self, store: Store, transaction: Transaction, files: Files, limits: Limits, sink: Sink
    ) -> None:
        self._store = store
        self._transaction = transaction
        self._files = files
        self._limits = limits
        self._sink = sink
        self._checked: set[tuple[Layer, DiffID]] = set()
        self._entries: dict[DiffID, list[Entry]] = {}

    def load(self, image: Found, wanted: Platform) -> ImageID:
        config = parse_config(image.config, where=f"{image.where}: config")
        if len(config.diff_ids) != len(image.layers):
            raise OciError(
                f"{image.where} has {len(image.layers)} layers, "
                f"but its config names {len(config.diff_ids)}"
            )
        if (config.platform.os, config.platform.architecture) != (wanted.os, wanted.architecture):
            self._sink(Caution(f"is an image for {config.platform}, not {wanted}", image.where))
        tree = Tree()
        for layer, diff_id in zip(image.layers, config.diff_ids, strict=True):
            where = f"{self._files.where}: layer {diff_id.short}"
            entries = self._layer(layer, diff_id, where)
            try:
                tree = apply(tree, entries)
            except TreeError as error:
                raise TreeError(f"{where}: {error.brief}") from None
        return self._transaction.stage_image(image.config)

    def _layer(self, layer: Layer, diff_id: DiffID, where: str) -> list[Entry]:
        if (layer, diff_id) not in self._checked:
            known = self._entries.get(diff_id)
            if known is None:
                known = _whole_layer(self._store, self._transaction, diff_id)
            self._entries[diff_id] = self._read(layer, diff_id, known, where)
            self._checked.add((layer, diff_id))
        return self._entries[diff_id]

    def _read(
        self, layer: Layer, diff_id: DiffID, known: list[Entry] | None, where: str
    ) -> list[Entry]:
        """The blob is the one of its descriptor and the layer of ``diff_id``, which is staged.

        A layer that the store has is not parsed again, but its bytes are read and hashed all the
        same: an archive is accepted or refused for what it is, not for what was loaded before.
        """
        with self._files.open(layer.name) as part:
            blob = _Blob(part, layer, where, is_tar=layer.digest == diff_id)
            try:
                chunks = decompressed(blob, limits=self._limits, where=where)
                if known is not None:
                    _check_diff_id(chunks, diff_id, where)
                    entries = known
                else:
                    entries = self._stage(chunks, diff_id, where).entries
            except FormatError:
                blob.check()  # damage of the blob says more than what it led to
                raise
            blob.check()
        return entries

    def _stage(self, chunks: Iterator[bytes], diff_id: DiffID, where: str) -> Stored:
        return stage_tar(
            self._transaction,
            chunks,
            where=where,
            limits=self._limits,
            warn=lambda text: self._sink(Caution(text, where)),
            expect=diff_id,
        )


def _whole_layer(store: Store, transaction: Transaction, diff_id: DiffID) -> list[Entry] | None:
    """The entries of a layer that the store has undamaged: else loading it again heals it."""
    transaction.lease([diff_id])
    if not store.layers.has(diff_id):
        return None
    try:
        entries = store.layers.entries(diff_id)
        for _ in store.layers.pieces(diff_id):
            pass
    except (DamagedError, NotFoundError):
        return None
    has = store.objects.has
    return entries if all(has(e.digest, e.size) for e in entries if e.digest) else None


def _check_diff_id(chunks: Iterator[bytes], diff_id: DiffID, where: str) -> None:
    with ReadAhead(chunks) as ahead:
        for _ in ahead:
            pass
        found = DiffID.from_raw(ahead.digest)
    if found != diff_id:
        raise FormatError(
            f"{where} has the digest {found}, where {diff_id} was promised",
            hint="the archive is damaged: get it again",
        )


class _Blob:
    """A layer's file, hashed while it is read, to be compared with its descriptor."""

    def __init__(self, part: Part, layer: Layer, where: str, *, is_tar: bool) -> None:
        self._part = part
        self._layer = layer
        self._where = where
        # Where blob and tar are the same bytes, the DiffID says all that this digest would.
        self._hasher = None if is_tar or layer.digest is None else hashlib.sha256()
        if layer.size is not None and layer.size != part.size:
            raise FormatError(
                f"{where}: the blob {layer.name} has {part.size} bytes, not {layer.size}",
                hint="the archive is incomplete: get it again",
            )

    def read(self, size: int, /) -> bytes:
        chunk = self._part.read(size)
        if self._hasher is not None:
            self._hasher.update(chunk)
        return chunk

    def check(self) -> None:
        """Raises FormatError if the whole blob is not the promised one."""
        if self._hasher is None:
            return
        while self.read(1 << 20):
            pass
        found = Digest("sha256:" + self._hasher.hexdigest())
        if found != self._layer.digest:
            raise FormatError(
                f"{self._where}: the blob {self._layer.name} has the digest {found}",
                hint="the archive is damaged: get it again",
            )


def import_root(
    store: Store,
    path: Path,
    ref: ImageRef,
    *,
    platform: Platform,
    created: str,
    run: Json | None = None,
    latest: int | None = None,
    limits: Limits | None = None,
    sink: Sink = ignore,
) -> ImageID:
    """A root filesystem, a tar (plain or compressed) or a directory, is an image of one layer.

    ``run`` is the ``config`` object of its config, ``created`` RFC 3339. A tar is kept bit for
    bit. Of a directory, times are whole seconds, and those after ``latest`` become it. Raises
    FormatError for a malformed archive and for what no layer can say; nothing is stored then.
    """
    with told_of_full_disk(store.layout.root), store.transaction() as transaction:
        fd = open_input(path)
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                layer = _stage_directory(transaction, path, latest, sink)
            else:
                layer = _stage_root_tar(transaction, fd, path, limits or Limits(), sink)
        finally:
            os.close(fd)
        config = emit_config(
            platform=platform,
            diff_ids=[layer.diff_id],
            run=run or {},
            created=created,
            history=[{"created": created, "created_by": "layerstore import"}],
        )
        image_id = transaction.stage_image(config)
        transaction.publish({ref: image_id})
    return image_id


def _stage_directory(
    transaction: Transaction, path: Path, latest: int | None, sink: Sink
) -> Stored:
    tree = snapshot.capture(
        path,
        Tree(),
        transaction,
        xattr_prefix=None,
        times=snapshot.Times(latest=latest),
        warn=lambda text: sink(Caution(text, str(path))),
    )
    entries = diff(Tree(), tree)
    _check_root(entries, path, sink)
    return stage_entries(transaction, entries)


def _stage_root_tar(
    transaction: Transaction, fd: int, path: Path, limits: Limits, sink: Sink
) -> Stored:
    where = str(path)
    with open(fd, "rb", buffering=0, closefd=False) as stream:
        layer = stage_tar(
            transaction,
            decompressed(stream, limits=limits, where=where),
            where=where,
            limits=limits,
            warn=lambda text: sink(Caution(text, where)),
            need_end=True,
        )
    _check_root(layer.entries, path, sink)
    try:
        apply(Tree(), layer.entries, warn=lambda text: sink(Caution(text, where)))
    except TreeError as error:
        raise TreeError(f"{where}: {error.brief}") from None
    return layer


def _check_root(entries: Sequence[Entry], path: Path, sink: Sink) -> None:
    names = {entry.path for entry in entries}
    if not names - {b""}:
        raise FormatError(
            f"{str(path)!r} holds nothing", hint="give a root filesystem: a tar or a directory"
        )
    if b"manifest.json" in names or {b"oci-layout", b"index.json"} <= names:
        sink(Caution("looks like an archive of images: layerstore load takes those", str(path)))
