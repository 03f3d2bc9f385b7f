"""What the dynamic loader reads of an ELF file: its machine, its loader, what it needs and where.

Reads through a function, so that a 100 MB library costs a few small reads; runs nothing. Strict:
a length or an offset that leaves the file is a FormatError. Section headers are never looked at,
for the loader does not either, and stripped files have none.

================  =======================  ====================================================
field             where                    source
================  =======================  ====================================================
bits, endianness  e_ident[4], e_ident[5]   System V ABI, "ELF Identification"
kind, machine     e_type, e_machine        System V ABI, "ELF Header"
interpreter       PT_INTERP (3)            System V ABI, "Program Interpreter"
needed            DT_NEEDED (1)            System V ABI, "Dynamic Section"
soname            DT_SONAME (14)
rpath, runpath    DT_RPATH (15), (29)      ld.so(8), "Dynamic string tokens" stay unexpanded
no_default_path   DT_FLAGS_1 (0x6ffffffb)  DF_1_NODEFLIB (0x800)
dlopens           PT_NOTE (4)              owner FDO, type 0x407c0c0a: uapi-group.org, "ELF Dlopen
                                           Metadata"; a JSON list in the descriptor
================  =======================  ====================================================

Numbers are in the file's own byte order. Not supported: more than 65,534 program headers
(PN_XNUM), which only core dumps have.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass

from layerstore.errors import FormatError

Read = Callable[[int, int], bytes]
"""``read(offset, size)``: up to ``size`` bytes; fewer only where the file ends."""

MAGIC = b"\x7fELF"
ET_EXEC, ET_DYN = 2, 3
EM_386, EM_PPC64, EM_S390, EM_ARM = 3, 21, 22, 40
EM_X86_64, EM_AARCH64, EM_RISCV = 62, 183, 243

NOTABLE = (b"pthread_cancel", b"pthread_exit", b"thrd_exit", b"getpwnam", b"getpwuid",
           b"getgrnam", b"getgrgid", b"getaddrinfo", b"gethostbyname", b"GLIBC_2.34")  # fmt: skip
"""Names whose presence in a string table says which libraries may be opened at run time."""

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_NOTE = 1, 2, 3, 4
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 1, 5, 10, 14, 15, 29
_DT_FLAGS_1, _DF_1_NODEFLIB = 0x6FFFFFFB, 0x800
_NOTE_DLOPEN = 0x407C0C0A
_LARGEST_TABLE = 256 << 20


@dataclass(frozen=True, slots=True)
class Dlopen:
    """Libraries that the program may open by itself, the first that exists being enough."""

    sonames: tuple[bytes, ...]
    priority: str
    """``required``, ``recommended`` or ``suggested``."""


@dataclass(frozen=True, slots=True)
class Elf:
    """One ELF file, as its loader sees it."""

    bits: int
    little_endian: bool
    kind: int
    machine: int
    interpreter: bytes | None = None
    needed: tuple[bytes, ...] = ()
    soname: bytes | None = None
    rpath: tuple[bytes, ...] = ()
    runpath: tuple[bytes, ...] | None = None
    """None and () differ: a RUNPATH, even an empty one, switches RPATH off."""
    no_default_path: bool = False
    dlopens: tuple[Dlopen, ...] = ()
    mentions: frozenset[bytes] = frozenset()
    """Those of NOTABLE that end a string of the dynamic string table."""

    @property
    def is_static(self) -> bool:
        return self.interpreter is None and not self.needed

    def fits(self, other: Elf) -> bool:
        """Whether both can live in one process: same class, byte order and machine."""
        return (self.bits, self.little_endian, self.machine) == (
            other.bits,
            other.little_endian,
            other.machine,
        )


@dataclass(frozen=True, slots=True)
class _Segment:
    type: int
    offset: int
    address: int
    size: int
    align: int


def parse(read: Read) -> Elf:
    """Raises FormatError for anything but a well-formed ELF file."""
    head = read(0, 64)
    if head[:4] != MAGIC or len(head) < 52:
        raise FormatError(f"not an ELF file: it begins with {head[:4]!r}")
    if head[4] not in (1, 2) or head[5] not in (1, 2) or head[6] != 1:
        raise FormatError(f"an ELF file of unknown class, byte order or version: {head[4:7]!r}")
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    kind, machine = struct.unpack_from(order + "HH", head, 16)
    segments = _segments(read, head, wide, order)
    interpreter = None
    dynamic: list[tuple[int, int]] = []
    dlopens: list[Dlopen] = []
    for segment in segments:
        if segment.type == _PT_INTERP:
            interpreter = _exact(read, segment.offset, segment.size, "PT_INTERP").rstrip(b"\0")
        elif segment.type == _PT_DYNAMIC:
            table = _exact(read, segment.offset, segment.size, "PT_DYNAMIC")
            dynamic = _dynamic(table, order + ("qQ" if wide else "iI"))
        elif segment.type == _PT_NOTE:
            notes = _exact(read, segment.offset, segment.size, "PT_NOTE")
            dlopens += _dlopen_notes(notes, order, segment.align)
    strings = _string_table(read, segments, dict(dynamic))
    runpath = _strings(dynamic, strings, _DT_RUNPATH)
    soname = _strings(dynamic, strings, _DT_SONAME)
    return Elf(
        bits=64 if wide else 32,
        little_endian=order == "<",
        kind=kind,
        machine=machine,
        interpreter=interpreter,
        needed=_strings(dynamic, strings, _DT_NEEDED),
        soname=soname[0] if soname else None,
        rpath=_directories(_strings(dynamic, strings, _DT_RPATH)),
        runpath=_directories(runpath) if runpath else None,
        no_default_path=bool(dict(dynamic).get(_DT_FLAGS_1, 0) & _DF_1_NODEFLIB),
        dlopens=tuple(dlopens),
        mentions=frozenset(name for name in NOTABLE if name + b"\0" in strings),
    )


def _exact(read: Read, offset: int, size: int, what: str) -> bytes:
    if size > _LARGEST_TABLE or offset >= 1 << 62:
        raise FormatError(f"the {what} of an ELF file claims {size} bytes at {offset}")
    got = read(offset, size)
    if len(got) != size:
        raise FormatError(f"the ELF file ends inside its {what}, at byte {offset + len(got)}")
    return got


def _segments(read: Read, head: bytes, wide: bool, order: str) -> list[_Segment]:
    if wide and len(head) < 64:
        raise FormatError("the ELF file ends inside its header")
    (table,) = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)
    size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
    if count == 0:
        return []
    if size != (56 if wide else 32) or count == 0xFFFF:
        raise FormatError(f"an ELF file with {count} program headers of {size} bytes each")
    raw = _exact(read, table, size * count, "program headers")
    if wide:
        rows = struct.iter_unpack(order + "IIQQQQQQ", raw)
        return [_Segment(r[0], r[2], r[3], r[5], r[7]) for r in rows]
    rows = struct.iter_unpack(order + "IIIIIIII", raw)
    return [_Segment(r[0], r[1], r[2], r[4], r[7]) for r in rows]


def _dynamic(table: bytes, row: str) -> list[tuple[int, int]]:
    """(tag, value) up to the first DT_NULL."""
    usable = len(table) - len(table) % struct.calcsize(row)
    found: list[tuple[int, int]] = []
    for tag, value in struct.iter_unpack(row, table[:usable]):
        if tag == 0:
            break
        found.append((tag & 0xFFFFFFFF if tag < 0 else tag, value))
    return found


def _string_table(read: Read, segments: list[_Segment], dynamic: dict[int, int]) -> bytes:
    address, size = dynamic.get(_DT_STRTAB), dynamic.get(_DT_STRSZ)
    if address is None or size is None:
        return b""
    for segment in segments:
        if segment.type == _PT_LOAD and 0 <= address - segment.address < segment.size:
            offset = segment.offset + address - segment.address
            return _exact(read, offset, size, "dynamic string table")
    raise FormatError(f"the dynamic string table at {address:#x} is in no segment of the ELF file")


def _strings(dynamic: list[tuple[int, int]], strings: bytes, wanted: int) -> tuple[bytes, ...]:
    found: list[bytes] = []
    for tag, start in dynamic:
        if tag == wanted:
            end = strings.find(b"\0", start)
            if end < 0:
                raise FormatError(f"string {start} is outside the ELF file's dynamic string table")
            found.append(strings[start:end])
    return tuple(found)


def _directories(lists: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Empty elements mean the working directory to the loader: never a place in an image."""
    return tuple(part for one in lists for part in one.split(b":") if part)


def _dlopen_notes(notes: bytes, order: str, align: int) -> list[Dlopen]:
    step = 8 if align == 8 else 4
    found: list[Dlopen] = []
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from(order + "III", notes, at)
        start = at + 12 + name_size
        start += -start % step
        if start + size > len(notes):
            raise FormatError(f"an ELF note of {size} bytes leaves its segment")
        if kind == _NOTE_DLOPEN and notes[at + 12 : at + 12 + name_size] == b"FDO\0":
            found += _dlopen_rows(notes[start : start + size].rstrip(b"\0"))
        at = start + size
        at += -at % step
    return found


def _dlopen_rows(payload: bytes) -> list[Dlopen]:
    try:
        rows = json.loads(payload)
        return [
            Dlopen(
                tuple(str(name).encode() for name in row["soname"]),
                str(row.get("priority", "recommended")),
            )
            for row in rows
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(f"a .note.dlopen that is not its JSON: {payload[:60]!r}") from error
