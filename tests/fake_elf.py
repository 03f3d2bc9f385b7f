"""ELF files with nothing in them but what a loader reads, and hosts made of such files."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

DEFAULT_DIRECTORIES = b"/lib/x86_64-linux-gnu/\0/usr/lib/x86_64-linux-gnu/\0/lib/\0/usr/lib/\0"
LOADER = "/lib64/ld-linux-x86-64.so.2"


def fake_elf(
    *,
    bits: int = 64,
    little_endian: bool = True,
    machine: int = 62,
    kind: int = 3,
    interpreter: str | None = None,
    needed: Sequence[str] = (),
    soname: str | None = None,
    rpath: str | None = None,
    runpath: str | None = None,
    flags_1: int = 0,
    names: Sequence[str] = (),
    notes: bytes = b"",
    notes_align: int = 4,
    is_dynamic: bool = True,
    tail: bytes = b"",
) -> bytes:
    """One PT_LOAD over the whole file, at an address that differs from the offset."""
    order, wide = "<" if little_endian else ">", bits == 64
    base = 0x400000
    strings = bytearray(b"\0")

    def string(text: str) -> int:
        strings.extend(text.encode() + b"\0")
        return len(strings) - len(text.encode()) - 1

    rows = [(1, string(name)) for name in needed]
    for tag, text in ((14, soname), (15, rpath), (29, runpath)):
        if text is not None:
            rows.append((tag, string(text)))
    for name in names:
        string(name)
    if flags_1:
        rows.append((0x6FFFFFFB, flags_1))
    program_headers = 1 + (interpreter is not None) + is_dynamic + bool(notes)
    header_size, entry_size = (64, 56) if wide else (52, 32)
    at = header_size + entry_size * program_headers
    interp = interpreter.encode() + b"\0" if interpreter is not None else b""
    interp_at, strings_at = at, at + len(interp)
    notes_at = strings_at + len(strings)
    notes_at += -notes_at % 8
    dynamic_at = notes_at + len(notes)
    dynamic_at += -dynamic_at % 8
    rows += [(5, base + strings_at), (10, len(strings)), (0, 0)]
    dynamic = b"".join(struct.pack(order + ("qQ" if wide else "iI"), *row) for row in rows)
    total = dynamic_at + len(dynamic) + len(tail)
    segments = [(1, 0, total, 0x1000)]
    if interpreter is not None:
        segments.append((3, interp_at, len(interp), 1))
    if is_dynamic:
        segments.append((2, dynamic_at, len(dynamic), 8))
    if notes:
        segments.append((4, notes_at, len(notes), notes_align))
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1 if little_endian else 2, 1)) + bytes(9)
    word = "Q" if wide else "I"
    header = ident + struct.pack(
        f"{order}HHI{word}{word}{word}IHHHHHH",
        *(kind, machine, 1, base, header_size, 0, 0, header_size, entry_size, len(segments)),
        *(0, 0, 0),
    )
    table = b"".join(
        struct.pack(order + "IIQQQQQQ", t, 4, o, base + o, base + o, size, size, align)
        if wide
        else struct.pack(order + "IIIIIIII", t, o, base + o, base + o, size, size, 4, align)
        for t, o, size, align in segments
    )
    image = bytearray(total)
    for offset, part in (
        (0, header + table),
        (interp_at, interp),
        (strings_at, bytes(strings)),
        (notes_at, notes),
        (dynamic_at, dynamic + tail),
    ):
        image[offset : offset + len(part)] = part
    return bytes(image)


def program(*needed: str, **fields: object) -> bytes:
    """A 64-bit program for LOADER."""
    return fake_elf(interpreter=LOADER, needed=needed, **fields)  # type: ignore[arg-type]


def library(soname: str, *needed: str, **fields: object) -> bytes:
    return fake_elf(soname=soname, needed=needed, **fields)  # type: ignore[arg-type]


def loader() -> bytes:
    """Debian's: it has its default directories inside."""
    return library("ld-linux-x86-64.so.2", tail=b"\0" + DEFAULT_DIRECTORIES + b"rest")


def put(root: Path, name: str, content: bytes | str, mode: int = 0o644) -> None:
    """A file at the absolute ``name`` below ``root``, with its directories."""
    at = Path(f"{root}{name}")
    at.parent.mkdir(parents=True, exist_ok=True)
    at.write_bytes(content.encode() if isinstance(content, str) else content)
    os.chmod(at, mode)


def link(root: Path, name: str, target: str) -> None:
    at = Path(f"{root}{name}")
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(target)


def merged_host(root: Path) -> Path:
    """A host whose /bin, /sbin, /lib and /lib64 lead into /usr, with a loader and a libc."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        link(root, f"/{name}", f"usr/{name}")
    put(root, "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", loader(), 0o755)
    link(root, "/usr/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    libc = library("libc.so.6", "ld-linux-x86-64.so.2", names=["pthread_exit", "GLIBC_2.34"])
    put(root, "/usr/lib/x86_64-linux-gnu/libc.so.6", libc)
    return root
