"""The ELF reader: what a loader reads, from files of every class and byte order."""

from __future__ import annotations

import contextlib
import json
import struct

import pytest
from fake_elf import fake_elf
from hypothesis import given
from hypothesis import strategies as st

from layerstore.errors import FormatError
from layerstore.formats import elf


def parse(image: bytes) -> elf.Elf:
    return elf.parse(lambda offset, size: image[offset : offset + size])


@pytest.mark.parametrize(
    ("bits", "little_endian", "machine"),
    [(64, True, 62), (32, True, 3), (64, False, 22), (32, False, 8), (64, True, 183)],
    ids=["x86_64", "i386", "s390x", "mips", "aarch64"],
)
def test_every_field_is_read_in_every_class_and_byte_order(
    bits: int, little_endian: bool, machine: int
) -> None:
    image = fake_elf(
        bits=bits,
        little_endian=little_endian,
        machine=machine,
        kind=2,
        interpreter="/lib/ld.so.1",
        needed=["liba.so.1", "libb.so"],
        soname="me.so.3",
        rpath="/r1:$ORIGIN/r2",
        runpath="/u1::/u2",
        flags_1=0x08000801,
        names=["__pthread_exit", "getaddrinfo", "pthread_cancel_"],
    )
    assert parse(image) == elf.Elf(
        bits=bits,
        little_endian=little_endian,
        kind=2,
        machine=machine,
        interpreter=b"/lib/ld.so.1",
        needed=(b"liba.so.1", b"libb.so"),
        soname=b"me.so.3",
        rpath=(b"/r1", b"$ORIGIN/r2"),
        runpath=(b"/u1", b"/u2"),
        no_default_path=True,
        mentions=frozenset((b"pthread_exit", b"getaddrinfo")),
    )


def test_a_static_program_needs_nothing() -> None:
    found = parse(fake_elf(is_dynamic=False, kind=2))
    assert found.is_static
    assert (found.interpreter, found.needed, found.runpath) == (None, (), None)


def test_an_empty_runpath_is_not_the_same_as_none() -> None:
    assert parse(fake_elf(runpath="")).runpath == ()
    assert parse(fake_elf()).runpath is None


@pytest.mark.parametrize(
    ("other", "fits"),
    [
        ({}, True),
        ({"kind": 2}, True),
        ({"bits": 32}, False),
        ({"machine": 183}, False),
        ({"little_endian": False}, False),
    ],
    ids=["same", "other kind", "other class", "other machine", "other byte order"],
)
def test_objects_fit_one_process_only_by_class_machine_and_byte_order(
    other: dict[str, int], fits: bool
) -> None:
    assert parse(fake_elf()).fits(parse(fake_elf(**other))) is fits  # type: ignore[arg-type]


def note(owner: bytes, kind: int, payload: bytes, align: int = 4) -> bytes:
    head = struct.pack("<III", len(owner), len(payload), kind) + owner
    head += bytes(-len(head) % align)
    return head + payload + bytes(-len(payload) % align)


@pytest.mark.parametrize("align", [4, 8])
def test_dlopen_notes_are_found_among_others(align: int) -> None:
    rows = [
        {"feature": "xz", "priority": "suggested", "soname": ["liblzma.so.5"]},
        {"soname": ["libidn2.so.0", "libidn.so.12"]},
    ]
    notes = note(b"GNU\0", 3, b"\1" * 20, align)
    notes += note(b"FDO\0", 0x407C0C0A, json.dumps(rows).encode() + b"\0", align)
    notes += note(b"FDO\0", 0xCAFE1A7E, b"not json", align)
    assert parse(fake_elf(notes=notes, notes_align=align)).dlopens == (
        elf.Dlopen((b"liblzma.so.5",), "suggested"),
        elf.Dlopen((b"libidn2.so.0", b"libidn.so.12"), "recommended"),
    )


GOOD = fake_elf(interpreter="/lib/ld.so.1", needed=["liba.so.1"])


def patched(offset: int, replacement: bytes) -> bytes:
    return GOOD[:offset] + replacement + GOOD[offset + len(replacement) :]


@pytest.mark.parametrize(
    ("image", "brief"),
    [
        (b"", "not an ELF file: it begins with b''"),
        (b"#!/bin/sh\n", "not an ELF file: it begins with b'#!/b'"),
        (GOOD[:40], "not an ELF file: it begins with b'\\x7fELF'"),
        (GOOD[:60], "the ELF file ends inside its header"),
        (
            patched(4, b"\3"),
            "an ELF file of unknown class, byte order or version: b'\\x03\\x01\\x01'",
        ),
        (
            patched(5, b"\0"),
            "an ELF file of unknown class, byte order or version: b'\\x02\\x00\\x01'",
        ),
        (patched(54, b"\x20\0"), "an ELF file with 3 program headers of 32 bytes each"),
        (patched(56, b"\xff\xff"), "an ELF file with 65535 program headers of 56 bytes each"),
        (GOOD[:100], "the ELF file ends inside its program headers, at byte 100"),
        (
            patched(64 + 56 + 32, struct.pack("<Q", 1 << 40)),
            "the PT_INTERP of an ELF file claims 1099511627776 bytes at 232",
        ),
        (
            patched(64 + 2 * 56 + 8, struct.pack("<Q", 1 << 63)),
            f"the PT_DYNAMIC of an ELF file claims 64 bytes at {1 << 63}",
        ),
        (
            patched(64 + 16, struct.pack("<Q", 0x900000)),
            "the dynamic string table at 0x4000f5 is in no segment of the ELF file",
        ),
        (
            fake_elf(notes=note(b"FDO\0", 0x407C0C0A, b"[{]")),
            "a .note.dlopen that is not its JSON: b'[{]'",
        ),
        (
            fake_elf(notes=struct.pack("<III", 4, 5000, 1) + b"FDO\0"),
            "an ELF note of 5000 bytes leaves its segment",
        ),
    ],
)
def test_malformed_files_are_refused(image: bytes, brief: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse(image)
    assert caught.value.brief == brief


def test_a_name_outside_the_string_table_is_refused() -> None:
    at = GOOD.index(struct.pack("<qQ", 1, 1))
    with pytest.raises(FormatError, match="string 9000 is outside"):
        parse(patched(at, struct.pack("<qQ", 1, 9000)))


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=8))
def test_any_damage_is_a_format_error_or_another_reading(offset: int, noise: bytes) -> None:
    with contextlib.suppress(FormatError):
        parse(patched(offset, noise)[: len(GOOD)])
