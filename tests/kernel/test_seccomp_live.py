"""The default filter in the kernel: every number is really called, through both of x86's doors."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import mmap
import os
import select
import signal
import struct
from array import array
from collections.abc import Callable

import pytest
import seccompkit as kit
from seccompkit import calls_of

from layerstore.formats.seccomp_profile import parse
from layerstore.kernel import caps, seccomp
from layerstore.kernel.libc import syscall
from layerstore.kernel.numbers import MACHINE
from layerstore.kernel.process import forbid_new_privileges
from layerstore.kernel.syscall_table import X32_BIT

PROFILE = parse(kit.DEFAULT_PROFILE)
PROGRAM = seccomp.compile_filter(PROFILE, capabilities=caps.DEFAULT, machine=MACHINE)
NUMBER = {name: number for number, name in calls_of(MACHINE).items()}

# Errnos that no call returns, in place of the filter's: what the filter refused shows itself.
MARKS = {kit.EPERM: 0x50000 | 2001, kit.ENOSYS: 0x50000 | 2002}
VERDICTS = {2001: kit.EPERM, 2002: kit.ENOSYS}


def marked(program: bytes) -> bytes:
    """The program with other errnos, the same in all else."""
    instructions = array("Q", program)
    for at, instruction in enumerate(instructions):
        if instruction & 0xFFFF == 0x06:
            action = instruction >> 32
            instructions[at] = 0x06 | MARKS.get(action, action) << 32
    return instructions.tobytes()


def native_call(number: int, *args: int) -> int:
    """0, or the errno."""
    words = (*args, *(-1,) * (6 - len(args)))
    try:
        syscall("any", number, *words)
    except OSError as error:
        return error.errno or 0
    return 0


def make_i386_call() -> Callable[..., int]:
    """``int 0x80`` from a 64-bit program, with the last three of six arguments all ones::

    push rbx; push rbp; mov eax, edi; mov ebx, esi; xchg ecx, edx
    mov esi, -1; mov edi, -1; mov ebp, -1; int 0x80
    pop rbp; pop rbx; cdqe; ret
    """
    code = bytes.fromhex("53 55 89f8 89f3 87d1 beffffffff bfffffffff bdffffffff cd80 5d 5b 4898 c3")
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    entry = ctypes.addressof(ctypes.c_char.from_buffer(page))
    function = ctypes.CFUNCTYPE(ctypes.c_long, *(ctypes.c_uint32,) * 4)(entry)

    def call(number: int, *args: int) -> int:
        words = (*args, *(0xFFFFFFFF,) * (3 - len(args)))
        return max(0, -int(function(number, *words)))

    call.page = page  # type: ignore[attr-defined] # it lives as long as the function
    return call


def in_child(action: Callable[[], int], *, seconds: float = 0.25) -> int | None:
    """What the action returns in a child; None when that died or did not come back."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()  # some calls are the death of their caller, and no news
        try:
            os.write(writing, struct.pack("<i", action()))
        finally:
            os._exit(0)
    os.close(writing)
    answer = b""
    if select.select([reading], [], [], seconds)[0]:
        answer = os.read(reading, 4)
    os.close(reading)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return struct.unpack("<i", answer)[0] if len(answer) == 4 else None


def confined(program: bytes, action: Callable[[], int]) -> int | None:
    """What the action returns in a child under the filter."""

    def enter() -> int:
        caps.keep_only(caps.mask_of(caps.DEFAULT))
        forbid_new_privileges()
        seccomp.load(program)
        return action()

    return in_child(enter, seconds=120)


def refused(numbers: list[int], call: Callable[[int], int]) -> dict[int, int]:
    """Number → verdict of those that the filter refuses; each is called in a child of its own."""
    reading, writing = os.pipe()

    def try_all() -> int:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        for number in numbers:
            code = in_child(lambda number=number: call(number))  # type: ignore[misc]
            if code in VERDICTS:
                os.write(writing, struct.pack("<II", number, VERDICTS[code]))
        return 0

    assert confined(marked(PROGRAM), try_all) == 0
    os.close(writing)
    with open(reading, "rb") as file:
        return dict(struct.iter_unpack("<II", file.read()))


def expected(abi: str, numbers: list[int], args: tuple[int, ...]) -> dict[int, int]:
    kernel = seccomp.running_kernel()
    said = {
        number: kit.verdict(
            PROFILE, abi, number, args, machine=MACHINE, caps=caps.DEFAULT, kernel=kernel
        )
        for number in numbers
    }
    return {number: action for number, action in said.items() if action != kit.ALLOW}


def test_every_native_call_meets_the_verdict_of_the_profile() -> None:
    numbers = [*range(480), 512, 547, 2**30 - 1, 2**31 - 1]
    assert refused(numbers, native_call) == expected(MACHINE, numbers, kit.BAD)


x86 = pytest.mark.skipif(MACHINE != "x86_64", reason="needs an x86_64 machine")


@x86
def test_every_x32_call_meets_the_verdict_of_the_profile() -> None:
    numbers = [
        X32_BIT | number for number in (*range(0, 480, 5), *range(424, 470), *range(510, 550))
    ]
    assert refused(numbers, native_call) == expected("x32", numbers, kit.BAD)


def _has_i386() -> bool:
    return MACHINE == "x86_64" and in_child(lambda: make_i386_call()(20)) == 0


needs_i386 = pytest.mark.skipif(not _has_i386(), reason="needs a kernel that answers int 0x80")


@needs_i386
def test_every_i386_call_meets_the_verdict_of_the_profile() -> None:
    numbers = [*range(480), 512, 2**30 - 1]
    args = (0xFFFFFFFF,) * 6
    assert refused(numbers, make_i386_call()) == expected("i386", numbers, args)


@needs_i386
@pytest.mark.parametrize(
    ("name", "args", "wanted"),
    [
        ("socket", (38, 5, 0), errno.EPERM),
        ("socketcall", (1, 0), errno.EPERM),
        ("unshare", (0x10000000,), errno.EPERM),
        ("clone", (0x10000011, 0), errno.EPERM),
        ("clone3", (0, 0), errno.ENOSYS),
        ("mount", (0, 0, 0), errno.EPERM),
        ("keyctl", (0,), errno.EPERM),
        ("getppid", (), 0),
    ],
)
def test_no_call_comes_around_through_the_old_door(
    name: str, args: tuple[int, ...], wanted: int
) -> None:
    number = next(number for number, call in calls_of("i386").items() if call == name)
    call = make_i386_call()
    code = confined(PROGRAM, lambda: call(number, *args))
    assert (code != errno.EPERM and code != errno.ENOSYS) if wanted == 0 else code == wanted


@pytest.mark.parametrize(
    ("name", "args", "wanted"),
    [
        ("socket", (1, 1, 0), 0),
        ("socket", (2, 1, 0), 0),
        ("socket", (38, 5, 0), errno.EPERM),
        ("socket", (38 | 1 << 32, 5, 0), errno.EPERM),
        ("socket", (40, 1, 0), errno.EPERM),
        ("personality", (0xFFFFFFFF,), 0),
        ("personality", (0x0040000,), errno.EPERM),
        ("unshare", (0x10000000,), errno.EPERM),
        ("unshare", (0,), errno.EPERM),
        ("clone", (0x10000011, 0, 0, 0, 0), errno.EPERM),
        ("clone3", (0, 0), errno.ENOSYS),
        ("io_uring_setup", (1, 0), errno.EPERM),
        ("bpf", (0, 0, 0), errno.EPERM),
        ("userfaultfd", (0,), errno.EPERM),
        ("perf_event_open", (0,), errno.EPERM),
        ("keyctl", (0, -3, 0), errno.EPERM),
        ("fsopen", (0, 0), errno.EPERM),
        ("mount_setattr", (-1, 0, 0, 0, 0), errno.EPERM),
        ("getpid", (), 0),
    ],
)
def test_by_default_the_kernel_answers(name: str, args: tuple[int, ...], wanted: int) -> None:
    assert confined(PROGRAM, lambda: native_call(NUMBER[name], *args)) == wanted


def test_programs_and_threads_work_under_the_filter() -> None:
    code = "import threading; t = threading.Thread(target=lambda: None); t.start(); t.join()"

    def start() -> int:
        return os.spawnvp(os.P_WAIT, "python3", ["python3", "-S", "-c", code])

    assert confined(PROGRAM, start) == 0


def test_a_program_that_runs_past_its_end_is_not_loaded() -> None:
    def try_to_load() -> int:
        try:
            seccomp.load(PROGRAM[:-8])
        except OSError as error:
            return error.errno or 0
        return 0

    def enter() -> int:
        forbid_new_privileges()
        return try_to_load()

    assert in_child(enter) == errno.EINVAL


def test_a_plain_user_needs_no_new_privileges_first() -> None:
    def enter() -> int:
        caps.keep_only(0)
        try:
            seccomp.load(PROGRAM)
        except OSError as error:
            return error.errno or 0
        return 0

    assert in_child(enter) == errno.EACCES
