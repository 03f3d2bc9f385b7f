from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from erofs_trees import Contents, content_of, file, symlink

from layerstore.formats.entries import Kind
from layerstore.formats.erofs import ErofsError, emit, seal
from layerstore.formats.erofs_read import parse
from layerstore.formats.tree import Node, Tree

ROOT = 1152
DIRENTS = ROOT + 64


def sample() -> bytearray:
    contents: Contents = {}
    tree = Tree()
    big = file(content_of(5000), contents)
    tree.root.children = {
        b"big": big,
        b"link": symlink(b"target"),
        b"small": file(content_of(10), contents),
        b"pipe": Node(Kind.FIFO, 0o600),
        b"tty": Node(Kind.CHAR, 0o600, rdev=(5, 0)),
        b"sub": Node(Kind.DIRECTORY, 0o755),
    }
    sub = tree.root.children[b"sub"]
    sub.children = {b"again": big}
    return bytearray(emit(tree, inline=contents))


def at_inode(image: bytearray, name: bytes) -> int:
    """The inode's offset, by the root's entries."""
    for number in range(8):
        nid, offset, _ = struct.unpack_from("<QHBx", image, DIRENTS + 12 * number)
        start = DIRENTS + offset
        if image[start : start + len(name)] == name:
            return int(nid) * 32
    raise AssertionError(name)


Forgery = Callable[[bytearray], object]


def put(name: bytes, offset: int, form: str, *values: int) -> Forgery:
    """Changes a field of the named inode; of the superblock without a name."""

    def forge(image: bytearray) -> None:
        at = at_inode(image, name) if name else 0
        struct.pack_into(form, image, at + offset, *values)

    return forge


def dirent(number: int, form: str, offset: int, value: int) -> Forgery:
    return put(b"", DIRENTS + 12 * number + offset, form, value)


def replace(old: bytes, new: bytes) -> Forgery:
    def forge(image: bytearray) -> None:
        assert image.count(old) == 1
        image[:] = image.replace(old, new)

    return forge


def test_the_sample_is_sound() -> None:
    image = parse(bytes(sample()), where="sample")
    assert [path for path, _ in image.tree.walk()] == [
        b"big", b"link", b"pipe", b"small", b"sub", b"sub/again", b"tty",
    ]  # fmt: skip
    assert list(image.inline.values()) == [content_of(10)]
    assert image.tree.lookup(b"sub/again") is image.tree.lookup(b"big")


# The root's entries: . .. big link pipe small sub tty
@pytest.mark.parametrize(
    ("forge", "message"),
    [
        pytest.param(put(b"", 1024, "<I", 1), "superblock of another kind", id="magic"),
        pytest.param(put(b"", 1032, "<I", 3), "superblock of another kind", id="compatible"),
        pytest.param(put(b"", 1036, "<B", 9), "superblock of another kind", id="block size"),
        pytest.param(put(b"", 1104, "<I", 12), "superblock of another kind", id="incompatible"),
        pytest.param(put(b"", 1060, "<I", 2), "2 blocks in 4096 bytes", id="blocks"),
        pytest.param(put(b"", 1040, "<Q", 9), "7 of 9 inodes have a name", id="inodes"),
        pytest.param(put(b"", 1038, "<H", 60000), "inode 60000, beyond the end", id="root"),
        pytest.param(put(b"big", 4, "<H", 0o644), "inode of mode 0o644", id="no type"),
        pytest.param(put(b"big", 4, "<H", 0o140644), "inode of mode 0o140644", id="socket"),
        pytest.param(put(b"big", 40, "<I", 10**9), "1000000000 ns", id="nanoseconds"),
        pytest.param(put(b"big", 44, "<I", 1), "an inode of 2 names and nlink 1", id="nlink"),
        pytest.param(put(b"sub", 44, "<I", 3), "a directory of nlink 3", id="directory nlink"),
        pytest.param(put(b"big", 16, "<I", 2), r"2\^2 blocks for 5000 bytes", id="chunk size"),
        pytest.param(put(b"big", 8, "<Q", 9000), r"2\^1 blocks for 9000 bytes", id="size"),
        pytest.param(put(b"big", 0, "<H", 1), "overlayfs' xattrs on", id="not chunks"),
        pytest.param(put(b"big", 64, "<I", 0), "an xattr filter 0x0", id="filter"),
        pytest.param(put(b"big", 2, "<H", 32), "an xattr of prefix 255", id="xattr count"),
        pytest.param(put(b"big", 68, "<B", 1), "an xattr", id="shared xattr"),
        pytest.param(put(b"big", 77, "<B", 9), "prefix 9", id="xattr prefix"),
        pytest.param(put(b"small", 0, "<H", 3), "an inode of layout 1", id="layout"),
        pytest.param(put(b"small", 0, "<H", 9), "a chunk with data", id="chunks without marks"),
        pytest.param(put(b"small", 0, "<H", 1), "data after the end", id="block 0"),
        pytest.param(put(b"small", 8, "<Q", 4096), "inline tail of 0 bytes", id="no tail"),
        pytest.param(put(b"small", 8, "<Q", 4000), "inline tail of 4000", id="tail across blocks"),
        pytest.param(put(b"link", 8, "<Q", 0), "inline tail of 0", id="empty target"),
        pytest.param(put(b"pipe", 8, "<Q", 1), "data after the end", id="fifo with data"),
        pytest.param(put(b"tty", 16, "<I", 0), r"a device \(0, 0\)", id="char 0:0"),
        pytest.param(put(b"tty", 8, "<Q", 7), "device .* of 7 bytes", id="device with a size"),
        pytest.param(dirent(0, "<Q", 0, 40), r"a b'\.' that leads to", id="dot"),
        pytest.param(dirent(1, "<Q", 0, 40), r"a b'\.\.' that leads to", id="dot dot"),
        pytest.param(dirent(2, "<Q", 0, 1 << 60), "inode 1152921504606846976", id="nid"),
        pytest.param(dirent(2, "<B", 10, 7), "the name b'big' with the type 7", id="type"),
        pytest.param(dirent(0, "<H", 8, 0), "a directory with 0 bytes", id="no entries"),
        pytest.param(dirent(0, "<H", 8, 95), "a directory with 95 bytes", id="names in an entry"),
        pytest.param(dirent(3, "<H", 8, 9), "the name", id="name before the names"),
        pytest.param(dirent(5, "<Q", 0, 36), "the name b'small' with", id="root as a file"),
        pytest.param(dirent(6, "<Q", 0, 36), "the second name b'sub' of a directory", id="loop"),
        pytest.param(replace(b"biglink", b"zzzlink"), "b'link' after b'zzz'", id="order"),
        pytest.param(replace(b"biglink", b"b/glink"), "the name b'b/g'", id="slash"),
        pytest.param(replace(b"biglink", b"b\0glink"), r"the name b'b\\x00g'", id="NUL"),
        pytest.param(replace(b".metacopy", b".metacopX"), "the overlayfs xattrs", id="marks"),
        pytest.param(replace(b"/.layerstore/", b"/.layerstorf/"), "a redirect to b'/", id="path"),
        pytest.param(replace(b"\xff\xff\xff\xff", b"\0\0\0\0"), "a chunk with data", id="data"),
        pytest.param(lambda image: image.extend(bytes(100)), "length of 4196", id="length"),
        pytest.param(bytearray.clear, "length of 0", id="empty"),
    ],
)  # fmt: skip
def test_an_image_that_breaks_a_rule_is_refused(forge: Forgery, message: str) -> None:
    image = sample()
    forge(image)
    if image:
        seal(image)
    with pytest.raises(ErofsError, match=message) as caught:
        parse(bytes(image), where="sample")
    assert caught.value.brief.startswith("the metadata image sample is damaged: ")
    assert caught.value.hint == "remove it: it is made again from the layers"


@pytest.mark.parametrize("place", [0, 1028, 1072, 1300, 4095])
def test_a_changed_byte_breaks_the_seal(place: int) -> None:
    image = sample()
    image[place] ^= 1
    with pytest.raises(ErofsError, match="a wrong uuid or checksum"):
        parse(bytes(image), where="sample")
