"""Archives that are small and ask for much: memory stays bounded, and time follows the size.

Each runs in a process of its own. The limits of time are generous (a quadratic way would take
many minutes), those of memory are what a layer of this size may need.
"""

from __future__ import annotations

import gzip
import io
import lzma
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import hostile
import pytest
import zstandard

from layerstore.errors import LayerstoreError
from layerstore.formats.changes import diff
from layerstore.formats.entries import Entry, Kind
from layerstore.formats.streams import Limits, ReadAhead, decompressed
from layerstore.formats.tree import Tree, apply
from layerstore.formats.untar import TarReader
from layerstore.store.deep import remove_tree
from layerstore.store.layers import stage_tar
from layerstore.store.store import Store
from layerstore.store.trees import lower_directories

MIB = 1 << 20
DEEP = b"/".join([b"d"] * 998)


def directory(path: bytes) -> Entry:
    return Entry(path, Kind.DIRECTORY, 0o755)


def file(path: bytes) -> Entry:
    return Entry(path, Kind.FILE, 0o644)


def link(path: bytes, target: bytes) -> Entry:
    return Entry(path, Kind.HARDLINK, link=target)


def whiteout(path: bytes) -> Entry:
    return Entry(path, Kind.WHITEOUT)


Layers = list[list[Entry]]


def replaced_over_100000_directories() -> Layers:
    entries = [directory(b"d%d" % i) for i in range(100_000)]
    for _ in range(20_000):
        entries += [directory(b"q"), file(b"q/x"), file(b"q")]
    return [entries]


def whiteouts_of_50000_directories() -> Layers:
    lower = [entry for i in range(50_000) for entry in (directory(b"a%d" % i), file(b"a%d/f" % i))]
    gone = [whiteout(b"a%d/f" % i) for i in range(50_000)]
    return [lower, gone + [whiteout(b"a%d" % i) for i in range(50_000)]]


def parents_that_are_deep() -> Layers:
    return [[file(DEEP + b"/u%d/f" % i) for i in range(5_000)]]


def replaced_that_are_deep() -> Layers:
    return [[entry(DEEP + b"/z") for _ in range(3_000) for entry in (directory, file)]]


def whiteouts_that_are_deep() -> Layers:
    names = [DEEP + b"/f%d" % i for i in range(2_000)]
    return [[file(name) for name in names], [whiteout(name) for name in names]]


def hard_links_in_a_chain() -> Layers:
    return [[file(b"h0"), *(link(b"h%d" % i, b"h%d" % (i - 1)) for i in range(1, 100_000))]]


def hard_links_in_a_chain_backwards() -> Layers:
    return [[*(link(b"h%d" % i, b"h%d" % (i + 1)) for i in range(100_000)), file(b"h100000")]]


def hard_links_and_bookkeeping() -> Layers:
    hidden = [file(b".wh..wh.p/%d" % i) for i in range(30_000)]
    return [
        [file(b"low%d" % i) for i in range(30_000)],
        hidden + [link(b"l%d" % i, b"low%d" % i) for i in range(30_000)],
    ]


def names_behind_a_symlink() -> Layers:
    lower = [Entry(b"lib", Kind.SYMLINK, link=b"usr/lib")]
    lower += [directory(b"usr/lib/d%d" % i) for i in range(50_000)]
    return [lower, [file(b"lib/d%d/x" % i) for i in range(50_000)]]


def one_name_500000_times() -> Layers:
    return [[file(b"same")] * 500_000]


def _winding() -> list[Entry]:
    """38 symlinks of 1,600 names each, one leading to the next."""
    target = b"x/../" * 800
    return [
        directory(b"x"),
        *(Entry(b"s%d" % i, Kind.SYMLINK, link=target + b"s%d" % (i + 1)) for i in range(38)),
        directory(b"s38"),
        file(b"s38/f"),
    ]


def hard_links_through_winding_symlinks() -> Layers:
    return [_winding() + [link(b"l%d" % i, b"s0/f") for i in range(20_000)]]


def whiteouts_through_winding_symlinks() -> Layers:
    return [_winding(), [whiteout(b"s0/y%d" % i) for i in range(20_000)]]


def apart(work: Callable[..., object], *arguments: object, seconds: float, mib: int) -> object:
    """What the work gives in a process of its own, which adds at most ``mib`` to our memory."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def child() -> None:
        before = _peak()
        start = time.monotonic()
        try:
            answer: object = work(*arguments)
        except LayerstoreError as error:
            answer = error.brief
        writer.send((answer, time.monotonic() - start, (_peak() - before) / MIB))

    process = context.Process(target=child)
    process.start()
    writer.close()
    try:
        assert reader.poll(2 * seconds), "it hangs"
        answer, took, grown = reader.recv()
    finally:
        process.kill()
        process.join()
    assert took < seconds
    assert grown < mib
    return answer


def _peak() -> int:
    # Of the child alone: a forked child starts with what it shares, so the difference is its own.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def _merge(make: Callable[[], Layers]) -> int:
    below = tree = Tree()
    for entries in make():
        below, tree = tree, apply(tree, entries)
    return len(diff(below, tree))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (replaced_over_100000_directories, 100_002),
        (whiteouts_of_50000_directories, 50_000),
        (parents_that_are_deep, 10_000 + 999),
        (replaced_that_are_deep, 1_000),
        (whiteouts_that_are_deep, 2_000 + 999),
        (hard_links_in_a_chain, 100_001),
        (hard_links_in_a_chain_backwards, 100_002),
        (hard_links_and_bookkeeping, 30_001),
        (names_behind_a_symlink, 100_003),
        (one_name_500000_times, 2),
        (hard_links_through_winding_symlinks, "too many names in the symbolic links"),
        (whiteouts_through_winding_symlinks, "too many names in the symbolic links"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_layer_merges_in_time_that_follows_its_size(
    make: Callable[[], Layers], says: int | str
) -> None:
    answer = apart(_merge, make, seconds=40, mib=250)
    if isinstance(says, str):
        assert str(answer).startswith(says)
    else:
        # One less where the root's own attributes are not said.
        assert answer in (says, says - 1)


def _read(chunks: Iterable[bytes], limits: Limits) -> int:
    with ReadAhead(chunks) as ahead:
        reader = TarReader(iter(ahead), where="the archive", limits=limits)
        kept = []
        for member in reader:
            kept.append(member.entry)
            for _ in reader.content():
                pass
        for _ in reader.trailer():
            pass
    return len(kept)


def _long_names() -> Iterator[bytes]:
    yield from [hostile.gnu_long(b"n" * (MIB - 1))] * 4000


def _globals() -> Iterator[bytes]:
    yield from [hostile.raw_pax(hostile.record(b"comment", b"v" * (MIB - 100)), b"g")] * 4000


def _long_paths() -> Iterator[bytes]:
    for number in range(40_000):
        path = b"/".join([b"%0200d" % number] * 300)
        yield hostile.pax({b"path": path}) + hostile.file(b"f")


def _many_xattrs() -> Iterator[bytes]:
    records = {b"SCHILY.xattr.user.%d" % i: b"v" * 9000 for i in range(25)}
    yield from [hostile.pax(records) + hostile.file(b"f")] * 40_000


def _sparse_extensions() -> Iterator[bytes]:
    yield hostile.old_sparse([], b"", 0, extended=bytes(504) + b"\1" + bytes(7))[
        : 2 * hostile.BLOCK
    ]
    yield from [(bytes(504) + b"\1" + bytes(7)) * 2048] * 4000


def _sparse_map() -> Iterator[bytes]:
    yield hostile.sparse_1_0(b"999999999\n", b"", 0)[: -hostile.BLOCK] + b"999999999\n".ljust(
        512, b"\n"
    )
    yield from [b"0\n" * MIB] * 2000


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_long_names, "too many extension headers"),
        (_globals, "too many extension headers"),
        (_long_paths, "names, xattrs and maps of more than"),
        (_many_xattrs, "names, xattrs and maps of more than"),
        (_sparse_extensions, "a sparse map that is too long"),
        (_sparse_map, "sparse map"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_headers_of_gigabytes_are_refused_in_bounded_memory(
    make: Callable[[], Iterator[bytes]], why: str
) -> None:
    assert why in str(apart(_read, make(), Limits(), seconds=60, mib=450))


def test_entries_and_depth_have_limits_that_can_be_set() -> None:
    limits = Limits(entries=3, depth=2)
    with pytest.raises(LayerstoreError, match="more than 3 entries"):
        _read([hostile.file(b"a") * 4 + hostile.END], limits)
    with pytest.raises(LayerstoreError, match="more than 2 levels deep"):
        _read([hostile.file(b"a/b/c") + hostile.END], limits)
    assert _read([hostile.file(b"a/b") * 3 + hostile.END], limits) == 3


# -- compression -------------------------------------------------------------------------------


def _zeros(pack: str) -> bytes:
    """A GiB of zeros, in a tar, in few bytes (gzip: 256 MiB, it takes most)."""
    out = io.BytesIO()
    count = 64 if pack == "gzip" else 256
    chunk = bytes(4 * MIB)
    head = hostile.header(b"f", size=hostile.field(count * len(chunk), 12), magic=hostile.GNU)
    if pack == "gzip":
        with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as packed:
            packed.write(head)
            for _ in range(count):
                packed.write(chunk)
        return out.getvalue()
    packer = (
        lzma.LZMACompressor(preset=0) if pack == "xz" else zstandard.ZstdCompressor(1).compressobj()
    )
    out.write(packer.compress(head))
    for _ in range(count):
        out.write(packer.compress(chunk))
    out.write(packer.flush())
    return out.getvalue()


def _zstd_of_run_lengths() -> bytes:
    """Blocks of four bytes that stand for 128 KiB each: the most that zstd can expand."""
    block = (131072 << 3 | 2).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(17 - 10) << 3]) + block * 100_000


def _decompress(raw: bytes) -> int:
    chunks = decompressed(io.BytesIO(raw), limits=Limits(), where="the archive")
    return _read(chunks, Limits())


TOO_MUCH = "the archive expands more than 2000 times"


@pytest.mark.parametrize(
    ("pack", "says"),
    [("gzip", 1), ("zstd", TOO_MUCH), ("xz", TOO_MUCH)],
    ids=["gzip", "zstd", "xz"],
)
def test_a_gib_of_zeros_is_read_in_bounded_memory(pack: str, says: int | str) -> None:
    assert apart(_decompress, _zeros(pack), seconds=60, mib=180) == says


def test_a_stream_that_expands_too_much_is_refused_in_bounded_memory() -> None:
    assert apart(_decompress, _zstd_of_run_lengths(), seconds=30, mib=220) == TOO_MUCH


@pytest.mark.parametrize(
    ("empty", "count"),
    [
        (gzip.compress(b"", mtime=0), 200_000),
        (lzma.compress(b""), 100_000),
        (zstandard.ZstdCompressor().compress(b""), 300_000),
    ],
    ids=["gzip", "xz", "zstd"],
)
def test_many_empty_members_cost_what_they_weigh(empty: bytes, count: int) -> None:
    assert apart(_decompress, empty * count, seconds=15, mib=100) == 0


# -- the whole import ----------------------------------------------------------------------------


def _import(root: Path, chunks: Iterable[bytes]) -> int:
    with Store.open(root).transaction() as transaction:
        return len(stage_tar(transaction, chunks, where="the archive").entries)


def test_an_archive_that_turns_foreign_at_its_end_is_kept_in_bounded_memory(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        for number in range(200_000):
            yield hostile.header(b"%d" % number)
        yield hostile.header(b"strange", uid=b"0") + hostile.END

    assert apart(_import, tmp_path / "store", chunks(), seconds=60, mib=260) == 200_001


def _write_out(root: Path, raw: bytes, most_open: int) -> bool:
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_open, most_open))
    store = Store.open(root)
    try:
        with store.transaction() as transaction:
            stored = stage_tar(transaction, [raw], where="the archive")
            transaction.publish()
        [lower] = lower_directories(store, (stored.diff_id,))
        return lower.is_dir()
    finally:
        remove_tree(root / "trees")


def test_a_layer_deeper_than_the_limit_on_open_files_is_written_out(tmp_path: Path) -> None:
    raw = b"".join(
        hostile.pax({b"path": DEEP + b"/" + name}) + hostile.file(b"f") for name in (b"a/b", b"c")
    )
    raw += (
        hostile.file(b"top")
        + hostile.pax({b"linkpath": DEEP + b"/c"})
        + hostile.hardlink(b"z", b"z")
    )
    raw += hostile.END
    assert apart(_write_out, tmp_path / "store", raw, 150, seconds=60, mib=100) is True


def test_xattrs_that_the_file_system_cannot_hold_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "probe"
    folder.mkdir()
    try:
        os.setxattr(folder, "user.large", b"v" * 60_000)
    except OSError:
        raw = hostile.pax({b"SCHILY.xattr.user.large": b"v" * 60_000}) + hostile.file(b"f")
        answer = apart(_write_out, tmp_path / "s", raw + hostile.END, 1000, seconds=60, mib=100)
        assert str(answer).startswith("the xattr user.large of '/f', of 60000 bytes, does not fit")
    else:
        pytest.skip("needs a file system with a bound on xattrs, as ext4 has")
