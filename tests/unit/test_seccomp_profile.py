"""Docker's seccomp profiles, read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import seccompkit as kit
from hypothesis import given
from hypothesis import strategies as st

from layerstore.errors import FormatError
from layerstore.formats.seccomp_profile import ArgTest, Condition, Profile, Rule, parse
from layerstore.kernel.syscall_table import every_name


def profile(**members: Any) -> bytes:  # Any: JSON
    return json.dumps({"defaultAction": "SCMP_ACT_ERRNO"} | members).encode()


def one_rule(**members: Any) -> bytes:  # Any: JSON
    return profile(syscalls=[{"names": ["read"], "action": "SCMP_ACT_ALLOW"} | members])


def test_everything_of_a_profile_is_read() -> None:
    raw = profile(
        defaultErrnoRet=38,
        archMap=[
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
            {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": None},
        ],
        syscalls=[
            {
                "names": ["socket", "socketpair"],
                "action": "SCMP_ACT_ERRNO",
                "args": [
                    {"index": 0, "value": 16, "valueTwo": 0, "op": "SCMP_CMP_EQ"},
                    {"index": 2, "value": 2**64 - 1, "valueTwo": 9, "op": "SCMP_CMP_MASKED_EQ"},
                ],
                "comment": "why",
                "includes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["amd64"], "minKernel": "4.18"},
                "excludes": {"caps": ["CAP_NET_RAW"], "arches": ["s390x"]},
                "errnoRet": 22,
            },
            {"name": "read", "action": "SCMP_ACT_ALLOW", "args": None, "excludes": {}},
        ],
    )
    assert parse(raw) == Profile(
        kit.ENOSYS,
        (("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"), ("SCMP_ARCH_RISCV64",)),
        (
            Rule(
                ("socket", "socketpair"),
                kit.EINVAL,
                (ArgTest(0, "EQ", 16, 0), ArgTest(2, "MASKED_EQ", 2**64 - 1, 9)),
                Condition(frozenset({"SYS_ADMIN"}), frozenset({"amd64"}), (4, 18)),
                Condition(frozenset({"NET_RAW"}), frozenset({"s390x"})),
            ),
            Rule(("read",), kit.ALLOW),
        ),
    )


@pytest.mark.parametrize(
    ("action", "returned"),
    [
        ("SCMP_ACT_KILL", 0),
        ("SCMP_ACT_KILL_THREAD", 0),
        ("SCMP_ACT_KILL_PROCESS", 0x80000000),
        ("SCMP_ACT_TRAP", 0x30000),
        ("SCMP_ACT_ERRNO", 0x50001),
        ("SCMP_ACT_TRACE", 0x7FF00001),
        ("SCMP_ACT_LOG", 0x7FFC0000),
        ("SCMP_ACT_ALLOW", 0x7FFF0000),
    ],
)
def test_an_action_is_what_the_filter_returns(action: str, returned: int) -> None:
    assert parse(profile(defaultAction=action)) == Profile(returned)


def test_an_errno_may_be_a_name_as_podman_writes_it() -> None:
    raw = profile(defaultErrno="ENOSYS", defaultErrnoRet=38)
    assert parse(raw).default_action == kit.ENOSYS
    (rule,) = parse(one_rule(action="SCMP_ACT_ERRNO", errno="EINVAL")).rules
    assert rule.action == kit.EINVAL


def test_two_comparisons_of_one_argument_are_rules_of_their_own() -> None:
    args = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (1, 2)]
    assert parse(one_rule(args=args)).rules == (
        Rule(("read",), kit.ALLOW, (ArgTest(0, "EQ", 1, 0),)),
        Rule(("read",), kit.ALLOW, (ArgTest(0, "EQ", 2, 0),)),
    )


def test_a_list_of_architectures_serves_each_of_them() -> None:
    raw = profile(architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])
    assert ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86_64", "SCMP_ARCH_X86") in parse(raw).arch_map


TEST = {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "isn't JSON"),
        (b"\xff", "isn't JSON"),
        (b"[" * 100_000, "isn't JSON"),
        (b"[]", "at the profile: [] isn't an object"),
        (b"{}", "at the profile: {} has no defaultAction"),
        (b'{"defaultAction": "SCMP_ACT_ALLOW", "defaultAction": "SCMP_ACT_ERRNO"}',
         "'defaultAction' stands there twice"),
        (profile(syscall=[]), "at the profile: 'syscall' isn't one of its keys"),
        (profile(defaultAction="ALLOW"), "at defaultAction: 'ALLOW' isn't one of SCMP_ACT_KILL"),
        (profile(defaultAction="SCMP_ACT_NOTIFY"), "'SCMP_ACT_NOTIFY' isn't one of"),
        (profile(defaultAction=["SCMP_ACT_ALLOW"]), "isn't one of"),
        (profile(defaultErrnoRet=4096), "at defaultErrnoRet: 4096 isn't a whole number"),
        (profile(defaultErrnoRet=True), "at defaultErrnoRet: True isn't a whole number"),
        (profile(defaultErrno="EWHAT"), "at defaultErrno: 'EWHAT' isn't the name of an errno"),
        (profile(defaultErrno="ENOSYS", defaultErrnoRet=1), "contradicts defaultErrnoRet"),
        (profile(flags=["SECCOMP_FILTER_FLAG_LOG"]), "at flags: ['SECCOMP_FILTER_FLAG_LOG'] is"),
        (profile(listenerPath="/run/x"), "at listenerPath: '/run/x' is not supported"),
        (profile(architectures=["x86"]), "at architectures[0]: 'x86' isn't of the form"),
        (profile(architectures=["SCMP_ARCH_X86"], archMap=[{"architecture": "SCMP_ARCH_X86"}]),
         "stands beside an archMap"),
        (profile(archMap=[{}]), "at archMap[0].architecture[0]: None isn't of the form"),
        (profile(syscalls={}), "at syscalls: {} isn't a list"),
        (profile(syscalls=[None]), "at syscalls[0]: None isn't an object"),
        (profile(syscalls=[{"action": "SCMP_ACT_ALLOW"}]), "names no system call"),
        (profile(syscalls=[{"names": ["read"]}]), "has no action"),
        (one_rule(name="write"), "at syscalls[0].name: 'write' stands beside names"),
        (one_rule(names=["Read"]), "at syscalls[0].names[0]: 'Read' isn't of the form"),
        (one_rule(names=[3]), "at syscalls[0].names[0]: 3 isn't of the form"),
        (one_rule(errnoRet=1), "at syscalls[0].action: 'SCMP_ACT_ALLOW' has no errno"),
        (one_rule(args=[TEST | {"op": "=="}]), "at syscalls[0].args[0].op: '==' isn't one of"),
        (one_rule(args=[TEST | {"op": None}]), "at syscalls[0].args[0].op: None isn't one of"),
        (one_rule(args=[TEST | {"index": 6}]), "at syscalls[0].args[0].index: 6 isn't"),
        (one_rule(args=[TEST | {"value": -1}]), "at syscalls[0].args[0].value: -1 isn't"),
        (one_rule(args=[TEST | {"value": 2**64}]), "args[0].value: 18446744073709551616 isn't"),
        (one_rule(args=[TEST | {"value": 1.0}]), "at syscalls[0].args[0].value: 1.0 isn't"),
        (one_rule(args=[{"index": 0, "op": "SCMP_CMP_EQ"}]), "args[0].value: None isn't"),
        (one_rule(includes={"caps": ["SYS_ADMIN"]}), "includes.caps[0]: 'SYS_ADMIN' isn't"),
        (one_rule(includes={"cap": []}), "at syscalls[0].includes: 'cap' isn't one of its keys"),
        (one_rule(excludes={"minKernel": "5"}), "excludes.minKernel[0]: '5' isn't of the form"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_at_its_place(raw: bytes, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse(raw)
    assert message in caught.value.brief
    assert caught.value.hint is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@given(
    key=st.sampled_from(["defaultAction", "defaultErrnoRet", "defaultErrno", "architectures",
                         "archMap", "flags", "syscalls"]),
    rule_key=st.sampled_from(["names", "name", "action", "args", "includes", "excludes", "errno",
                              "errnoRet"]),
    value=JSON,
)  # fmt: skip
def test_any_json_is_a_profile_or_a_format_error(key: str, rule_key: str, value: object) -> None:
    for raw in (profile(**{key: value}), one_rule(**{rule_key: value})):
        try:
            parse(raw)
        except FormatError:
            pass


def test_the_default_profile_names_calls_that_exist_and_none_twice() -> None:
    rules = parse(kit.DEFAULT_PROFILE).rules
    assert {name for rule in rules for name in rule.names} - every_name() == set()
    plain = [name for rule in rules if rule[2:] == Rule((), 0)[2:] for name in rule.names]
    assert len(plain) == len(set(plain)) == 362


def test_podmans_profile_is_read() -> None:
    path = Path("/usr/share/containers/seccomp.json")
    if not path.exists():
        pytest.skip(f"needs podman's {path}")
    assert parse(path.read_bytes()).default_action == kit.ENOSYS
