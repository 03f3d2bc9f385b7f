"""The loader's cache: bytes as glibc's ldconfig writes them, and back."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest
from abilities import needs_tool
from fake_elf import fake_elf

from layerstore.errors import FormatError
from layerstore.formats import elf, ldcache
from layerstore.formats.ldcache import CachedLibrary

ROWS = [
    CachedLibrary(b"liba.so.1", b"/opt/a/liba.so.1", 0x0303),
    CachedLibrary(b"libz.so.9", b"/opt/z/libz.so.9", 0x0303),
    CachedLibrary(b"libz.so.10", b"/opt/z/libz.so.10", 0x0303),
    CachedLibrary(b"liba.so.1", b"/opt/later/liba.so.1", 0x0303),
]


def test_rows_are_in_descending_order_with_numbers_as_numbers() -> None:
    rows = ldcache.parse(ldcache.emit(ROWS, little_endian=True), little_endian=True)
    assert rows == [ROWS[2], ROWS[1], ROWS[0], ROWS[3]]


def test_the_bytes_are_those_of_the_format() -> None:
    assert ldcache.emit(ROWS[:1], little_endian=True) == (
        b"glibc-ld.so.cache1.1"
        + struct.pack("<IIB3xI12x", 1, 27, 2, 0)
        + struct.pack("<iIIIQ", 0x0303, 72, 82, 0, 0)
        + b"liba.so.1\0/opt/a/liba.so.1\0"
    )


def test_big_endian_caches_say_so() -> None:
    cache = ldcache.emit(ROWS, little_endian=False)
    assert cache[28] == 3
    assert len(ldcache.parse(cache, little_endian=False)) == 4
    with pytest.raises(FormatError, match="other byte order"):
        ldcache.parse(ldcache.emit([], little_endian=True), little_endian=False)


@pytest.mark.parametrize(
    ("cache", "brief"),
    [
        (b"ld.so-1.7.0" + bytes(60), "begins with b'ld.so-1.7.0"),
        (ldcache.emit(ROWS, little_endian=True)[:-1], "of 4 rows ends at byte"),
        (ldcache.emit([], little_endian=True)[:40], "begins with b'glibc-ld.so.cache1.1'"),
    ],
    ids=["old format", "truncated strings", "truncated header"],
)
def test_other_bytes_are_refused(cache: bytes, brief: str) -> None:
    with pytest.raises(FormatError, match=brief):
        ldcache.parse(cache, little_endian=True)


@pytest.mark.parametrize(
    ("machine", "bits", "flags"),
    [(62, 64, 0x303), (3, 32, 0x3), (183, 64, 0xA03), (40, 32, 0x903), (8, 32, None)],
    ids=["x86_64", "i386", "aarch64", "armhf", "mips"],
)
def test_the_abi_flags_are_glibcs(machine: int, bits: int, flags: int | None) -> None:
    image = fake_elf(machine=machine, bits=bits)
    parsed = elf.parse(lambda offset, size: image[offset : offset + size])
    assert ldcache.flags_of(parsed) == flags


@needs_tool("ldconfig")
def test_ldconfig_reads_what_we_write_and_we_read_what_it_writes(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    ours.write_bytes(ldcache.emit(ROWS, little_endian=True))
    shown = subprocess.run(
        ["ldconfig", "-p", "-C", ours], capture_output=True, text=True, check=True
    )
    assert [line.strip() for line in shown.stdout.splitlines()[1:5]] == [
        "libz.so.10 (libc6,x86-64) => /opt/z/libz.so.10",
        "libz.so.9 (libc6,x86-64) => /opt/z/libz.so.9",
        "liba.so.1 (libc6,x86-64) => /opt/a/liba.so.1",
        "liba.so.1 (libc6,x86-64) => /opt/later/liba.so.1",
    ]
    theirs = tmp_path / "theirs"
    subprocess.run(["ldconfig", "-X", "-C", theirs], check=True, capture_output=True)
    rows = ldcache.parse(theirs.read_bytes(), little_endian=True)
    assert "libc.so.6" in {os.fsdecode(row.name) for row in rows}
    again = ldcache.parse(ldcache.emit(rows, little_endian=True), little_endian=True)
    assert again == rows
