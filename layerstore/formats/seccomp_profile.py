"""Seccomp profiles: docker's JSON, as docker, podman and the OCI runtime specification write it.

Read strictly: what isn't understood is refused, because a rule that is passed over would be a hole.
Not supported: ``SCMP_ACT_NOTIFY`` with its listener, and flags.

Comparisons of one rule hold together, but two of the same argument make a rule of each, as runc
reads them. ``SCMP_CMP_MASKED_EQ`` takes its mask from ``value`` and the rest from ``valueTwo``.
"""

from __future__ import annotations

import errno
import json
import re
from typing import Any, NamedTuple

from layerstore.errors import FormatError

_HINT = "correct the profile; docker's documentation of seccomp profiles describes the format"

ERRNO, TRACE = 0x0005_0000, 0x7FF0_0000
ALLOW = 0x7FFF_0000
# Return values of a filter, linux/seccomp.h; ERRNO and TRACE take 16 bits of data.
_ACTIONS = {
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_KILL_PROCESS": 0x8000_0000,
    "SCMP_ACT_TRAP": 0x0003_0000,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_TRACE": TRACE,
    "SCMP_ACT_LOG": 0x7FFC_0000,
    "SCMP_ACT_ALLOW": ALLOW,
}
_OPS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
_MAX_ERRNO = 4095

# Any: JSON.
_Json = Any
_Object = dict[str, _Json]


class ArgTest(NamedTuple):
    """A comparison of one argument, as an unsigned 64-bit number."""

    argument: int
    op: str
    """``EQ`` and so on."""
    value: int
    value_two: int


class Condition(NamedTuple):
    """Which containers and hosts a rule is for; empty sets and None say nothing."""

    capabilities: frozenset[str] = frozenset()
    """All of them, without ``CAP_``."""
    arches: frozenset[str] = frozenset()
    """Any of them, by Go's names: ``amd64``, ``arm64``."""
    min_kernel: tuple[int, int] | None = None


class Rule(NamedTuple):
    """What happens to these calls when all tests hold."""

    names: tuple[str, ...]
    action: int
    """What the filter returns for them."""
    tests: tuple[ArgTest, ...] = ()
    includes: Condition = Condition()
    excludes: Condition = Condition()
    """Any one of these is enough to leave the rule out."""


class Profile(NamedTuple):
    """Every rule, and what happens to a call that none is for."""

    default_action: int
    arch_map: tuple[tuple[str, ...], ...] = ()
    """libseccomp's name of a machine's own ABI, and those of the others that it may use."""
    rules: tuple[Rule, ...] = ()


def parse(raw: bytes) -> Profile:
    """Raises FormatError, which names the place, for anything that isn't understood."""
    try:
        document = json.loads(raw, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the seccomp profile isn't JSON: {error}", hint=_HINT) from error
    top = _object(
        document, "the profile",
        "defaultAction defaultErrnoRet defaultErrno architectures archMap flags listenerPath "
        "listenerMetadata syscalls",
    )  # fmt: skip
    for key in ("flags", "listenerPath", "listenerMetadata"):
        if top.get(key):
            raise _wrong(key, top[key], "is not supported")
    if "defaultAction" not in top:
        raise _wrong("the profile", document, "has no defaultAction")
    rules: list[Rule] = []
    for number, rule in enumerate(_list(top.get("syscalls"), "syscalls")):
        rules += _rules(rule, f"syscalls[{number}]")
    return Profile(
        _action(top, "defaultAction", "defaultErrnoRet", "defaultErrno", where=""),
        _arch_map(top),
        tuple(rules),
    )


def _wrong(where: str, value: object, why: str) -> FormatError:
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return FormatError(f"the seccomp profile is wrong at {where}: {shown} {why}", hint=_HINT)


def _unique_keys(pairs: list[tuple[str, _Json]]) -> _Object:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _wrong("an object", twice, "stands there twice")
    return found


def _object(value: _Json, where: str, keys: str) -> _Object:
    """Its members that aren't null."""
    if not isinstance(value, dict):
        raise _wrong(where, value, "isn't an object")
    for key in value:
        if key not in keys.split():
            raise _wrong(where, key, f"isn't one of its keys, which are {', '.join(keys.split())}")
    return {key: member for key, member in value.items() if member is not None}


def _list(value: _Json, where: str) -> list[_Json]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _wrong(where, value, "isn't a list")
    return value


def _strings(value: _Json, where: str, pattern: str) -> list[str]:
    found = _list(value, where)
    for number, member in enumerate(found):
        if not isinstance(member, str) or not re.fullmatch(pattern, member):
            raise _wrong(f"{where}[{number}]", member, f"isn't of the form {pattern}")
    return found


def _number(value: _Json, where: str, limit: int) -> int:
    if type(value) is not int or not 0 <= value <= limit:
        raise _wrong(where, value, f"isn't a whole number from 0 to {limit}")
    return value


def _action(members: _Object, key: str, errno_key: str, name_key: str, *, where: str) -> int:
    name = members[key]
    if not isinstance(name, str) or name not in _ACTIONS:
        raise _wrong(where + key, name, f"isn't one of {', '.join(_ACTIONS)}")
    action = _ACTIONS[name]
    codes = set()
    if errno_key in members:
        codes.add(_number(members[errno_key], where + errno_key, _MAX_ERRNO))
    if members.get(name_key):
        code = getattr(errno, str(members[name_key]), None)
        if type(code) is not int:
            raise _wrong(where + name_key, members[name_key], "isn't the name of an errno")
        codes.add(code)
    if len(codes) > 1:
        raise _wrong(where + name_key, members[name_key], f"contradicts {errno_key}")
    if action in (ERRNO, TRACE):
        return action | (codes.pop() if codes else errno.EPERM)
    if codes:
        raise _wrong(where + key, name, "has no errno")
    return action


def _arch_map(top: _Object) -> tuple[tuple[str, ...], ...]:
    named = _strings(top.get("architectures"), "architectures", r"SCMP_ARCH_\w+")
    mapped = _list(top.get("archMap"), "archMap")
    if named and mapped:
        raise _wrong("architectures", named, "stands beside an archMap")
    if named:  # of any machine: each may be the first
        return tuple((arch, *named) for arch in named)
    found = []
    for number, entry in enumerate(mapped):
        where = f"archMap[{number}]"
        members = _object(entry, where, "architecture subArchitectures")
        own = _strings([members.get("architecture")], f"{where}.architecture", r"SCMP_ARCH_\w+")
        others = members.get("subArchitectures")
        found.append((*own, *_strings(others, f"{where}.subArchitectures", r"SCMP_ARCH_\w+")))
    return tuple(found)


def _rules(value: _Json, where: str) -> list[Rule]:
    members = _object(
        value, where, "names name action args comment includes excludes errnoRet errno"
    )
    names = _strings(members.get("names"), f"{where}.names", r"[a-z_][a-z0-9_]*")
    if members.get("name"):
        if names:
            raise _wrong(f"{where}.name", members["name"], "stands beside names")
        names = _strings([members["name"]], f"{where}.name", r"[a-z_][a-z0-9_]*")
    if not names:
        raise _wrong(where, value, "names no system call")
    if "action" not in members:
        raise _wrong(where, value, "has no action")
    rule = Rule(
        tuple(names),
        _action(members, "action", "errnoRet", "errno", where=f"{where}."),
        tuple(
            _test(test, f"{where}.args[{number}]")
            for number, test in enumerate(_list(members.get("args"), f"{where}.args"))
        ),
        _condition(members.get("includes"), f"{where}.includes"),
        _condition(members.get("excludes"), f"{where}.excludes"),
    )
    if len({test.argument for test in rule.tests}) < len(rule.tests):
        return [rule._replace(tests=(test,)) for test in rule.tests]
    return [rule]


def _test(value: _Json, where: str) -> ArgTest:
    members = _object(value, where, "index value valueTwo op")
    op = members.get("op")
    if not isinstance(op, str) or op.removeprefix("SCMP_CMP_") not in _OPS:
        raise _wrong(f"{where}.op", op, f"isn't one of SCMP_CMP_{', SCMP_CMP_'.join(_OPS)}")
    return ArgTest(
        _number(members.get("index"), f"{where}.index", 5),
        op.removeprefix("SCMP_CMP_"),
        _number(members.get("value"), f"{where}.value", 2**64 - 1),
        _number(members.get("valueTwo", 0), f"{where}.valueTwo", 2**64 - 1),
    )


def _condition(value: _Json, where: str) -> Condition:
    members = _object(value or {}, where, "caps arches minKernel")
    caps = _strings(members.get("caps"), f"{where}.caps", r"CAP_[A-Z_]+")
    arches = _strings(members.get("arches"), f"{where}.arches", r"[a-z0-9]+")
    kernel = None
    if "minKernel" in members:
        (text,) = _strings([members["minKernel"]], f"{where}.minKernel", r"[0-9]{1,3}\.[0-9]{1,3}")
        major, minor = text.split(".")
        kernel = (int(major), int(minor))
    return Condition(frozenset(cap.removeprefix("CAP_") for cap in caps), frozenset(arches), kernel)
