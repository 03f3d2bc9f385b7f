"""The last exec of a launch, through a tiny static program in a sealed memfd.

Without it, an image whose command is a script ``#!/proc/self/exe`` makes the kernel run the host's
interpreter inside the container, with the image's loader and libraries: CVE-2019-5736, which lets
the container rewrite the host's Python. Behind the stub, /proc/self/exe is the stub.

The stub is started with the arguments ``" ", path, argv[0], argv[1], …`` and does::

    if argv[0][0] != ' ': exit(126)      a script named the stub as its interpreter
    fcntl(3, F_SETFD, FD_CLOEXEC)        descriptor 3: the report pipe
    execve(argv[1], &argv[2], envp)
    write(3, &errno, 4); exit(126)
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
_ELF_MACHINE = {"x86_64": 62, "aarch64": 183}

_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_EXEC = 1, 2, 0x10
_F_ADD_SEALS, _ALL_SEALS = 1033, 0xF


def elf_image(machine: str) -> bytes:
    """A static ELF executable: header, one program header, code; loaded as a whole at 4 MiB."""
    code = bytes.fromhex(_CODE[machine])
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
    flags = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("layerstore-exec", flags | _MFD_EXEC)
    except OSError:  # before Linux 6.3
        fd = os.memfd_create("layerstore-exec", flags)
    os.write(fd, _IMAGE)
    fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS)
    return fd


# No script can pass this on: the kernel strips the spaces before an interpreter's name.
_MARK = b" "


def exec_through(
    stub_fd: int, path: bytes, argv: tuple[bytes, ...], env: dict[bytes, bytes]
) -> None:
    """Replaces the process. REPORT_FD, inheritable, gets execve's errno (4 bytes) on failure."""
    os.execve(stub_fd, [_MARK, path, *argv], env)
