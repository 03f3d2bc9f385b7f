"""The numbers of the system calls against the kernel's headers."""

from __future__ import annotations

import shutil

import make_syscall_table as maker
import pytest

from layerstore.kernel import numbers, syscall_table


def test_the_tables_are_what_the_kernel_headers_say() -> None:
    missing = [str(header) for header, _ in maker.HEADERS.values() if not header.exists()]
    if missing or shutil.which("cpp") is None:
        pytest.skip(f"needs cpp and the kernel's headers {', '.join(missing)}")
    for name, table in maker.tables().items():
        assert " ".join(getattr(syscall_table, f"_{name}").split()) == table, name


@pytest.mark.parametrize(
    ("abi", "number", "name"),
    [
        ("x86_64", 0, "read"),
        ("x86_64", 59, "execve"),
        ("x86_64", 334, "rseq"),
        ("x86_64", 335, "uretprobe"),
        ("x86_64", 424, "pidfd_send_signal"),
        ("x86_64", 462, "mseal"),
        ("x86_64", 469, "file_setattr"),
        ("x32", 0x40000000, "read"),
        ("x32", 0x40000208, "execve"),
        ("x32", 0x400001B3, "clone3"),
        ("i386", 102, "socketcall"),
        ("i386", 359, "socket"),
        ("i386", 414, "ppoll_time64"),
        ("i386", 416, "io_pgetevents_time64"),
        ("i386", 435, "clone3"),
        ("aarch64", 63, "read"),
        ("aarch64", 293, "rseq"),
        ("aarch64", 435, "clone3"),
        ("arm", 341, "arm_sync_file_range|sync_file_range2"),
        ("arm", 0xF0005, "set_tls"),
    ],
)
def test_a_number_is_a_call(abi: str, number: int, name: str) -> None:
    assert syscall_table.calls_of(abi)[number] == name


@pytest.mark.parametrize(
    ("abi", "number"),
    [("x86_64", 337), ("x86_64", 423), ("x86_64", 470), ("x32", 0x4000003B), ("x32", 0),
     ("i386", 17 + 205), ("i386", 415), ("aarch64", 244), ("aarch64", 295), ("arm", 7)],
)  # fmt: skip
def test_a_number_is_no_call(abi: str, number: int) -> None:
    assert number not in syscall_table.calls_of(abi)


@pytest.mark.parametrize("abi", ["x86_64", "x32", "i386", "aarch64", "arm"])
def test_every_call_has_a_known_name_and_one_number(abi: str) -> None:
    names = [name for call in syscall_table.calls_of(abi).values() for name in call.split("|")]
    assert len(names) == len(set(names))
    assert set(names) <= syscall_table.every_name()


def test_the_launcher_uses_the_same_numbers() -> None:
    calls = syscall_table.calls_of(numbers.MACHINE)
    for name, number in vars(numbers).items():
        if name.isupper() and name not in ("MACHINE",) and not name.startswith("_"):
            assert calls[number] == name.lower()
