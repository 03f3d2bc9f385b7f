"""The tables of ``layerstore/kernel/syscall_table.py``, from the kernel's headers.

Debian's linux-libc-dev has the headers of x86, linux-libc-dev-arm64-cross and
linux-libc-dev-armhf-cross (beside each other on an amd64 machine) those of Arm. With them and a C
preprocessor installed, this prints the assignments that the module holds::

    python tests/make_syscall_table.py

Calls that came after the headers have the same number everywhere (the kernel's
``scripts/syscall.tbl``); they are in ``NEWER`` here, by hand, up to Linux 6.18.
"""

from __future__ import annotations

import re
import subprocess
import textwrap
from pathlib import Path

UNIFORM = 424
"""From here on a call has one number on every machine."""

NEWER = """451 cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue statmount
listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat
listxattrat removexattrat open_tree_attr file_getattr file_setattr"""
NEWER_X86_64 = {335: "uretprobe", 336: "uprobe"}
NEWER_NOT_X32 = ("map_shadow_stack", "uretprobe", "uprobe")

_X86 = Path("/usr/include/x86_64-linux-gnu/asm")
_ARM64 = Path("/usr/aarch64-linux-gnu/include")
_ARM = Path("/usr/arm-linux-gnueabihf/include")

HEADERS: dict[str, tuple[Path, tuple[str, ...]]] = {
    "X86_64": (_X86 / "unistd_64.h", ()),
    "X32": (_X86 / "unistd_x32.h", ("-D__X32_SYSCALL_BIT=0",)),
    "I386": (_X86 / "unistd_32.h", ()),
    "AARCH64": (
        _ARM64 / "asm/unistd.h",
        ("-nostdinc", f"-I{_ARM64}", "-U__x86_64__", "-D__BITS_PER_LONG=64"),
    ),
    "ARM": (_ARM / "asm/unistd.h", ("-nostdinc", f"-I{_ARM}", "-U__x86_64__", "-D__ARM_EABI__")),
}
_NOT_CALLS = {"arch_specific_syscall", "syscalls", "SYSCALL_BASE", "OABI_SYSCALL_BASE"}


def read_header(abi: str) -> dict[int, str]:
    """Number → name, aliases joined with ``|``; the preprocessor reads the header."""
    header, flags = HEADERS[abi]
    cpp = ["cpp", "-undef", *flags]
    macros = subprocess.run(
        [*cpp, "-dM", str(header)], check=True, capture_output=True, text=True
    ).stdout
    names = {
        match[2]: match[1]
        for match in re.finditer(r"^#define (__(?:ARM_)?NR_([a-z_]\w*)) ", macros, re.M)
        if match[2] not in _NOT_CALLS
    }
    asked = f'#include "{header}"\n' + "".join(
        f"layerstore {name} {macro}\n" for name, macro in names.items()
    )
    # A name that is itself a macro would be expanded: none is, __NR_ stands before all of them.
    answer = subprocess.run(
        [*cpp, "-P"], check=True, capture_output=True, text=True, input=asked
    ).stdout
    found: dict[int, list[str]] = {}
    for line in answer.splitlines():
        if line.startswith("layerstore "):
            _, name, value = line.split(" ", 2)
            terms = value.replace("(", "").replace(")", "").split("+")
            found.setdefault(sum(int(term, 0) for term in terms), []).append(name)
    return {number: "|".join(sorted(same)) for number, same in sorted(found.items())}


def emit(table: dict[int, str]) -> str:
    """The compact form: names in order, a number wherever the count does not go on by one."""
    words = []
    expected = -1
    for number, name in sorted(table.items()):
        if number != expected:
            words.append(str(number))
        words.append(name)
        expected = number + 1
    return " ".join(words)


def tables() -> dict[str, str]:
    """Every assignment of the module, by its name, in compact form."""
    read = {abi: read_header(abi) for abi in HEADERS}
    native = read["X86_64"]
    uniform = {number: name for number, name in native.items() if number >= UNIFORM}
    x32 = {number: name for number, name in read["X32"].items() if native.get(number) != name}
    missing = [name for number, name in native.items() if number not in read["X32"]]
    old = {
        abi: {n: name for n, name in table.items() if uniform.get(n) != name}
        for abi, table in read.items()
    }
    return {
        "UNIFORM": f"{emit(uniform)} {NEWER}".replace(" 451 ", " ").replace("\n", " "),
        "X86_64": emit(old["X86_64"] | NEWER_X86_64),
        "X32": emit(x32),
        "NOT_X32": " ".join([*missing, *NEWER_NOT_X32]),
        "I386": emit(old["I386"]),
        "AARCH64": emit(old["AARCH64"]),
        "ARM": emit(old["ARM"]),
    }


def main() -> None:
    for name, table in tables().items():
        lines = textwrap.wrap(table, 98, break_long_words=False, break_on_hyphens=False)
        print(f'_{name} = """\n' + "\n".join(lines) + '\n"""\n')


if __name__ == "__main__":
    main()
