"""Hostile archives: nothing outside changes, what is refused leaves nothing, the rest is exact.

Reference layers.md sections 5, 8.2 and 8.3; the archives are made in ``hostile``. Go's verdicts
were recorded once with ``compat/go_verdicts.go``: whatever Go refuses is refused here too.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hostile
import pytest
from abilities import needs_root

from layerstore.archive import import_root
from layerstore.errors import LayerstoreError
from layerstore.formats.entries import NANOSECOND, Kind
from layerstore.formats.oci import emit_config
from layerstore.formats.streams import Limits, decompressed
from layerstore.formats.tree import Node, Tree, TreeError, apply
from layerstore.formats.untar import TarError, TarReader
from layerstore.formats.xattrs import TRUSTED_OVERLAY, escaped_name
from layerstore.names import DiffID, ImageRef, Platform
from layerstore.store.deep import remove_tree
from layerstore.store.layers import stage_tar
from layerstore.store.store import Store
from layerstore.store.trees import lower_directories

HERE = Path(__file__).parent
CASES = hostile.cases()
REF = ImageRef.parse("hostile")
PLATFORM = Platform("linux", "amd64")
LETTERS = {
    Kind.FILE: "f", Kind.DIRECTORY: "d", Kind.SYMLINK: "l", Kind.CHAR: "c", Kind.BLOCK: "b",
    Kind.FIFO: "p",
}  # fmt: skip
# What ext4 keeps of a time.
_EARLIEST, _LATEST = -(1 << 31), (1 << 34) - (1 << 31) - 1


@dataclass(frozen=True)
class World:
    """A store, and what lies around it."""

    store: Store
    outside: Path
    archive: Path

    def around(self) -> dict[str, tuple[object, ...]]:
        """Everything that no archive may touch."""
        found: dict[str, tuple[object, ...]] = {}
        for folder in (self.outside, self.store.layout.root.parent):
            for path in [folder, *folder.iterdir()]:
                if path in (self.store.layout.root, self.archive, self.archive.parent):
                    continue
                status = path.lstat()
                found[str(path)] = (
                    status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_size,
                    status.st_mtime_ns, status.st_ctime_ns, tuple(os.listxattr(path)),
                )  # fmt: skip
        for name in ("pwn", "canary", "x"):
            found[f"/tmp/{name}"] = (Path(f"/tmp/{name}").exists(),)
        return found

    def inside(self) -> set[str]:
        """What the store holds."""
        layout = self.store.layout
        folders = ("layers", "images", "refs", "trees", "leases", "tmp", "derived", "quarantine")
        found = {
            f"{folder}/{name}" for folder in folders for name in os.listdir(layout.folder(folder))
        }
        return found | {str(digest) for digest, _ in self.store.objects.all()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    base = tmp_path_factory.mktemp("hostile")
    outside = base / "outside"
    outside.mkdir(0o700)
    (outside / "canary").write_text("alive\n")
    (base / "root-evil").write_text("alive\n")
    (base / "archives").mkdir()
    yield World(Store.open(base / "store"), outside, base / "archives" / "archive.tar")
    remove_tree(base / "store")  # deeper than pytest's own cleaning can go


@pytest.fixture(scope="module")
def made(world: World) -> dict[str, hostile.Case]:
    return {case.name: case for case in hostile.cases(os.fsencode(world.outside))}


def stage(store: Store, layers: tuple[bytes, ...]) -> tuple[DiffID, ...]:
    """The layers as an image: what load does for an archive of several."""
    with store.transaction() as transaction:
        tree = Tree()
        diff_ids = []
        for number, raw in enumerate(layers):
            where = f"layer {number}"
            chunks = decompressed(io.BytesIO(raw), limits=Limits(), where=where)
            stored = stage_tar(transaction, chunks, where=where)
            try:
                tree = apply(tree, stored.entries)
            except TreeError as error:
                raise TreeError(f"{where}: {error.brief}") from None
            diff_ids.append(stored.diff_id)
        config = emit_config(
            platform=PLATFORM, diff_ids=diff_ids, run={}, created="1970-01-01T00:00:00Z", history=[]
        )
        transaction.publish({REF: transaction.stage_image(config)})
    return tuple(diff_ids)


def described(tree: Tree) -> dict[str, str]:
    """The tree in the words of ``hostile.Case``; times are left out."""
    found = {}
    first: dict[int, str] = {}
    root = tree.root
    if (root.mode, root.uid, root.gid, root.xattrs) != (0o755, 0, 0, ()):
        found[""] = f"d{root.mode:o}"
    for path, node in tree.walk():
        shown = path.decode("utf-8", "backslashreplace")
        found[shown] = _words(node)
        if node.children is None:
            leader = first.setdefault(id(node), shown)
            if leader != shown:
                found[shown] += f" ={leader}"
    return found


def _words(node: Node) -> str:
    letter = LETTERS[node.kind]
    if node.kind is Kind.SYMLINK:
        words = f"l {node.link.decode()}"
    else:
        words = f"{letter}{node.mode:o}"
    if (node.uid, node.gid) != (0, 0):
        words += f" {node.uid}:{node.gid}"
    if node.kind is Kind.FILE:
        words += f" {node.size}"
    elif node.kind in (Kind.CHAR, Kind.BLOCK):
        words += f" {node.rdev[0]}:{node.rdev[1]}"
    return words + "".join(f" +{name.decode()}" for name, _ in node.xattrs)


@needs_root
@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_a_hostile_archive_is_refused_whole_or_gives_exactly_its_tree(
    name: str, world: World, made: dict[str, hostile.Case]
) -> None:
    case = made[name]
    store = world.store
    around, inside = world.around(), world.inside()
    if case.tree is None:
        with pytest.raises(LayerstoreError) as caught:
            stage(store, case.layers)
        assert case.refused is not None
        assert case.refused in caught.value.brief
        assert f"layer {len(case.layers) - 1}" in caught.value.brief
        if len(case.layers) == 1:
            refused_by_import(case, world)
        assert world.inside() == inside
    else:
        diff_ids = stage(store, case.layers)
        for diff_id, raw in zip(diff_ids, case.layers, strict=True):
            plain = b"".join(decompressed(io.BytesIO(raw), limits=Limits(), where="it"))
            assert b"".join(store.layers.tar(diff_id)) == plain
        tree = store.layers.tree(diff_ids)
        assert described(tree) == case.tree
        lowers = lower_directories(store, diff_ids)
        assert 1 <= len(lowers) <= len(case.layers)
        if len(case.layers) == 1:
            assert differences(tree, lowers[0], store) == []
    assert world.around() == around
    assert (world.outside / "canary").read_text() == "alive\n"


def refused_by_import(case: hostile.Case, world: World) -> None:
    """The command's own way in says no too, and names the file."""
    world.archive.write_bytes(case.layers[0])
    with pytest.raises(LayerstoreError) as caught:
        import_root(
            world.store, world.archive, REF, platform=PLATFORM, created="1970-01-01T00:00:00Z"
        )
    assert str(world.archive) in caught.value.brief
    assert case.refused is not None
    assert case.refused in caught.value.brief


def differences(tree: Tree, root: Path, store: Store) -> list[str]:
    """Where a lower directory is not what the tree says."""
    wrong = []
    inodes: dict[int, int] = {}
    seen = {b""}
    for path, node, parent, status in on_disk(tree, root):
        seen.add(path)
        expected = (
            LETTERS[node.kind], node.mode if node.kind is not Kind.SYMLINK else 0o777, node.uid,
            node.gid, node.size if node.kind is Kind.FILE else None, clamped(node.mtime_ns),
        )  # fmt: skip
        found = (
            {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFCHR: "c",
             stat.S_IFBLK: "b", stat.S_IFIFO: "p"}[stat.S_IFMT(status.st_mode)],
            stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid,
            status.st_size if node.kind is Kind.FILE else None, status.st_mtime_ns,
        )  # fmt: skip
        if expected != found:
            wrong.append(f"{path!r}: {found}, not {expected}")
        if node.kind is not Kind.DIRECTORY and inodes.setdefault(id(node), status.st_ino) != (
            status.st_ino
        ):
            wrong.append(f"{path!r} is not the inode of its other names")
        name = b"/proc/self/fd/%d/%s" % (parent, path.rpartition(b"/")[2])
        xattrs = {
            os.fsencode(key): os.getxattr(name, key, follow_symlinks=False)
            for key in os.listxattr(name, follow_symlinks=False)
        }
        if xattrs != {escaped_name(name, TRUSTED_OVERLAY): v for name, v in node.xattrs}:
            wrong.append(f"{path!r}: xattrs {xattrs}")
        if node.kind is Kind.SYMLINK and os.readlink(name) != node.link:
            wrong.append(f"{path!r}: a wrong target")
        if node.kind in (Kind.CHAR, Kind.BLOCK) and status.st_rdev != os.makedev(*node.rdev):
            wrong.append(f"{path!r}: a wrong device")
    expected_paths = {path for path, _ in tree.walk()} | {b""}
    return wrong + [f"{path!r} is missing" for path in expected_paths - seen]


def on_disk(tree: Tree, root: Path) -> Iterator[tuple[bytes, Node, int, os.stat_result]]:
    """(path, node, parent's descriptor, status) of all below ``root``, which the tree has too."""

    def walk(prefix: bytes, fd: int) -> Iterator[tuple[bytes, Node, int, os.stat_result]]:
        # An own stack of descriptors would hold a thousand of them for the deepest case.
        for name in sorted(os.fsencode(name) for name in os.listdir(fd)):
            path = prefix + name
            node = tree.lookup(path)
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            assert node is not None, f"{path!r} should not be there"
            yield path, node, fd, status
            if stat.S_ISDIR(status.st_mode):
                pending.append(path + b"/")

    pending = [b""]
    while pending:
        prefix = pending.pop()
        fd = os.open(root, os.O_RDONLY)
        try:
            for part in prefix.split(b"/")[:-1]:
                inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield from walk(prefix, fd)
        finally:
            os.close(fd)


def clamped(mtime_ns: int) -> int:
    seconds, nanoseconds = divmod(mtime_ns, NANOSECOND)
    if seconds < _EARLIEST:
        return _EARLIEST * NANOSECOND
    if seconds > _LATEST:
        return _LATEST * NANOSECOND
    return seconds * NANOSECOND + nanoseconds


TARS = dict(hostile.tars())
GO = json.loads((HERE / "go_verdicts.json").read_text())
_SAME_IN_GO = {"\0": "0", "7": "0", "S": "0"}


@pytest.mark.parametrize("name", TARS)
def test_what_go_refuses_is_refused_and_what_both_read_is_the_same(name: str) -> None:
    verdict = GO[name]
    try:
        ours = read(TARS[name])
    except TarError:
        return
    assert "refused" not in verdict
    for entry, own in zip(verdict.get("entries", []), ours, strict=True):
        if own is None:
            continue
        facts, xattrs = own
        assert facts == from_go(entry)
        assert xattrs.items() <= entry.get("xattrs", {}).items()


Facts = tuple[object, ...]


def read(raw: bytes) -> list[tuple[Facts, dict[str, str]] | None]:
    """What the reader says of each member; None for a whiteout, which Go does not know."""
    found: list[tuple[Facts, dict[str, str]] | None] = []
    reader = TarReader(iter([raw]), where="the archive")
    for member in reader:
        for _ in reader.content():
            pass
        entry = member.entry
        if entry.kind in (Kind.WHITEOUT, Kind.OPAQUE):
            found.append(None)
            continue
        facts = (
            shown(entry.path), shown(entry.link), chr(entry.kind), entry.size, entry.mode,
            entry.uid, entry.gid, entry.mtime_ns, entry.rdev,
        )  # fmt: skip
        found.append((facts, {shown(key): shown(value) for key, value in entry.xattrs}))
    return found


def from_go(entry: dict[str, Any]) -> Facts:
    """As ``read`` has it: what Go leaves to its callers is done here."""
    kind = _SAME_IN_GO.get(entry["type"], entry["type"])
    name, link = entry["name"], entry.get("link", "")
    if not name.startswith("sha256:"):
        name = shown(b"/".join(p for p in bytes.fromhex(name).split(b"/") if p not in (b"", b".")))
    if kind == "1" and not link.startswith("sha256:"):
        link = shown(b"/".join(p for p in bytes.fromhex(link).split(b"/") if p not in (b"", b".")))
    seconds, nanoseconds = entry["mtime"]
    device = tuple(entry["device"]) if kind in "34" else (0, 0)
    return (
        name, link if kind in "12" else "", kind, entry.get("size", 0) if kind == "0" else 0,
        entry["mode"] & 0o7777, entry.get("uid", 0), entry.get("gid", 0),
        seconds * NANOSECOND + nanoseconds, device,
    )  # fmt: skip


def shown(text: bytes) -> str:
    return f"sha256:{hashlib.sha256(text).hexdigest()}" if len(text) > 100 else text.hex()
