"""Commands that are killed, or get an error, at any call to the kernel that changes the store."""

from __future__ import annotations

import re

import crash_driver as driver
import crashkit
import pytest
from abilities import needs_root, needs_tool

from layerstore.names import Digest
from layerstore.store.store import Store

pytestmark = [needs_root, needs_tool("strace")]


@pytest.mark.parametrize("command", list(driver.COMMANDS))
def test_a_kill_at_any_instant_leaves_the_old_state_or_the_new_one(
    stores: crashkit.Stores, command: str, limit: int | None
) -> None:
    reference = crashkit.reference_of(stores.fresh(), command)
    points, _ = crashkit.points_of(stores.fresh(), command)
    for point in crashkit.chosen(points, limit):
        root = stores.fresh()
        result = crashkit.run_with(root, command, point)
        assert not result.is_done and result.is_clean, f"nothing happened at {point}"
        assert crashkit.judge(root, command, reference, is_done=False) == [], str(point)


ERRORS = {
    "ENOSPC": r"mk|open|write|rename|link|falloc|copy|trunc|setx|sync",
    "EIO": r"sync|write|rename|unlink|link|mk|rmdir",
    "EDQUOT": r"write|mk",
    "EMFILE": r"open",
    "EINTR": r"open|write|sync|falloc",
}


@pytest.mark.parametrize("error", list(ERRORS))
@pytest.mark.parametrize("command", ["import", "build", "rmi", "create"])
def test_an_error_of_any_call_is_reported_and_leaves_nothing(
    stores: crashkit.Stores, command: str, error: str, limit: int | None
) -> None:
    reference = crashkit.reference_of(stores.fresh(), command)
    points, _ = crashkit.points_of(stores.fresh(), command)
    points = [point for point in points if re.match(ERRORS[error], point.call)]
    for point in crashkit.chosen(points, limit and 3):
        root = stores.fresh()
        result = crashkit.run_with(root, command, point, inject=f"error={error}")
        assert result.is_clean, f"it broke down at {point}"
        flaws = crashkit.judge(root, command, reference, is_done=result.is_done)
        if error == "EIO" and point.is_sync and result.is_done:
            flaws.append("success although a flush failed")
        if error in ("ENOSPC", "EDQUOT") and result.error and command in ("import", "build"):
            assert "no space left in the store" in result.error, str(point)
        assert flaws == [], str(point)


@pytest.mark.parametrize("mutation", [None, "short_write_taken_as_whole"], ids=["as it is", "bad"])
def test_a_write_that_lies_about_its_length_is_noticed(
    stores: crashkit.Stores, mutation: str | None
) -> None:
    reference = crashkit.reference_of(stores.fresh(), "import")
    points, _ = crashkit.points_of(stores.fresh(), "import", mutation)
    flaws = []
    for point in points:
        if point.call == "write" and "/tmp/" in point.text:
            root = stores.fresh()
            result = crashkit.run_with(
                root, "import", point, mutation=mutation, inject="retval=2"
            )  # fmt: skip
            flaws += crashkit.judge(root, "import", reference, is_done=result.is_done)
    assert bool(flaws) is bool(mutation), flaws


def test_a_flush_that_fails_is_no_success(stores: crashkit.Stores) -> None:
    points, _ = crashkit.points_of(stores.fresh(), "import")
    (flush,) = [point for point in points if point.call == "syncfs"]
    for mutation, expected in ((None, False), ("flush_result_ignored", True)):
        root = stores.fresh()
        result = crashkit.run_with(root, "import", flush, mutation=mutation, inject="error=EIO")
        assert result.is_done is expected


@pytest.mark.parametrize("mutation", [None, "hit_by_name_alone"], ids=["as it is", "bad"])
def test_importing_again_heals_objects_that_are_too_short(
    stores: crashkit.Stores, mutation: str | None
) -> None:
    root = stores.fresh()
    store = Store.open(root)
    for digest, _ in store.objects.all():
        store.layout.object(digest).write_bytes(b"")
    crashkit.run_with(root, "import", None, mutation=mutation)
    entries = [
        entry
        for diff_id in store.images.find("old").diff_ids
        for entry in store.layers.entries(diff_id)
    ]
    wrong = [e for e in entries if e.digest and Digest.of(store.objects.read(e.digest)) != e.digest]
    assert len(entries) == 4 and bool(wrong) is bool(mutation)


# -- the order of calls, where no crash test of these file systems shows a mistake -----------------


def order_flaws(trace: str, root: str) -> list[str]:
    """Names that are relied on before they were flushed."""
    flaws = []
    unflushed: set[str] = set()
    for line in trace.splitlines():
        objects = rf"{root}/objects/\.layerstore"
        if re.search(rf'rename.*<{objects}>, "(..)/', line):
            unflushed.update(re.findall(rf'<{objects}>, "(..)/', line))
        elif "syncfs(" in line:
            unflushed.clear()
        elif match := re.search(rf"fsync\(\d+<{objects}/(..)>", line):
            unflushed.discard(match[1])
        elif re.search(rf'rename.*"{root}/(layers|images|refs)/', line):
            flaws += [f"{name} is not flushed when a record refers to it" for name in unflushed]
    return flaws


@pytest.mark.parametrize("mutation", [None, "folders_not_flushed"], ids=["as it is", "bad"])
def test_names_of_objects_are_flushed_before_records_refer_to_them(
    stores: crashkit.Stores, mutation: str | None
) -> None:
    root = stores.fresh()
    points, trace = crashkit.points_of(root, "import", mutation)
    assert any("objects/.layerstore" in point.text for point in points if "rename" in point.call)
    assert bool(order_flaws(trace, str(root))) is bool(mutation)


@pytest.mark.parametrize(
    ("mutation", "command"),
    [("objects_before_records", "gc"), ("collected_before_unnamed", "rmi"),
     ("ref_before_objects", "import"), ("records_before_objects", "import")],
)  # fmt: skip
def test_a_kill_finds_a_protocol_with_a_rule_left_out(
    stores: crashkit.Stores, mutation: str, command: str
) -> None:
    reference = crashkit.reference_of(stores.fresh(), command)
    points, _ = crashkit.points_of(stores.fresh(), command, mutation)
    for point in points:
        if not (point.is_sync or "rename" in point.call or "unlink" in point.call):
            continue  # between these nothing gets or loses its name
        root = stores.fresh()
        crashkit.run_with(root, command, point, mutation=mutation)
        if crashkit.judge(root, command, reference, is_done=False):
            return
    pytest.fail(f"{mutation} was not found in {len(points)} kills")
