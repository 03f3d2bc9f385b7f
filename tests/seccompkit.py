"""A machine for filters, and what a profile says of a call without any compiling."""

from __future__ import annotations

import functools
import struct
from pathlib import Path

from layerstore.formats.seccomp_profile import ArgTest, Profile, Rule
from layerstore.kernel import syscall_table

calls_of = functools.cache(syscall_table.calls_of)

AUDIT = {
    "x86_64": 0xC000003E,
    "x32": 0xC000003E,
    "i386": 0x40000003,
    "aarch64": 0xC00000B7,
    "arm": 0x40000028,
}
SCMP = {"x32": "SCMP_ARCH_X32", "i386": "SCMP_ARCH_X86", "arm": "SCMP_ARCH_ARM"}
ABIS = {"x86_64": ("x86_64", "x32", "i386"), "aarch64": ("aarch64", "arm")}

KILL_PROCESS, KILL_THREAD, TRAP = 0x80000000, 0, 0x30000
TRACE, LOG, ALLOW = 0x7FF00000, 0x7FFC0000, 0x7FFF0000
EPERM, ENOSYS, EINVAL = 0x50000 | 1, 0x50000 | 38, 0x50000 | 22

DEFAULT_PROFILE = (Path(__file__).parents[1] / "layerstore/data/seccomp.json").read_bytes()

Args = tuple[int, ...]
BAD = (2**64 - 1,) * 6
"""Arguments that no call accepts."""


def run(program: bytes, audit: int, number: int, args: Args = BAD) -> int:
    """What the filter returns, as the kernel's interpreter does it."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *args)
    at, register = 0, 0
    while True:
        code, if_true, if_false, k = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        match code:
            case 0x20:
                (register,) = struct.unpack_from("<I", data, k)
            case 0x54:
                register &= k
            case 0x05:
                at += k
            case 0x15:
                at += if_true if register == k else if_false
            case 0x25:
                at += if_true if register > k else if_false
            case 0x35:
                at += if_true if register >= k else if_false
            case 0x45:
                at += if_true if register & k else if_false
            case 0x06:
                return int(k)
            case _:
                raise ValueError(f"instruction {at - 1} is {code:#x}")


def check(program: bytes) -> None:
    """What the kernel checks before it takes a program: jumps stay inside, the end returns."""
    count = len(program) // 8
    assert len(program) == 8 * count and 0 < count <= 4096
    for at, (code, if_true, if_false, k) in enumerate(struct.iter_unpack("<HBBI", program)):
        assert code in (0x20, 0x54, 0x05, 0x15, 0x25, 0x35, 0x06), hex(code)
        if code == 0x05:
            assert at + k + 1 < count
        if code & 7 == 5 and code != 0x05:
            assert at + max(if_true, if_false) + 1 < count
        if code == 0x20:
            assert k in range(0, 64, 4)
    assert program[-8] == 0x06


def holds(test: ArgTest, args: Args) -> bool:
    value = args[test.argument]
    return {
        "NE": value != test.value,
        "LT": value < test.value,
        "LE": value <= test.value,
        "EQ": value == test.value,
        "GE": value >= test.value,
        "GT": value > test.value,
        "MASKED_EQ": value & test.value == test.value_two,
    }[test.op]


def is_for(rule: Rule, caps: frozenset[str], arch: str, kernel: tuple[int, int]) -> bool:
    yes, no = rule.includes, rule.excludes
    if any(cap not in caps for cap in yes.capabilities) or any(c in caps for c in no.capabilities):
        return False
    if (yes.arches and arch not in yes.arches) or arch in no.arches:
        return False
    if yes.min_kernel is not None and kernel < yes.min_kernel:
        return False
    return no.min_kernel is None or kernel < no.min_kernel


def verdict(
    profile: Profile,
    abi: str,
    number: int,
    args: Args = BAD,
    *,
    machine: str = "x86_64",
    caps: frozenset[str] = frozenset(),
    kernel: tuple[int, int] = (6, 1),
) -> int:
    """What the profile says of one call."""
    default = profile.default_action
    is_refusal = default not in (ALLOW, LOG) and default & 0xFFFF0000 != TRACE
    beyond = ENOSYS if is_refusal else default
    name = calls_of(abi).get(number)
    if name is None:
        return beyond
    arch = {"x86_64": "amd64", "aarch64": "arm64"}[machine]
    matching = [
        rule.action
        for rule in profile.rules
        if set(name.split("|")) & set(rule.names)
        and is_for(rule, caps, arch, kernel)
        and all(holds(test, args) for test in rule.tests)
    ]
    for kind in (KILL_PROCESS, KILL_THREAD, TRAP, 0x50000, TRACE, LOG, ALLOW):
        for action in matching:
            if action & 0xFFFF0000 == kind:
                return action
    mentioned = {name for rule in profile.rules for name in rule.names}
    native = {call: its_number for its_number, call in calls_of(machine).items()}
    newest = max((native[name] for name in mentioned if name in native), default=0)
    return beyond if native.get(name, 0) > newest else default


def argument_cases(rules: tuple[Rule, ...]) -> list[Args]:
    """Arguments on both sides of every comparison, in either half of the word."""
    cases: list[Args] = [BAD, (0,) * 6]
    for test in {test for rule in rules for test in rule.tests}:
        for value in (test.value, test.value_two):
            for near in (value - 1, value, value + 1, value | 1 << 32, value ^ 1 << 63, ~value):
                for others in (0, 1):
                    case = [others] * 6
                    case[test.argument] = near & 2**64 - 1
                    cases.append(tuple(case))
    return list(dict.fromkeys(cases))
