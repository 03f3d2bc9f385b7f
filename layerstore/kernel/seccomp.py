"""System call filters: a profile becomes a program of classic BPF, and the kernel runs it.

The program looks at the ABI of a call, then finds its number in a binary tree over ranges of
numbers with the same verdict, then compares arguments where a rule has any. What decides:

- Of the rules that match a call, the strictest (as between the kernel's own filters); none: the
  profile's default.
- A number without a call, and a call newer than the newest one that the profile mentions, is not
  implemented (ENOSYS) where the default refuses: programs then fall back, as on an older kernel.
- An ABI that the profile does not name kills the process.

Compiling is for the cold path: it takes milliseconds, and its result is bytes to keep under
``cache_key``.
"""

from __future__ import annotations

import os

from layerstore.errors import FormatError
from layerstore.kernel import numbers, syscall_table
from layerstore.kernel.libc import Memory, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from hashlib import blake2b
    from typing import Protocol

    class ArgTest(Protocol):
        """A comparison of one argument, as an unsigned 64-bit number."""

        @property
        def argument(self) -> int: ...
        @property
        def op(self) -> str: ...
        @property
        def value(self) -> int: ...
        @property
        def value_two(self) -> int: ...

    class Condition(Protocol):
        """Which containers and hosts a rule is for; empty sets and None say nothing."""

        @property
        def capabilities(self) -> frozenset[str]: ...
        @property
        def arches(self) -> frozenset[str]: ...
        @property
        def min_kernel(self) -> tuple[int, int] | None: ...

    class Rule(Protocol):
        """What happens to these calls when all tests hold."""

        @property
        def names(self) -> tuple[str, ...]: ...
        @property
        def action(self) -> int: ...
        @property
        def tests(self) -> Sequence[ArgTest]: ...
        @property
        def includes(self) -> Condition: ...
        @property
        def excludes(self) -> Condition: ...

    class Profile(Protocol):
        """What ``formats.seccomp_profile.parse`` returns."""

        @property
        def default_action(self) -> int: ...
        @property
        def arch_map(self) -> Sequence[tuple[str, ...]]: ...
        @property
        def rules(self) -> Sequence[Rule]: ...

else:  # ``hashlib`` itself costs 2.5 ms: it loads OpenSSL
    from _blake2 import blake2b

VERSION = 1
"""Of the compiler and its tables together: another number, other programs from the same profile."""

KILL_PROCESS = 0x8000_0000
ENOSYS = 0x0005_0000 | 38
TRACE = 0x7FF0_0000

_MAX_INSTRUCTIONS = 4096
_SET_MODE_FILTER = 1

# libseccomp's names of the ABIs of a machine, its own first: (audit architecture, table).
_ABIS = {
    "x86_64": {
        "SCMP_ARCH_X86_64": (0xC000_003E, "x86_64"),
        "SCMP_ARCH_X32": (0xC000_003E, "x32"),
        "SCMP_ARCH_X86": (0x4000_0003, "i386"),
    },
    "aarch64": {
        "SCMP_ARCH_AARCH64": (0xC000_00B7, "aarch64"),
        "SCMP_ARCH_ARM": (0x4000_0028, "arm"),
    },
}
_PROFILE_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}

# An instruction is struct sock_filter as one little-endian number.
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP, _IF_EQUAL, _IF_GREATER, _IF_NOT_LESS = 0x05, 0x15, 0x25, 0x35
# Offsets in struct seccomp_data.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

_Code = tuple[int, ...]


def compile_filter(
    profile: Profile,
    *,
    capabilities: frozenset[str],
    machine: str,
    kernel: tuple[int, int] | None = None,
) -> bytes:
    """The program, an array of struct sock_filter, for a container with these capabilities.

    ``kernel`` is what the rules' minimal kernels are compared with; None: the running one.
    Raises FormatError for a profile that cannot be had.
    """
    rules = _rules_by_name(profile, capabilities, machine, kernel or running_kernel())
    default = profile.default_action
    known = (_return(default),)
    unknown = (_return(ENOSYS if is_refusal(default) else default),)
    late = _newer_than(profile, machine)
    codes: dict[str, _Code] = {}
    numbered: dict[int, dict[int, _Code]] = {}
    for audit, table in _abis(profile, machine):
        by_number = numbered.setdefault(audit, {})
        for number, name in syscall_table.calls_of(table).items():
            if name not in codes:
                found = [rule for alias in name.split("|") for rule in rules.get(alias, ())]
                codes[name] = _decide(found, unknown if name in late else known)
            by_number[number] = codes[name]
    program = [_op(_LOAD, _ARCHITECTURE)]
    for audit, by_number in numbered.items():
        body = (_op(_LOAD, _NUMBER), *_tree(_ranges(by_number, unknown)))
        program += (_op(_IF_EQUAL, audit, 1, 0), _op(_JUMP, len(body)), *body)
    program.append(_return(KILL_PROCESS))
    if len(program) > _MAX_INSTRUCTIONS:
        raise FormatError(
            f"the seccomp profile needs {len(program)} instructions, and the kernel takes "
            f"{_MAX_INSTRUCTIONS}",
            hint="compare fewer arguments",
        )
    return b"".join([instruction.to_bytes(8, "little") for instruction in program])


def load(program: bytes) -> None:
    """The caller, and every child and program it starts, lives under the filter, for good.

    Needs no_new_privs, or CAP_SYS_ADMIN in the caller's user namespace.
    """
    code = Memory(len(program))
    code.write(program)
    # struct sock_fprog: a u16 count of instructions, and where they are.
    fprog = (len(program) // 8).to_bytes(8, "little") + code.address.to_bytes(8, "little")
    syscall("seccomp", numbers.SECCOMP, _SET_MODE_FILTER, 0, fprog)


def cache_key(profile: bytes, capabilities: frozenset[str], machine: str) -> str:
    """Names the program of a profile as read from its file, on the running kernel; 40 digits."""
    facts = (str(VERSION), machine, *map(str, running_kernel()), *sorted(capabilities))
    return blake2b("\n".join(facts).encode() + b"\0" + profile, digest_size=20).hexdigest()


def running_kernel() -> tuple[int, int]:
    """Major and minor number of the kernel's release."""
    major, minor = os.uname().release.split(".", 2)[:2]
    return int(major), int("".join(c for c in minor if c.isdecimal()))


def is_refusal(action: int) -> bool:
    """Whether a call with this verdict is not made; one left to a tracer counts as made."""
    return strictness(action) < strictness(TRACE)


def strictness(action: int) -> int:
    """The kernel's order among verdicts: the lowest wins. It is that of signed numbers."""
    kind = action & 0xFFFF_0000
    return kind - 0x1_0000_0000 if kind & 0x8000_0000 else kind


def _abis(profile: Profile, machine: str) -> Iterable[tuple[int, str]]:
    """Those that the profile names for the machine, the machine's own first and always."""
    own, *others = _ABIS[machine]
    named = {arch for arches in profile.arch_map if arches[0] == own for arch in arches}
    return [_ABIS[machine][arch] for arch in (own, *(a for a in others if a in named))]


def _rules_by_name(
    profile: Profile, capabilities: frozenset[str], machine: str, kernel: tuple[int, int]
) -> dict[str, list[Rule]]:
    found: dict[str, list[Rule]] = {}
    arch = _PROFILE_ARCH[machine]
    for rule in profile.rules:
        wants, bars = rule.includes, rule.excludes
        if (
            wants.capabilities <= capabilities
            and (not wants.arches or arch in wants.arches)
            and (wants.min_kernel is None or wants.min_kernel <= kernel)
            and not bars.capabilities & capabilities
            and arch not in bars.arches
            and (bars.min_kernel is None or bars.min_kernel > kernel)
        ):
            for name in rule.names:
                found.setdefault(name, []).append(rule)
    _check_names(found, profile.default_action)
    return found


def _check_names(rules: dict[str, list[Rule]], default: int) -> None:
    """An unknown name may stay where leaving it out refuses no less."""
    for name in rules.keys() - syscall_table.every_name():
        if not is_refusal(default) and any(is_refusal(rule.action) for rule in rules[name]):
            raise FormatError(
                f"the seccomp profile forbids {name!r}, which is no system call up to Linux 6.18",
                hint="correct the name, or make the profile's default action forbid",
            )


def _newer_than(profile: Profile, machine: str) -> frozenset[str]:
    """The calls that came after the newest one that the profile mentions anywhere."""
    mentioned = {name for rule in profile.rules for name in rule.names}
    calls = syscall_table.calls_of(machine)
    newest = max((number for number, name in calls.items() if name in mentioned), default=0)
    return frozenset(name for number, name in calls.items() if number > newest)


def _op(code: int, k: int = 0, if_true: int = 0, if_false: int = 0) -> int:
    return code | if_true << 16 | if_false << 24 | k << 32


def _return(action: int) -> int:
    return _op(_RETURN, action)


def _decide(rules: list[Rule], fallback: _Code) -> _Code:
    """One call's verdict: its rules from the strictest on, then what holds without any."""
    code: list[int] = []
    for rule in sorted(rules, key=lambda rule: strictness(rule.action)):
        block = [_return(rule.action)]
        for test in rule.tests:
            block[:0] = _compare(test, len(block))
        code += block
        if not rule.tests:
            return tuple(code)
    return (*code, *fallback)


def _compare(test: ArgTest, rest: int) -> _Code:
    """Goes on where the test holds, else jumps over the ``rest`` instructions that follow.

    A register holds 32 bits: the upper halves are compared first, the lower ones if they are equal.
    """
    upper = _op(_LOAD, _ARGUMENTS + 8 * test.argument + 4)
    lower = _op(_LOAD, _ARGUMENTS + 8 * test.argument)
    value = test.value_two if test.op == "MASKED_EQ" else test.value
    high, low = value >> 32, value & 0xFFFF_FFFF
    if test.op == "MASKED_EQ":
        high_mask, low_mask = test.value >> 32, test.value & 0xFFFF_FFFF
        first = (upper, _op(_AND, high_mask), _op(_IF_EQUAL, high, 0, 3 + rest))
        return (*first, lower, _op(_AND, low_mask), _op(_IF_EQUAL, low, 0, rest))
    if test.op == "EQ":
        return (upper, _op(_IF_EQUAL, high, 0, 2 + rest), lower, _op(_IF_EQUAL, low, 0, rest))
    if test.op == "NE":
        return (upper, _op(_IF_EQUAL, high, 0, 2), lower, _op(_IF_EQUAL, low, rest, 0))
    last = _IF_GREATER if test.op in ("GT", "LE") else _IF_NOT_LESS
    if test.op in ("GT", "GE"):
        first = (upper, _op(_IF_GREATER, high, 3, 0), _op(_IF_EQUAL, high, 0, 2 + rest))
        return (*first, lower, _op(last, low, 0, rest))
    first = (upper, _op(_IF_GREATER, high, 3 + rest, 0), _op(_IF_EQUAL, high, 0, 2))
    return (*first, lower, _op(last, low, rest, 0))


def _ranges(by_number: dict[int, _Code], unknown: _Code) -> list[tuple[int, _Code]]:
    """(first number, verdict), ascending: each range ends where the next begins."""
    ranges: list[tuple[int, _Code]] = []
    expected = 0
    last = None
    for number in sorted(by_number):
        if number != expected and last != unknown:
            ranges.append((expected, last := unknown))
        if by_number[number] != last:
            ranges.append((number, last := by_number[number]))
        expected = number + 1
    if last != unknown:
        ranges.append((expected, unknown))
    return ranges


def _tree(ranges: Iterable[tuple[int, _Code]]) -> _Code:
    """Finds a number's range by halving; a conditional jump reaches 255 instructions."""
    ranges = list(ranges)
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    below, above = _tree(ranges[:middle]), _tree(ranges[middle:])
    start = ranges[middle][0]
    if len(below) <= 255:
        return (_op(_IF_NOT_LESS, start, len(below), 0), *below, *above)
    return (_op(_IF_NOT_LESS, start, 0, 1), _op(_JUMP, len(below)), *below, *above)
