from __future__ import annotations

import hashlib
import re
import struct

import pytest
from erofs_trees import Contents, awkward_tree, content_of, differences, directory, file, symlink

from layerstore.formats import erofs, erofs_xattrs
from layerstore.formats.entries import Kind, Xattrs
from layerstore.formats.erofs import ErofsError, emit, object_path
from layerstore.formats.erofs_read import parse
from layerstore.formats.tree import Node, Tree
from layerstore.names import Digest
from layerstore.store import composed

DIGEST = Digest("sha256:" + "ab" + "cdef" * 15 + "01")


def tree_of(**children: Node) -> Tree:
    return tree_with({name.encode(): node for name, node in children.items()})


def tree_with(children: dict[bytes, Node]) -> Tree:
    tree = Tree()
    tree.root.children = children
    return tree


def crc32c_bit_by_bit(payload: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in payload:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


def test_the_worked_example_of_the_format_is_written_byte_for_byte() -> None:
    path = b"/.layerstore/ab/" + b"cdef" * 15 + b"01"
    assert len(path) == 78
    node = Node(Kind.FILE, 0o644, size=5000, digest=DIGEST)

    expected = bytearray(4096)
    struct.pack_into("<III", expected, 1024, 0xE0F5E1E2, 0, 7)
    struct.pack_into("<BBHQ", expected, 1036, 12, 0, 36, 2)
    struct.pack_into("<I", expected, 1060, 1)
    struct.pack_into("<I", expected, 1104, 4)
    struct.pack_into("<HHH", expected, 1152, 5, 0, 0o40755)
    struct.pack_into("<QII", expected, 1160, 40, 0, 1)
    struct.pack_into("<I", expected, 1196, 2)
    for number, (nid, offset, kind) in enumerate(((36, 36, 2), (36, 38, 2), (40, 39, 1))):
        # "." ends at 37: names lie back to back.
        offset = (36, 37, 39)[number]
        struct.pack_into("<QHBB", expected, 1216 + 12 * number, nid, offset, kind, 0)
    expected[1252:1256] = b"...a"
    struct.pack_into("<HHH", expected, 1280, 9, 31, 0o100644)
    struct.pack_into("<QII", expected, 1288, 5000, 1, 2)
    struct.pack_into("<I", expected, 1324, 1)
    struct.pack_into("<I", expected, 1344, 0x7FFDFFFF)
    expected[1356:1376] = b"\x10\x04\x00\x00overlay.metacopy"
    expected[1376:1474] = b"\x10\x04\x4e\x00overlay.redirect" + path
    expected[1476:1480] = b"\xff\xff\xff\xff"
    uuid = hashlib.sha256(b"layerstore erofs 1\0" + expected).digest()[:16]
    expected[1072:1088] = uuid
    struct.pack_into("<I", expected, 1028, crc32c_bit_by_bit(bytes(expected[1024:])))

    assert emit(tree_of(a=node)) == expected


def _rows(documentation: str, table: str) -> list[tuple[int, int, bool]]:
    """(offset, size, whether it is zero) of the fixed rows of a table in a docstring."""
    lines = iter(documentation.splitlines())
    for line in lines:
        if line.split() == ["off", "size", *table.split(), "field"]:
            break
    else:
        raise AssertionError(f"no table {table}")
    rows = []
    for line in lines:
        if not line.strip():
            break
        match = re.match(r" {4,8}(\d+) +(\d+)  (\S.*)$", line)
        if match:
            rows.append((int(match[1]), int(match[2]), match[3].startswith("zero")))
    return rows


@pytest.mark.parametrize(
    ("documentation", "table", "form"),
    [
        pytest.param(erofs.__doc__, "superblock", erofs.SUPERBLOCK, id="superblock"),
        pytest.param(erofs.__doc__, "inode", erofs.INODE, id="inode"),
        pytest.param(erofs.__doc__, "directory entry", erofs.DIRENT, id="directory entry"),
        pytest.param(erofs_xattrs.__doc__, "xattr area", erofs_xattrs.AREA, id="xattr area"),
        pytest.param(erofs_xattrs.__doc__, "xattr entry", erofs_xattrs.ENTRY, id="xattr entry"),
    ],
)
def test_the_tables_in_the_docstrings_are_the_structures(
    documentation: str, table: str, form: struct.Struct
) -> None:
    fields = []
    at = 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", form.format):
        size = struct.calcsize("<" + count + code)
        assert not count or code in "sx"
        fields.append((at, size, code == "x"))
        at += size
    assert _rows(documentation, table) == fields
    assert at == form.size


def test_another_image_of_the_same_tree_needs_another_writer_number() -> None:
    tree, contents = awkward_tree()
    image = hashlib.sha256(emit(tree, inline=contents)).hexdigest()
    assert composed.WRITER == erofs.WRITER
    assert (erofs.WRITER, image) == (
        1,
        "1e34f12b6583365bf03646360a08b065bdc9fc524e86ba3b16b2795ab8ecdb1f",
    )


@pytest.mark.parametrize("inline_limit", [0, 64, 4096, 1 << 21])
def test_thousands_of_awkward_paths_are_read_back_as_they_were(inline_limit: int) -> None:
    tree, contents = awkward_tree()
    image = parse(emit(tree, inline=contents, inline_limit=inline_limit), where="test")
    assert list(differences(tree, image.tree)) == []


def test_a_file_is_inline_up_to_the_limit_if_its_content_is_at_hand() -> None:
    contents: Contents = {}
    children = {b"%d" % size: file(content_of(size), contents) for size in (1, 64, 65)}
    image = parse(emit(tree_with(children), inline=contents), where="test")
    assert sorted(map(len, image.inline.values())) == [1, 64]
    image = parse(emit(tree_with(children)), where="test")
    assert image.inline == {}
    image = parse(emit(tree_with(children), inline=contents.get, inline_limit=65), where="test")
    assert sorted(map(len, image.inline.values())) == [1, 64, 65]


def test_a_sparse_file_is_never_inline_since_its_digest_is_not_that_of_its_content() -> None:
    contents: Contents = {}
    node = file(b"map and data", contents)
    node.size, node.extents = 40, ()
    image = parse(emit(tree_of(sparse=node), inline=contents), where="test")
    assert image.inline == {}
    found = image.tree.lookup(b"sparse")
    assert found is not None
    assert (found.size, found.digest) == (40, node.digest)


def test_another_place_of_objects_is_what_the_redirects_say() -> None:
    node = Node(Kind.FILE, 0o644, size=5000, digest=DIGEST)
    image = emit(tree_of(a=node), redirect=lambda digest: b"/elsewhere/" + digest.hex[:9].encode())
    assert b"overlay.redirect/elsewhere/abcdefcde\xff\xff\xff\xff" in image
    assert b".layerstore" not in image


def test_the_same_xattr_is_written_once_and_shared() -> None:
    xattrs: Xattrs = ((b"user.note", b"N" * 500),)
    nodes = {b"f%d" % n: Node(Kind.FILE, 0o644, xattrs=xattrs) for n in range(50)}
    image = emit(tree_with(nodes))
    assert image.count(b"N" * 500) == 1
    assert len(image) == 2 * 4096
    assert list(differences(tree_with(nodes), parse(image, where="test").tree)) == []


def test_an_inode_shares_at_most_127_xattrs() -> None:
    xattrs = tuple(sorted((b"user.%03d" % n, b"") for n in range(200)))
    nodes = {name: Node(Kind.FILE, 0o644, xattrs=xattrs) for name in (b"a", b"b")}
    image = emit(tree_with(nodes))
    assert image.count(b"\x03\x01\x00\x00150\0") == 2
    assert image.count(b"\x03\x01\x00\x00050\0") == 1
    assert list(differences(tree_with(nodes), parse(image, where="test").tree)) == []


def test_an_images_own_xattrs_of_overlayfs_are_escaped() -> None:
    xattrs: Xattrs = ((b"trusted.overlay.opaque", b"y"),)
    image = emit(tree_of(d=Node(Kind.DIRECTORY, 0o755, xattrs=xattrs)))
    assert b"\x16\x04\x01\x00overlay.overlay.opaquey" in image


def test_the_root_may_be_moved_to_keep_its_entries_in_one_block() -> None:
    tree = tree_of(name=Node(Kind.FILE, 0o644))
    tree.root.xattrs = ((b"user.long", bytes(2850)),)
    image = emit(tree)
    nid = erofs.SUPERBLOCK.unpack_from(image, 1024)[4]
    assert nid > 36
    assert list(differences(tree, parse(image, where="test").tree)) == []


def test_links_and_directories_are_counted() -> None:
    linked = Node(Kind.FILE, 0o644)
    inner = directory()
    inner.children = {b"deeper": directory(), b"link": linked}
    tree = tree_of(a=linked, b=linked, d=inner, e=directory())
    image = emit(tree)
    counted = sorted(
        int(erofs.INODE.unpack_from(image, at)[10])
        for at in range(1152, len(image) - 64, 32)
        if erofs.INODE.unpack_from(image, at)[0] in (1, 5) and erofs.INODE.unpack_from(image, at)[5]
    )
    # deeper and e; the inner one; the file's three names; the root.
    assert counted == [2, 2, 3, 3, 4]
    assert erofs.SUPERBLOCK.unpack_from(image, 1024)[5] == 5


def test_the_uuid_says_whether_the_inode_numbers_are_the_same() -> None:
    def uuid(tree: Tree, inline_limit: int = 64) -> bytes:
        image = emit(tree, inline=contents, inline_limit=inline_limit)
        return parse(image, where="test").uuid

    contents: Contents = {}
    tree = tree_of(a=file(content_of(60), contents), b=file(content_of(70), contents))
    assert uuid(tree) == uuid(tree)
    others = [uuid(tree), uuid(tree, inline_limit=70), uuid(tree, inline_limit=0)]
    tree = tree_of(a=file(content_of(60), contents, 0o600), b=file(content_of(70), contents))
    assert len({*others, uuid(tree), bytes(16)}) == 5


def _named(name: bytes) -> Tree:
    return tree_of(dir=tree_with({name: Node(Kind.FILE, 0o644)}).root)


def _node(**attributes: object) -> Tree:
    node = Node(Kind.FILE, 0o644)
    for name, value in attributes.items():
        setattr(node, name, value)
    return tree_of(name=node)


def _twice() -> Tree:
    twice = directory()
    return tree_of(a=twice, b=twice)


def _loop() -> Tree:
    loop = directory()
    loop.children = {b"loop": loop}
    return tree_of(loop=loop)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (tree_with({b".layerstore": directory()}), r"may not have the path '/\.layerstore'"),
        (Tree(Node(Kind.FILE, 0o644)), "the root of an image must be a directory"),
        (_named(b""), "the directory '/dir' has the entry b'', which is no name"),
        (_named(b"."), r"the directory '/dir' has the entry b'\.', "),
        (_named(b".."), r"the directory '/dir' has the entry b'\.\.', "),
        (_named(b"a/b"), "the directory '/dir' has the entry b'a/b', "),
        (_named(b"a\0"), r"the directory '/dir' has the entry b'a\\x00', "),
        (_named(b"n" * 256), "the directory '/dir' has the entry b'n{80}', "),
        (_node(size=5), "'/name' has 5 bytes and no digest"),
        (_node(size=5, digest=DIGEST), "'/name' has 5 bytes, its content 3"),
        (_node(size=(8 << 40) + 1, digest=DIGEST), "'/name' has 8796093022209 bytes; EROFS has 8"),
        (_node(size=-1, digest=DIGEST, extents=()), "'/name' has a number .*, size -1"),
        (_node(mode=0o10644), "'/name' has the mode 0o10644"),
        (_node(mode=-1), "out of range: mode -1"),
        (_node(uid=2**32), "owner 4294967296:0"),
        (_node(uid=2**32 - 1), "owner 4294967295:0"),
        (_node(gid=2**32 - 1), "owner 0:4294967295"),
        (_node(gid=-1), "owner 0:-1"),
        (_node(mtime_ns=2**63 * 10**9), "mtime 9223372036854775808000000000 ns"),
        (_node(kind=Kind.WHITEOUT), "'/name' is a whiteout, which is nothing in a tree"),
        (_node(kind=Kind.HARDLINK), "'/name' is a hardlink, which is nothing in a tree"),
        (_node(kind=Kind.CHAR), "'/name' is the char device 0:0"),
        (_node(kind=Kind.CHAR, rdev=(4096, 0)), "'/name' is the device 4096:0"),
        (_node(kind=Kind.BLOCK, rdev=(0, 1 << 20)), "'/name' is the device 0:1048576"),
        (tree_of(name=symlink(b"")), "'/name' is a symlink to '/' of 0 bytes"),
        (tree_of(name=symlink(b"x" * 4096)), "'/name' is a symlink to '/x{80}' of 4096 bytes"),
        (tree_of(name=symlink(b"a\0")), "of 2 bytes"),
        (_node(xattrs=((b"user.", b""),)), "'/name' has the xattr name 'user.'"),
        (_node(xattrs=((b"other.a", b""),)), "'/name' has the xattr name 'other.a'"),
        (_node(xattrs=((b"system.posix_acl_accessx", b""),)), "name 'system.posix_acl_accessx'"),
        (_node(xattrs=((b"trusted.overlay.", b""),)), "name 'trusted.overlay.'"),
        (_node(xattrs=((b"user.\0", b""),)), "'/name' has the xattr name 'user.\\\\x00'"),
        (_node(xattrs=((b"user." + b"n" * 251, b""),)), "'/name' has the xattr name 'user.nnn"),
        (_node(xattrs=((b"user.a", bytes(65536)),)), "has the xattr 'user.a' of 65536 bytes"),
        (_node(xattrs=((b"user.a", b""),) * 2), "'/name' has an xattr twice"),
        (
            _node(xattrs=tuple((b"user.%d" % n, bytes(65000)) for n in range(5))),
            "'/name' has 5 xattrs of 325040 bytes",
        ),
        (
            _node(xattrs=tuple((b"user.%0200d" % n, b"") for n in range(400))),
            "'/name' has 400 xattrs of 81600 bytes",
        ),
        (_twice(), "'/b' is a directory with another name"),
        (_loop(), "'/loop/loop' is a directory with another name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_an_image_cannot_say_is_refused(tree: Tree, message: str) -> None:
    with pytest.raises(ErofsError, match=message):
        emit(tree, inline={DIGEST: b"123"})


def test_sizes_of_exactly_8_tib_and_devices_of_the_largest_numbers_are_written() -> None:
    tree = tree_of(
        huge=Node(Kind.FILE, 0o644, size=8 << 40, digest=DIGEST),
        device=Node(Kind.CHAR, 0o644, rdev=(4095, 2**20 - 1)),
    )
    assert list(differences(tree, parse(emit(tree), where="test").tree)) == []


def test_objects_are_named_by_two_and_sixty_two_digits() -> None:
    assert object_path(DIGEST) == b"/.layerstore/ab/" + b"cdef" * 15 + b"01"
