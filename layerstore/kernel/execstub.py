"""The last exec of a launch, through a tiny static program in a sealed memfd.

Without it, an image whose command is a script ``#!/proc/self/exe`` makes the kernel run the host's
interpreter inside the container, with the image's loader and libraries: CVE-2019-5736, which lets
the container rewrite the host's Python. Behind the stub, /proc/self/exe is the stub.

The stub is started with the arguments ``" ", path, argv[0], argv[1], …`` and does::

    if argv[0][0] != ' ': exit(126)      a script named the stub as its interpreter
    fcntl(3, F_SETFD, FD_CLOEXEC)        descriptor 3: the report pipe
    execve(argv[1], &argv[2], envp)
    write(3, &errno, 4); exit(126)

The init does that in a child, in a process group of its own that its terminal, if any, belongs to,
passes every signal on to that child, reaps whatever becomes its child, and ends as the child does.
"""

from __future__ import annotations

import fcntl
import os
import struct

from layerstore.kernel.numbers import MACHINE

REPORT_FD = 3

# The assembly is in tests/kernel/test_execstub.py, which assembles it and compares.
_CODE = {
    "x86_64": "488b4424088038207549488b1c24b848000000bf03000000be02000000ba010000000f05488b7c24"
    "10488d742418488d54dc10b83b0000000f05f7d8890424b801000000bf030000004889e6ba040000"
    "000f05b8e7000000bf7e0000000f05",
    "aarch64": "e00740f9010040393f80007181020054f30340f9280380d2600080d2410080d2220080d2010000d4"
    "e00b40f9e1630091e2430091420c138ba81b80d2010000d4e003004be00300b9080880d2600080d2"
    "e1030091820080d2010000d4c80b80d2c00f80d2010000d4",
}
_INIT_CODE = {
    "x86_64": "488b4424088038200f85c70000004889e54881ecc000000048c745f8ffffffffb80e00000031ff48"
    "8d75f831d241ba080000000f05b8390000000f0585c0787b0f8596000000b86d00000031ff31f60f"
    "05b8270000000f058945f0b81000000031ffbe10540000488d55f00f0548c745f800000000b80e00"
    "0000bf02000000488d75f831d241ba080000000f05b848000000bf03000000be02000000ba010000"
    "000f05488b5d00488b7d10488d7518488d54dd10b83b0000000f05f7d88945f0b801000000bf0300"
    "0000488d75f0ba040000000f05bf7e000000eb7b89c3b803000000bf030000000f05b88000000048"
    "8d7df8488db560ffffff31d241ba080000000f0585c078e283f811740d89c689dfb83e0000000f05"
    "ebd0b83d00000048c7c7ffffffff488d75f0ba010000004531d20f0585c07eb239d875de8b7df089"
    "f883e07f74088db880000000eb09c1ef0881e7ff000000b8e70000000f05",
    "aarch64": "e00740f9010040393f80007161070054f3030091ff0303d10000809260821ff8e81080d2000080d2"
    "612200d1020080d2030180d2010000d4881b80d2200280d2010080d2020080d2030080d2040080d2"
    "010000d41f0000712b0400542c050054481380d2000080d2010080d2010000d4881580d2010000d4"
    "60021fb8a80380d2000080d201828ad2624200d1010000d47f821ff8e81080d2400080d2612200d1"
    "020080d2030180d2010000d4280380d2600080d2410080d2220080d2010000d4630240f9600a40f9"
    "6162009162420091420c038ba81b80d2010000d4e003004b60021fb8080880d2600080d2614200d1"
    "820080d2010000d4c00f805224000014f403002a280780d2600080d2010000d4281180d2602200d1"
    "618202d1020080d2030180d2010000d41f0000712bffff541f440071c0000054e103002ae003142a"
    "281080d2010000d4f2ffff17882080d200008092614200d1220080d2030080d2010000d41f000071"
    "4dfdff541f00146be1feff5461025fb820180072600000540000021102000014203c0853c80b80d2"
    "010000d4",
}
_ELF_MACHINE = {"x86_64": 62, "aarch64": 183}

_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_EXEC = 1, 2, 0x10
_F_ADD_SEALS, _ALL_SEALS = 1033, 0xF


def elf_image(machine: str, *, init: bool = False) -> bytes:
    """A static ELF executable: header, one program header, code; loaded as a whole at 4 MiB."""
    code = bytes.fromhex((_INIT_CODE if init else _CODE)[machine])
    base, header = 0x400000, 64 + 56
    size = header + len(code)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    elf = struct.pack(
        "<16sHHIQQQIHHHHHH",
        ident, 2, _ELF_MACHINE[machine], 1, base + header, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    loadable, readable_executable = 1, 5
    segment = struct.pack(
        "<IIQQQQQQ", loadable, readable_executable, 0, base, base, size, size, 0x10000
    )
    return elf + segment + code


_IMAGE = elf_image(MACHINE)


def sealed_stub() -> int:
    """The descriptor, close-on-exec, of a stub that nobody can write to any more."""
    return _sealed(_IMAGE)


def sealed_init() -> int:
    """As ``sealed_stub``, of one that stays behind as a small init."""
    return _sealed(elf_image(MACHINE, init=True))


def _sealed(image: bytes) -> int:
    flags = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("layerstore-exec", flags | _MFD_EXEC)
    except OSError:  # before Linux 6.3
        fd = os.memfd_create("layerstore-exec", flags)
    os.write(fd, image)
    fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS)
    return fd


# No script can pass this on: the kernel strips the spaces before an interpreter's name.
_MARK = b" "


def exec_through(
    stub_fd: int, path: bytes, argv: tuple[bytes, ...], env: dict[bytes, bytes]
) -> None:
    """Replaces the process. REPORT_FD, inheritable, gets execve's errno (4 bytes) on failure."""
    os.execve(stub_fd, [_MARK, path, *argv], env)
