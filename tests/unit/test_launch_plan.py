from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from layerstore.errors import UsageError
from layerstore.kernel import caps
from layerstore.kernel.mounts import OverlayMount
from layerstore.runtime.limits import Limits
from layerstore.runtime.plan import Bind, LaunchPlan, Tmpfs, User, parse_user

ROOT = OverlayMount(
    lowerdirs_top_down=(Path("/l2"), Path("/l1")), upperdir=Path("/u"), workdir=Path("/w")
)
PLAN = LaunchPlan(
    container_id="c1",
    argv=(b"sh", b"-c", b"\xff"),
    hostname=b"box",
    root=ROOT,
    state_dir=Path("/state"),
)


def test_a_plan_prints_as_json() -> None:
    described = json.loads(json.dumps(PLAN.describe()))
    assert described["argv"] == ["sh", "-c", "\udcff"]
    assert described["root"]["lowerdirs_top_down"] == ["/l2", "/l1"]
    assert described["user"] == {"user": 0, "group": None}
    assert described["capabilities"] == sorted(caps.DEFAULT)
    assert described["no_new_privs"] is True
    assert described["network"] == "none"


def test_a_plan_is_frozen_and_compares_by_value() -> None:
    with pytest.raises(AttributeError):
        PLAN.hostname = b"other"  # type: ignore[misc]
    assert PLAN.replace() == PLAN
    assert hash(PLAN.replace()) == hash(PLAN)
    assert PLAN.replace(limits=Limits(pids=1)) != PLAN


def test_fields_are_checked() -> None:
    with pytest.raises(TypeError, match="needs argv"):
        LaunchPlan(container_id="x")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no field typo"):
        PLAN.replace(typo=1)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"argv": ()}, id="no-command"),
        pytest.param({"argv": (b"",)}, id="empty-command"),
        pytest.param({"argv": (b"a\0b",)}, id="nul"),
        pytest.param({"cwd": b"relative"}, id="relative-directory"),
        pytest.param({"env": ((b"", b"x"),)}, id="nameless-variable"),
        pytest.param({"env": ((b"a=b", b"x"),)}, id="equals-in-a-name"),
        pytest.param({"network": "bridge"}, id="network"),
        pytest.param({"hostname": b""}, id="no-host-name"),
        pytest.param({"hostname": b"x" * 65}, id="long-host-name"),
        pytest.param({"hostname": b"a\n127.0.0.1 evil"}, id="host-name-with-lines"),
        pytest.param({"container_id": "../x"}, id="id-with-a-slash"),
        pytest.param({"container_id": ".."}, id="id-of-dots"),
    ],
)
def test_plans_that_have_no_meaning_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        PLAN.replace(**change)


@pytest.mark.parametrize("target", [b"", b"/", b"//", b"x", b"/a/../b", b"/proc", b"/proc/x"])
def test_mount_targets_that_are_refused(target: bytes) -> None:
    with pytest.raises(UsageError):
        Bind(source=Path("/x"), target=target)
    with pytest.raises(UsageError):
        Tmpfs(target=target)


def test_whole_components_are_compared() -> None:
    assert Tmpfs(target=b"/process").target == b"/process"


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User()),
        ("0", User(user=0)),
        ("1000", User(user=1000)),
        ("007", User(user=7)),
        ("web", User(user="web")),
        ("www-data:adm", User(user="www-data", group="adm")),
        ("0x10", User(user="0x10")),
        ("web:5", User(user="web", group=5)),
        ("4294967294:0", User(user=4294967294, group=0)),
    ],
)
def test_users_are_parsed(text: str, user: User) -> None:
    assert parse_user(text) == user


@pytest.mark.parametrize(
    "text",
    [
        *(":", "a:", ":a", "a:b:c", "-1", "+1", "1 ", " 1", "1\n", "4294967295", "99999999999"),
        *("-u", ".x", "a b", "a/b", "١", "ü", "a\0", "1_000:", "root:-1"),
    ],
)
def test_users_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_user(text)
    assert repr(text) in raised.value.brief


@given(st.text())
@example("0:0")
@example("1000\n")
def test_a_number_is_never_taken_for_a_name_nor_changed(text: str) -> None:
    try:
        user = parse_user(text)
    except UsageError:
        return
    parts = text.split(":") if text else []
    assert len(parts) <= 2
    for part, parsed in zip(parts, (user.user, user.group), strict=False):
        if isinstance(parsed, int):
            assert set(part) <= set("0123456789") and int(part) == parsed < 2**32 - 1
        else:
            assert part == parsed and not part.isdigit()
    assert len(parts) == 2 or user.group is None


@pytest.mark.parametrize("text", ["NET_RAW", "net_raw", "CAP_NET_RAW", "cap_net_raw"])
def test_capabilities_are_spelt_as_in_docker(text: str) -> None:
    assert caps.parse_capability(text) == "NET_RAW"
    with pytest.raises(UsageError):
        caps.parse_capability("NET_COOKED")


def test_capability_masks() -> None:
    docker = caps.DEFAULT | {"MKNOD", "NET_RAW", "AUDIT_WRITE"}
    assert caps.mask_of(docker) == 0xA80425FB
    assert caps.mask_of(caps.DEFAULT) == 0x800405FB
    assert caps.NUMBERS["CHECKPOINT_RESTORE"] == 40
