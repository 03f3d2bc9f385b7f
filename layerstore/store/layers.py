"""Layers: their entries, and their tar bit for bit in both directions."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from layerstore.errors import DamagedError, FormatError, NotFoundError
from layerstore.formats import entries as entries_format
from layerstore.formats import sparse, tar
from layerstore.formats.entries import Entry, Kind
from layerstore.formats.streams import CHUNK, Limits, ReadAhead
from layerstore.formats.tree import RESERVED_NAME, Tree, apply
from layerstore.formats.untar import Member, TarError, TarReader
from layerstore.names import DiffID, Digest
from layerstore.store import tarsplit
from layerstore.store.atomic import Transaction
from layerstore.store.layout import Layout, is_digits
from layerstore.store.objects import Objects

_SMALL = 1 << 20
"""Contents up to this many bytes are read at once: one hash, one lookup, one write."""


class Layers:
    """Reads layers."""

    def __init__(self, layout: Layout, objects: Objects) -> None:
        self._layout = layout
        self._objects = objects

    def has(self, diff_id: DiffID) -> bool:
        return self._layout.layer(diff_id).is_dir()

    def is_whole(self, diff_id: DiffID) -> bool:
        """Whether the layer is there with every object that it names, each of the right size."""
        try:
            entries = self.entries(diff_id)
        except (NotFoundError, DamagedError):
            return False
        sizes = {entry.digest: entry.size for entry in entries if entry.digest is not None}
        return all(self._objects.has(digest, size) for digest, size in sizes.items())

    def all(self) -> list[DiffID]:
        found = os.listdir(self._layout.root / "layers")
        return [DiffID(f"sha256:{name}") for name in sorted(found) if is_digits(name)]

    def entries(self, diff_id: DiffID) -> list[Entry]:
        """The layer's entries in its tar's order. Raises NotFoundError or DamagedError."""
        path = self._layout.layer(diff_id) / "entries"
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"there is no layer {diff_id}") from None
        return entries_format.parse(raw, where=f"layer {diff_id}")

    def tree(self, diff_ids_bottom_up: Iterable[DiffID]) -> Tree:
        """What a container of this stack sees."""
        tree = Tree()
        for diff_id in diff_ids_bottom_up:
            tree = apply(tree, self.entries(diff_id))
        return tree

    def pieces(self, diff_id: DiffID) -> Iterator[tar.Piece]:
        """The layer's tar as raw bytes and references to objects."""
        path = self._layout.layer(diff_id) / "tarsplit"
        if not path.exists():
            yield from tar.pieces(self.entries(diff_id))
            return
        with path.open("rb") as file:
            yield from tarsplit.parse(file, where=f"layer {diff_id}")

    def tar(self, diff_id: DiffID) -> Iterator[bytes]:
        """The layer's tar, bit for bit. Raises DamagedError at its end if it is not that."""
        hasher = hashlib.sha256()
        for chunk in assembled(self.pieces(diff_id), self._objects.open):
            hasher.update(chunk)
            yield chunk
        if hasher.hexdigest() != diff_id.hex:
            raise DamagedError(
                f"the layer {diff_id} does not give its tar any more",
                hint="run layerstore fsck --read-data to see which objects are damaged",
            )


def _nothing(digest: Digest) -> bytes | None:
    return None


def assembled(
    pieces: Iterable[tar.Piece],
    open_object: Callable[[Digest], int],
    at_hand: Callable[[Digest], bytes | None] = _nothing,
) -> Iterator[bytes]:
    """The archive's bytes in chunks of about a MiB. ``at_hand``: contents that are in memory."""
    ready: list[bytes] = []
    size = 0
    for piece in pieces:
        content = at_hand(piece.digest) if piece.digest is not None else piece.raw
        if piece.digest is None or (content is not None and len(content) == piece.length):
            ready.append(content or b"")
            size += len(ready[-1])
        else:
            fd = open_object(piece.digest)
            try:
                offset, left = piece.offset, piece.length
                while left:
                    chunk = os.pread(fd, min(left, CHUNK), offset)
                    if not chunk:
                        raise DamagedError(
                            f"the object {piece.digest} is shorter than its layer says"
                        )
                    ready.append(chunk)
                    offset += len(chunk)
                    left -= len(chunk)
                    size += len(chunk)
                    if size >= CHUNK:
                        yield b"".join(ready)
                        ready, size = [], 0
            finally:
                os.close(fd)
        if size >= CHUNK:
            yield b"".join(ready)
            ready, size = [], 0
    yield b"".join(ready)


@dataclass(frozen=True, slots=True)
class Stored:
    """A layer that a transaction staged."""

    diff_id: DiffID
    entries: list[Entry]


def stage_entries(transaction: Transaction, entries: list[Entry]) -> Stored:
    """A new layer in canonical form. Its objects are staged already."""
    check_names(entries)
    hasher = hashlib.sha256()
    for chunk in assembled(tar.pieces(entries), transaction.open_object, transaction.at_hand):
        hasher.update(chunk)
    diff_id = DiffID("sha256:" + hasher.hexdigest())
    transaction.stage_layer(diff_id, entries, foreign=False)
    return Stored(diff_id, entries)


def check_names(entries: Iterable[Entry], *, where: str = "the layer") -> None:
    """Raises FormatError for a name that would let an image reach another's content."""
    for entry in entries:
        if entry.path.startswith(RESERVED_NAME) and entry.path[len(RESERVED_NAME) :][:1] in (
            b"",
            b"/",
        ):
            raise FormatError(
                f"{where}: the name /.layerstore is reserved and cannot be in an image",
                hint="remove it from the archive or the step that makes it",
            )


def stage_tar(
    transaction: Transaction,
    chunks: Iterable[bytes],
    *,
    where: str,
    limits: Limits | None = None,
    warn: Callable[[str], None] = lambda text: None,
    expect: DiffID | None = None,
    need_end: bool = False,
) -> Stored:
    """The layer of an uncompressed tar that is read once, from any source, in bounded memory.

    Raises TarError for a malformed archive and FormatError if its digest is not ``expect``;
    nothing of it is published then. ``need_end``: so is one without the zero blocks at its end,
    which peers accept, but which is all that shows that no entries were cut off.
    """
    with ReadAhead(chunks) as ahead:
        reader = TarReader(iter(ahead), where=where, limits=limits, warn=warn)
        importer = _Importer(transaction, reader)
        for member in reader:
            importer.take(member)
        if need_end and not reader.has_end:
            raise TarError(
                f"{where} is truncated: the zero blocks that end a tar are missing",
                hint="get or make the archive again",
            )
        importer.end()
        diff_id = DiffID("sha256:" + ahead.digest.hex())
    if expect is not None and diff_id != expect:
        raise FormatError(
            f"{where} has the digest {diff_id}, where {expect} was promised",
            hint="the file is damaged or not the one that its config describes; get it again",
        )
    check_names(importer.entries, where=where)
    transaction.stage_layer(diff_id, importer.entries, foreign=importer.finish_tarsplit())
    return Stored(diff_id, importer.entries)


class _Importer:
    """Stages contents and, as long as the archive differs from the canonical one, its raw bytes."""

    def __init__(self, transaction: Transaction, reader: TarReader) -> None:
        self.entries: list[Entry] = []
        self._transaction = transaction
        self._reader = reader
        self._writer: tarsplit.TarsplitWriter | None = None
        self._padding = 0

    def take(self, member: Member) -> None:
        entry = member.entry
        if entry.kind is Kind.FILE and entry.size:
            entry = entry._replace(digest=self._content(member))
        self._record(member, entry)
        self.entries.append(entry)

    def _content(self, member: Member) -> Digest:
        entry = member.entry
        if entry.extents is None and member.content_size <= _SMALL:
            return self._transaction.stage(self._reader.whole_content())
        with self._transaction.writer(entry.extents, entry.size) as writer:
            for chunk in self._reader.content():
                writer.write(chunk)
            return writer.finish()

    def _record(self, member: Member, entry: Entry) -> None:
        if self._writer is None:
            if member.raw == self._canonical_head(entry) and member.content_size == (
                _canonical_content(entry)
            ):
                stored = entry.size if entry.extents is None else (
                    sparse.payload_size(entry.size, entry.extents))  # fmt: skip
                self._padding = -stored % tar.BLOCK if entry.kind is Kind.FILE else 0
                return
            self._writer = self._begin()
        self._writer.raw(member.raw)
        if entry.digest is not None:
            for offset, length in ((0, entry.size),) if entry.extents is None else entry.extents:
                self._writer.content(entry.digest, offset, length)
        else:
            # The content of a marker: no part of any tree, so no object is kept alive by it.
            for chunk in self._reader.content():
                self._writer.raw(chunk)

    def _canonical_head(self, entry: Entry) -> bytes:
        head = bytes(self._padding) + tar.header(entry)
        if entry.extents is not None:
            head += sparse.emit_map(entry.size, entry.extents)
        return head

    def _begin(self) -> tarsplit.TarsplitWriter:
        """The archive is a foreign one: its bytes are kept, those before this one too."""
        writer = tarsplit.TarsplitWriter(self._transaction.create_tarsplit())
        # The end is not there yet, and the last padding is read with the next member.
        held: deque[tar.Piece] = deque()
        for piece in tar.pieces(self.entries):
            held.append(piece)
            if len(held) > (2 if self._padding else 1):
                piece = held.popleft()
                if piece.digest is not None:
                    writer.content(piece.digest, piece.offset, piece.length)
                else:
                    writer.raw(piece.raw)
        return writer

    def end(self) -> None:
        """Takes what follows the last entry."""
        trailer = self._reader.trailer()
        if self._writer is None:
            head = next(trailer, b"")
            rest = next(trailer, b"")
            if head == bytes(self._padding) + tar.END and not rest:
                return
            self._writer = self._begin()
            self._writer.raw(head)
            self._writer.raw(rest)
        for chunk in trailer:
            self._writer.raw(chunk)

    def finish_tarsplit(self) -> bool:
        """Whether there is one. It is complete in staging then."""
        if self._writer is None:
            return False
        self._writer.finish()
        return True


def _canonical_content(entry: Entry) -> int:
    if entry.kind is not Kind.FILE:
        return 0
    if entry.extents is None:
        return entry.size
    return sum(length for _, length in entry.extents)
