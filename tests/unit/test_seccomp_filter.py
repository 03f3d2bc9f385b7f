"""Compiled filters against a plain reading of their profiles."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import seccompkit as kit
from hypothesis import given, settings
from hypothesis import strategies as st
from seccompkit import calls_of

from layerstore.errors import FormatError
from layerstore.formats.seccomp_profile import ArgTest, Condition, Profile, Rule, parse
from layerstore.kernel import caps, seccomp
from layerstore.kernel.syscall_table import X32_BIT

DEFAULT = parse(kit.DEFAULT_PROFILE)
X86_MAP = (("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),)
ARM_MAP = (("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),)
EVERY_CAP = frozenset(caps.NUMBERS)

X86_64, I386 = kit.AUDIT["x86_64"], kit.AUDIT["i386"]


def number_of(name: str, abi: str = "x86_64") -> int:
    return next(number for number, call in calls_of(abi).items() if call == name)


def compiled(
    profile: Profile, machine: str = "x86_64", capabilities: frozenset[str] = caps.DEFAULT
) -> bytes:
    program = seccomp.compile_filter(
        profile, capabilities=capabilities, machine=machine, kernel=(6, 1)
    )
    kit.check(program)
    return program


def answer(program: bytes, name: str, *args: int, abi: str = "x86_64") -> int:
    padded = (*args, *(0,) * (6 - len(args)))
    return kit.run(program, kit.AUDIT[abi], number_of(name, abi), padded)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize(
    "capabilities",
    [frozenset(), caps.DEFAULT, caps.DEFAULT | {"SYS_ADMIN", "SYS_TIME"}, EVERY_CAP],
    ids=["none", "default", "admin", "all"],
)
def test_the_default_filter_says_what_the_profile_says_of_every_number(
    machine: str, capabilities: frozenset[str]
) -> None:
    program = compiled(DEFAULT, machine, capabilities)
    different = []
    for abi in kit.ABIS[machine]:
        calls = calls_of(abi)
        base = X32_BIT if abi == "x32" else 0
        edges = {2**30 - 1, 2**31, 2**32 - 1, *range(0xF0000, 0xF0010)}
        for number in sorted({*range(base, base + 600), *calls, *edges}):
            if abi != "x32" and number & X32_BIT and kit.AUDIT[abi] == X86_64:
                continue  # those are x32's
            rules = tuple(r for r in DEFAULT.rules if calls.get(number) in r.names)
            for args in kit.argument_cases(rules):
                wanted = kit.verdict(DEFAULT, abi, number, args, machine=machine, caps=capabilities)
                got = kit.run(program, kit.AUDIT[abi], number, args)
                if got != wanted:
                    different.append((abi, number, args, hex(got), hex(wanted)))
    assert different == []


@pytest.mark.parametrize(
    ("name", "args", "wanted"),
    [
        ("read", (), kit.ALLOW),
        ("mount", (), kit.EPERM),
        ("unshare", (), kit.EPERM),
        ("setns", (), kit.EPERM),
        ("fsopen", (), kit.EPERM),
        ("open_tree", (), kit.EPERM),
        ("move_mount", (), kit.EPERM),
        ("mount_setattr", (), kit.EPERM),
        ("bpf", (), kit.EPERM),
        ("perf_event_open", (), kit.EPERM),
        ("userfaultfd", (), kit.EPERM),
        ("io_uring_setup", (), kit.EPERM),
        ("io_uring_enter", (), kit.EPERM),
        ("io_uring_register", (), kit.EPERM),
        ("keyctl", (), kit.EPERM),
        ("add_key", (), kit.EPERM),
        ("request_key", (), kit.EPERM),
        ("open_by_handle_at", (), kit.EPERM),
        ("init_module", (), kit.EPERM),
        ("kexec_load", (), kit.EPERM),
        ("chroot", (), kit.ALLOW),
        ("clone3", (), kit.ENOSYS),
        ("clone", (0x01200011,), kit.ALLOW),
        ("clone", (0x3D0F00,), kit.ALLOW),
        *(("clone", (1 << bit | 17,), kit.EPERM) for bit in (17, *range(25, 31))),
        ("personality", (0,), kit.ALLOW),
        ("personality", (8,), kit.ALLOW),
        ("personality", (0x20000,), kit.ALLOW),
        ("personality", (0x20008,), kit.ALLOW),
        ("personality", (0xFFFFFFFF,), kit.ALLOW),
        ("personality", (0x0040000,), kit.EPERM),
        ("personality", (1 << 32,), kit.EPERM),
        ("socket", (1, 1, 0), kit.ALLOW),
        ("socket", (2, 1, 0), kit.ALLOW),
        ("socket", (38, 5, 0), kit.EPERM),
        ("socket", (40, 1, 0), kit.EPERM),
        ("socket", (38 | 1 << 32, 5, 0), kit.EPERM),
        ("socket", (40 | 1 << 63, 1, 0), kit.EPERM),
        ("socket", (46, 1, 0), kit.EPERM),
        ("socketpair", (1, 1, 0), kit.ALLOW),
        ("socketpair", (38, 1, 0), kit.EPERM),
        ("file_getattr", (), kit.ENOSYS),
    ],
    ids=lambda value: None if isinstance(value, tuple) else str(value),
)  # fmt: skip
def test_by_default_a_container_may_and_may_not(
    name: str, args: tuple[int, ...], wanted: int
) -> None:
    for abi in ("x86_64", "i386", "x32"):
        if abi == "i386" and any(arg >= 2**32 for arg in args):
            continue  # its registers hold no more
        assert answer(compiled(DEFAULT), name, *args, abi=abi) == wanted, abi
    for abi in ("aarch64", "arm"):
        if name not in calls_of(abi).values() or any(arg >= 2**32 for arg in args):
            continue
        assert answer(compiled(DEFAULT, "aarch64"), name, *args, abi=abi) == wanted, abi


def test_a_socket_of_the_crypto_interface_does_not_come_through_the_multiplexer_either() -> None:
    assert answer(compiled(DEFAULT), "socketcall", 1, abi="i386") == kit.EPERM


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ("SYS_ADMIN", "mount"),
        ("SYS_ADMIN", "clone3"),
        ("SYS_ADMIN", "setns"),
        ("SYS_TIME", "clock_settime"),
        ("SYS_MODULE", "finit_module"),
        ("SYS_PTRACE", "kcmp"),
        ("SYS_BOOT", "reboot"),
        ("SYSLOG", "syslog"),
        ("BPF", "bpf"),
        ("PERFMON", "perf_event_open"),
        ("DAC_READ_SEARCH", "open_by_handle_at"),
        ("SYS_NICE", "mbind"),
        ("SYS_RAWIO", "iopl"),
        ("SYS_PACCT", "acct"),
        ("SYS_CHROOT", "chroot"),
        ("SYS_TTY_CONFIG", "vhangup"),
    ],
)
def test_a_capability_brings_its_calls(capability: str, name: str) -> None:
    without = answer(compiled(DEFAULT, capabilities=EVERY_CAP - {capability, "SYS_ADMIN"}), name)
    with_it = answer(compiled(DEFAULT, capabilities=frozenset({capability})), name)
    assert (without in (kit.EPERM, kit.ENOSYS), with_it) == (True, kit.ALLOW)


def test_a_new_namespace_needs_the_capability() -> None:
    admin = compiled(DEFAULT, capabilities=caps.DEFAULT | {"SYS_ADMIN"})
    assert answer(admin, "clone", 0x7E020000) == kit.ALLOW


@pytest.mark.parametrize("number", [512, 547, 600, 2**30 - 1, 2**31, 2**32 - 1])
def test_a_number_without_a_call_is_not_implemented(number: int) -> None:
    assert kit.run(compiled(DEFAULT), X86_64, number) == kit.ENOSYS
    assert kit.run(compiled(DEFAULT), I386, number) == kit.ENOSYS


@pytest.mark.parametrize("audit", [0, 0xC00000B7, 0x8000_0015, 2**32 - 1])
def test_a_foreign_architecture_kills(audit: int) -> None:
    assert kit.run(compiled(DEFAULT), audit, 0) == kit.KILL_PROCESS


def test_an_abi_that_the_profile_does_not_name_kills_or_is_not_implemented() -> None:
    program = compiled(Profile(kit.EPERM, (), (Rule(("read",), kit.ALLOW),)))
    assert kit.run(program, X86_64, 0) == kit.ALLOW
    assert kit.run(program, I386, 3) == kit.KILL_PROCESS
    assert kit.run(program, X86_64, X32_BIT) == kit.ENOSYS  # x32 is a range of x86_64's numbers


def test_an_old_profile_answers_newer_calls_with_enosys_and_older_ones_with_its_default() -> None:
    program = compiled(Profile(kit.EPERM, X86_MAP, (Rule(("openat2", "read"), kit.ALLOW),)))
    assert answer(program, "faccessat2") == kit.ENOSYS
    assert answer(program, "faccessat2", abi="i386") == kit.ENOSYS
    assert answer(program, "close_range") == kit.EPERM
    assert answer(program, "statx", abi="i386") == kit.EPERM
    assert answer(program, "kexec_load", abi="x32") == kit.EPERM  # number 528, and yet old


@pytest.mark.parametrize(
    "default", [kit.ALLOW, kit.LOG, kit.TRACE | 1], ids=["allow", "log", "trace"]
)
def test_a_permissive_default_holds_for_unknown_calls(default: int) -> None:
    program = compiled(Profile(default, X86_MAP, (Rule(("mount",), kit.EPERM),)))
    assert kit.run(program, X86_64, 600) == default
    assert answer(program, "mseal") == default
    assert answer(program, "mount") == kit.EPERM


def test_the_strictest_matching_rule_decides_whatever_the_order() -> None:
    rules = (
        Rule(("socket",), kit.ALLOW),
        Rule(("socket",), kit.EPERM, (ArgTest(0, "EQ", 38, 0),)),
        Rule(("socket",), kit.KILL_PROCESS, (ArgTest(0, "EQ", 38, 0), ArgTest(1, "EQ", 5, 0))),
    )
    for order in (rules, rules[::-1]):
        program = compiled(Profile(kit.ENOSYS, X86_MAP, order))
        assert [answer(program, "socket", *args) for args in ((1, 1), (38, 1), (38, 5))] == [
            kit.ALLOW,
            kit.EPERM,
            kit.KILL_PROCESS,
        ]


@pytest.mark.parametrize(("kernel", "wanted"), [((5, 9), kit.EPERM), ((5, 10), kit.ALLOW)])
def test_a_minimal_kernel_is_compared_by_numbers(kernel: tuple[int, int], wanted: int) -> None:
    rule = Rule(("ptrace",), kit.ALLOW, includes=Condition(min_kernel=(5, 10)))
    program = seccomp.compile_filter(
        Profile(kit.EPERM, X86_MAP, (rule, Rule(("mseal",), kit.ALLOW))),
        capabilities=frozenset(),
        machine="x86_64",
        kernel=kernel,
    )
    assert answer(program, "ptrace") == wanted


def test_a_forbidden_name_that_does_not_exist_is_refused_where_it_would_be_a_hole() -> None:
    misspelt = (Rule(("mout",), kit.EPERM),)
    with pytest.raises(FormatError, match="'mout'"):
        compiled(Profile(kit.ALLOW, X86_MAP, misspelt))
    assert answer(compiled(Profile(kit.EPERM, X86_MAP, misspelt)), "mount") in (
        kit.EPERM,
        kit.ENOSYS,
    )


def test_a_name_of_another_machine_is_no_mistake() -> None:
    rules = (Rule(("s390_runtime_instr", "arm_fadvise64_64", "mount"), kit.EPERM),)
    assert answer(compiled(Profile(kit.ALLOW, X86_MAP, rules)), "mount") == kit.EPERM


def test_a_profile_too_large_for_the_kernel_is_refused() -> None:
    rules = tuple(Rule(("read",), kit.ALLOW, (ArgTest(0, "EQ", v, 0),)) for v in range(1000))
    with pytest.raises(FormatError, match="4096"):
        seccomp.compile_filter(
            Profile(kit.EPERM, (), rules), capabilities=frozenset(), machine="x86_64"
        )


NAMES = ["read", "socket", "clone", "statx", "openat2", "mseal", "fstat64", "sync_file_range2"]
WORDS = st.sampled_from(
    [0, 1, 2, 38, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**63, 2**64 - 1]
) | st.integers(0, 2**64 - 1)
ACTIONS = st.sampled_from(
    [kit.KILL_PROCESS, kit.KILL_THREAD, kit.TRAP, kit.EPERM, kit.EINVAL, kit.TRACE | 7, kit.LOG,
     kit.ALLOW]
)  # fmt: skip
TESTS = st.builds(
    ArgTest,
    st.integers(0, 5),
    st.sampled_from(["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]),
    WORDS,
    WORDS,
)
CONDITIONS = st.just(Condition()) | st.builds(
    Condition,
    st.frozensets(st.sampled_from(["SYS_ADMIN", "NET_RAW"])),
    st.frozensets(st.sampled_from(["amd64", "arm64", "s390x"])),
    st.none() | st.sampled_from([(4, 8), (6, 1), (6, 2)]),
)
RULES = st.builds(
    Rule,
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True).map(tuple),
    ACTIONS,
    st.lists(TESTS, max_size=3).map(tuple),
    CONDITIONS,
    CONDITIONS,
)
PROFILES = st.builds(
    Profile, ACTIONS, st.sampled_from([X86_MAP, ARM_MAP]), st.lists(RULES, max_size=6).map(tuple)
)


@settings(max_examples=150, deadline=None)
@given(
    profile=PROFILES,
    capabilities=st.frozensets(st.sampled_from(["SYS_ADMIN", "NET_RAW", "CHOWN"])),
    more=st.tuples(*[WORDS] * 6),
)
def test_any_filter_says_what_its_profile_says(
    profile: Profile, capabilities: frozenset[str], more: tuple[int, ...]
) -> None:
    machine = "x86_64" if profile.arch_map == X86_MAP else "aarch64"
    program = compiled(profile, machine, capabilities)
    for abi in kit.ABIS[machine]:
        for number, name in calls_of(abi).items():
            if not set(name.split("|")) & {*NAMES, "mount"}:
                continue
            rules = tuple(rule for rule in profile.rules if set(name.split("|")) & {*rule.names})
            for args in (more, *kit.argument_cases(rules)):
                wanted = kit.verdict(profile, abi, number, args, machine=machine, caps=capabilities)
                assert kit.run(program, kit.AUDIT[abi], number, args) == wanted


class _ArgCmp(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64),
                ("b", ctypes.c_uint64))  # fmt: skip


def libseccomp() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None


_OPS = {op: i for i, op in enumerate(("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"), start=1)}


def libseccomp_program(profile: Profile, capabilities: frozenset[str]) -> tuple[bytes, set[str]]:
    """The profile as runc hands it to libseccomp, and the names that it does not know."""
    library: Any = libseccomp()  # Any: a foreign library
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(profile.default_action)))
    for token in (I386, 0x4000003E):
        assert library.seccomp_arch_add(context, ctypes.c_uint32(token)) == 0
    unknown = set()
    for rule in profile.rules:
        if rule.action == profile.default_action or not kit.is_for(
            rule, capabilities, "amd64", (6, 1)
        ):
            continue
        tests = (_ArgCmp * 6)(
            *(_ArgCmp(t.argument, _OPS[t.op], t.value, t.value_two) for t in rule.tests)
        )
        for name in rule.names:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == -1:
                unknown.add(name)
                continue
            library.seccomp_rule_add_array(
                context, ctypes.c_uint32(rule.action), number, len(rule.tests), tests
            )
    with tempfile.TemporaryFile() as file:
        assert library.seccomp_export_bpf(context, file.fileno()) == 0
        library.seccomp_release(context)
        return os.pread(file.fileno(), 1 << 20, 0), unknown


@pytest.mark.skipif(libseccomp() is None, reason="needs libseccomp.so.2")
@pytest.mark.parametrize(
    "profile",
    [
        DEFAULT,
        pytest.param(
            Path("/usr/share/containers/seccomp.json"),
            marks=pytest.mark.skipif(
                not Path("/usr/share/containers/seccomp.json").exists(),
                reason="needs podman's /usr/share/containers/seccomp.json",
            ),
        ),
    ],
    ids=["layerstore", "podman"],
)
def test_libseccomp_makes_the_same_decisions_from_the_same_profile(
    profile: Profile | Path,
) -> None:
    if isinstance(profile, Path):
        profile = parse(profile.read_bytes())
    ours = compiled(profile)
    theirs, unknown = libseccomp_program(profile, caps.DEFAULT)
    # Podman's both allows and forbids setns: libseccomp takes the first, we the strictest rule.
    contradictory = {"setns"} if profile is not DEFAULT else set()
    different = set()
    for abi in kit.ABIS["x86_64"]:
        for number, name in calls_of(abi).items():
            if name in unknown | contradictory:
                continue
            for args in kit.argument_cases(tuple(r for r in profile.rules if name in r.names)):
                if abi != "x86_64":  # libseccomp looks at the lower half only
                    args = tuple(arg & 0xFFFFFFFF for arg in args)
                a = kit.run(ours, kit.AUDIT[abi], number, args)
                b = kit.run(theirs, kit.AUDIT[abi], number, args)
                if a != b and (a, b) != (kit.ENOSYS, profile.default_action):
                    different.add((abi, name, hex(a), hex(b)))
    assert different == set()


def test_the_program_of_a_key_changes_only_with_the_version() -> None:
    """A failure here means that kept programs are stale: raise VERSION, and put the new digest."""
    profile = parse(
        json.dumps(
            {
                "defaultAction": "SCMP_ACT_ERRNO",
                "archMap": [
                    {"architecture": "SCMP_ARCH_X86_64",
                     "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
                    {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
                ],
                "syscalls": [
                    {"names": ["read", "openat", "mseal", "ppoll_time64", "cacheflush", "pread64"],
                     "action": "SCMP_ACT_ALLOW"},
                    {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
                     "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_LT"},
                              {"index": 1, "value": 15, "valueTwo": 1,
                               "op": "SCMP_CMP_MASKED_EQ"}]},
                ],
            }
        ).encode()
    )  # fmt: skip
    programs = compiled(profile) + compiled(profile, "aarch64")
    tables = repr([sorted(calls_of(abi).items()) for abi in kit.AUDIT]).encode()
    digest = hashlib.sha256(programs + tables).hexdigest()[:16]
    assert (seccomp.VERSION, digest) == (1, "cee58f3dfd63ecf0")


def test_the_key_differs_with_everything_that_the_program_depends_on() -> None:
    keys = {
        seccomp.cache_key(b"{}", frozenset(), "x86_64"),
        seccomp.cache_key(b"{} ", frozenset(), "x86_64"),
        seccomp.cache_key(b"{}", frozenset({"CHOWN"}), "x86_64"),
        seccomp.cache_key(b"{}", frozenset({"CHOWN", "KILL"}), "x86_64"),
        seccomp.cache_key(b"{}", frozenset(), "aarch64"),
    }
    assert len(keys) == 5
    assert {len(key) for key in keys} == {40}
    assert seccomp.cache_key(b"", frozenset({"A", "B"}), "x") == seccomp.cache_key(
        b"", frozenset({"B", "A"}), "x"
    )


def test_instructions_are_struct_sock_filter() -> None:
    program = compiled(DEFAULT)
    assert struct.unpack_from("<HBBI", program) == (0x20, 0, 0, 4)
    assert struct.unpack_from("<HBBI", program, 8) == (0x15, 1, 0, X86_64)
    assert struct.unpack_from("<HBBI", program, len(program) - 8) == (6, 0, 0, kit.KILL_PROCESS)


def test_the_hot_path_imports_nothing_heavy() -> None:
    code = "import sys, layerstore.kernel.seccomp; print(*sorted(sys.modules))"
    root = str(Path(__file__).parents[2])
    modules = subprocess.run(
        [sys.executable, "-S", "-c", code],
        check=True, capture_output=True, text=True, env={"PYTHONPATH": root},
    ).stdout.split()  # fmt: skip
    heavy = {"json", "dataclasses", "typing", "re", "enum", "hashlib", "ctypes", "struct"}
    assert heavy & set(modules) == set()


PODMAN_4_3 = Path("/usr/share/containers/seccomp.json")
DOCS = Path(__file__).parents[2] / "docs/security.md"


def documented_differences() -> dict[str, tuple[str, str]]:
    text = DOCS.read_text().partition("| calls | layerstore | podman 4.3 |")[2]
    rows = [line.split("|") for line in text.splitlines()[2:] if line.startswith("| ")]
    return {name: (row[2].strip(), row[3].strip()) for row in rows for name in row[1].split()}


@pytest.mark.skipif(libseccomp() is None, reason="needs libseccomp.so.2")
@pytest.mark.skipif(
    not PODMAN_4_3.exists()
    or hashlib.sha256(PODMAN_4_3.read_bytes()).hexdigest()[:16] != "cc374cf23846ce1f",
    reason="needs /usr/share/containers/seccomp.json of podman 4.3",
)
def test_the_manual_lists_every_difference_from_podman() -> None:
    podman = parse(PODMAN_4_3.read_bytes())
    ours, (theirs, _) = compiled(DEFAULT), libseccomp_program(podman, caps.DEFAULT)
    words = {kit.ALLOW: "allow", kit.EPERM: "EPERM", kit.ENOSYS: "ENOSYS", kit.EINVAL: "EINVAL"}
    found: dict[str, tuple[str, str]] = {}
    for abi in kit.ABIS["x86_64"]:
        for number, name in calls_of(abi).items():
            rules = tuple(r for r in (*DEFAULT.rules, *podman.rules) if name in r.names)
            a, b = (
                {
                    kit.run(program, kit.AUDIT[abi], number, args)
                    for args in kit.argument_cases(rules)
                }
                for program in (ours, theirs)
            )
            if a != b or len(a) > 1:
                shown = ["/".join(sorted(words[action] for action in side)) for side in (a, b)]
                found[name] = (shown[0], shown[1])
    assert found == documented_differences()
