"""The benchmarks' own arithmetic: turns, medians, ratios, verdicts and the table."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks import harness, peers  # noqa: E402
from benchmarks.harness import OURS, Contender, Row, Scenario, Target, Unavailable  # noqa: E402
from benchmarks.importing import write_many  # noqa: E402


def never(seconds: float) -> None:
    raise AssertionError("nobody asked for idleness")


class Log:
    """Contenders that give prepared values and note when they were called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def contender(self, name: str, *values: float, case: str = "case") -> Contender:
        left = list(values)

        def measure() -> Mapping[str, float]:
            self.calls.append(name)
            return {case: left.pop(0)}

        return Contender(name, measure)


def unavailable(why: str) -> Callable[[], Mapping[str, float]]:
    def measure() -> Mapping[str, float]:
        raise Unavailable(why)

    return measure


def test_every_round_measures_everyone_once_and_starts_with_another() -> None:
    log = Log()
    names = ("a", "b", "c")
    scenario = Scenario([log.contender(name, 1, 2, 3, 4) for name in names], rounds=4)
    harness.run(scenario, rounds=None, sleep=never)
    assert log.calls == ["a", "b", "c", "b", "c", "a", "c", "a", "b", "a", "b", "c"]


def test_warm_ups_are_measured_and_not_kept() -> None:
    log = Log()
    scenario = Scenario([log.contender("a", 9, 9, 1, 2)], rounds=2, warmups=2)
    measured = harness.run(scenario, rounds=None, sleep=never)
    assert measured.samples == {"case": {"a": [1, 2]}}


@pytest.mark.parametrize(("asked", "made"), [(None, 3), (1, 1), (3, 3), (9, 3)])
def test_the_command_may_ask_for_fewer_rounds_but_not_for_more(asked: int, made: int) -> None:
    log = Log()
    scenario = Scenario([log.contender("a", 1, 2, 3)], rounds=3)
    harness.run(scenario, rounds=asked, sleep=never)
    assert len(log.calls) == made


def test_a_gap_comes_before_every_measurement() -> None:
    log = Log()
    slept: list[float] = []
    contenders = [log.contender("a", 1, 2), log.contender("b", 1, 2)]
    scenario = Scenario(contenders, rounds=2, gap=0.1)
    harness.run(scenario, rounds=None, sleep=slept.append)
    assert slept == [0.1] * 4


def test_each_round_is_prepared_before_anyone_measures() -> None:
    log = Log()
    scenario = Scenario(
        [log.contender("a", 1, 2), log.contender("b", 1, 2)],
        rounds=2,
        before_round=lambda number: log.calls.append(f"round {number}"),
    )
    harness.run(scenario, rounds=None, sleep=never)
    assert log.calls == ["round 0", "a", "b", "round 1", "b", "a"]


def test_who_is_unavailable_is_asked_once_and_says_why() -> None:
    log = Log()
    asked: list[int] = []

    def missing() -> Mapping[str, float]:
        asked.append(1)
        raise Unavailable("not installed")

    scenario = Scenario([log.contender(OURS, 1, 3), Contender("peer", missing)], rounds=2)
    measured = harness.run(scenario, rounds=None, sleep=never)
    assert measured.samples == {"case": {OURS: [1, 3]}}
    assert measured.missing == {"peer": "not installed"}
    assert len(asked) == 1


def rows(*contenders: Contender, targets: tuple[Target, ...] = (), unit: str = "s") -> list[Row]:
    scenario = Scenario(contenders, targets, rounds=3, units={"case": unit})
    return harness.rows_of("bench", scenario, harness.run(scenario, rounds=None, sleep=never))


def test_a_ratio_is_our_median_by_the_peers() -> None:
    log = Log()
    ours, peer = rows(log.contender(OURS, 1, 30, 2), log.contender("peer", 4, 8, 80))
    assert (ours.median, ours.minimum, ours.rounds, ours.ratio) == (2, 1, 3, None)
    assert (peer.median, peer.minimum, peer.rounds, peer.ratio) == (8, 4, 3, 0.25)


@pytest.mark.parametrize(
    ("limit", "versus", "verdicts"),
    [
        pytest.param(2.0, None, ["met", ""], id="absolute, just met"),
        pytest.param(1.9, None, ["MISSED", ""], id="absolute, missed"),
        pytest.param(0.25, "peer", ["", "met"], id="relative, just met"),
        pytest.param(0.24, "peer", ["", "MISSED"], id="relative, missed"),
    ],
)
def test_targets_judge_medians(limit: float, versus: str | None, verdicts: list[str]) -> None:
    log = Log()
    found = rows(
        log.contender(OURS, 1, 30, 2),
        log.contender("peer", 4, 8, 80),
        targets=(Target("case", limit, versus),),
    )
    assert [row.verdict for row in found] == verdicts


def test_a_target_against_a_missing_peer_is_not_judged() -> None:
    log = Log()
    ours, peer = rows(
        log.contender(OURS, 1, 1, 1),
        Contender("peer", unavailable("not installed")),
        targets=(Target("case", 0.5, "peer"),),
    )
    assert (ours.verdict, peer.verdict, peer.note) == ("", "not judged", "not installed")


def test_our_own_failure_is_a_row() -> None:
    log = Log()
    ours, peer = rows(
        Contender(OURS, unavailable("it broke")),
        log.contender("peer", 1, 1, 1),
        targets=(Target("case", 0.5),),
    )
    assert (ours.who, ours.note, ours.verdict) == (OURS, "it broke", "not judged")
    assert (peer.median, peer.ratio) == (1, None)


def test_without_any_samples_everyone_still_says_why() -> None:
    found = rows(Contender(OURS, unavailable("it broke")))
    assert [(row.who, row.note, row.median) for row in found] == [(OURS, "it broke", None)]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0, "s", "0 µs"),
        (12.34e-6, "s", "12.3 µs"),
        (0.9996e-3, "s", "1 ms"),
        (0.025, "s", "25 ms"),
        (0.2345, "s", "234 ms"),
        (1.0, "s", "1 s"),
        (75.25, "s", "75.2 s"),
        (0, "B", "0 B"),
        (999, "B", "999 B"),
        (1_540_000, "B", "1.54 MB"),
        (1.86e9, "B", "1.86 GB"),
    ],
)
def test_values_are_shown_in_units_for_humans(value: float, unit: str, text: str) -> None:
    assert harness.shown(value, unit) == text


def test_the_table_is_markdown_that_names_each_benchmark_and_case_once() -> None:
    log = Log()
    found = rows(
        log.contender(OURS, 0.001, 0.002, 0.003),
        log.contender("a peer", 0.004, 0.004, 0.004),
        targets=(Target("case", 0.025), Target("case", 0.75, "a peer")),
    )
    assert harness.table(found) == (
        "| benchmark | case | who        | median | min  | n | ours ÷ it | target   |     |\n"
        "|-----------|------|------------|--------|------|---|-----------|----------|-----|\n"
        "| bench     | case | layerstore | 2 ms   | 1 ms | 3 |           | ≤ 25 ms  | met |\n"
        "|           |      | a peer     | 4 ms   | 4 ms | 3 | 0.50      | ≤ 0.75 × | met |\n"
    )


def test_a_profile_in_dockers_form_is_resolved_for_a_bundle() -> None:
    arguments = [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]
    allow = "SCMP_ACT_ALLOW"
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [],
        "syscalls": [
            {"comment": "always", "names": ["read"], "action": allow, "args": arguments},
            {"names": ["bpf"], "action": allow, "includes": {"caps": ["CAP_BPF"]}},
            {"names": ["kill"], "action": allow, "includes": {"caps": ["CAP_KILL"]}},
            {"names": ["clone"], "action": allow, "excludes": {"caps": ["CAP_KILL"]}},
            {"names": ["other"], "action": allow, "includes": {"arches": ["vax"]}},
        ],
    }
    found = peers.seccomp(profile, ["CAP_KILL"])
    assert found["syscalls"] == [
        {"names": ["read"], "action": allow, "args": arguments},
        {"names": ["kill"], "action": allow},
    ]
    assert (found["defaultAction"], found["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)


def test_the_large_tar_has_as_many_files_as_asked_for_each_with_its_own_content(
    tmp_path: Path,
) -> None:
    write_many(tmp_path / "many.tar", 250)
    with tarfile.open(tmp_path / "many.tar") as archive:
        members = archive.getmembers()
        contents = {archive.extractfile(m).read() for m in members if m.isfile()}  # type: ignore[union-attr]
    assert sum(m.isdir() for m in members) == 3
    assert len(contents) == 250


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=PROJECT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_the_command_lists_its_benchmarks() -> None:
    result = command("--list")
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "launch", "import", "changes", "compose", "build", "storesize", "upkeep",
    ]  # fmt: skip
    assert all(len(line.split()) > 4 for line in result.stdout.splitlines())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lunch"], "there is no benchmark lunch; see --list"),
        (["launch", "--rounds", "0"], "--rounds needs a number of at least 1"),
    ],
    ids=["unknown name", "no rounds"],
)
def test_wrong_words_are_refused_before_anything_starts(words: list[str], said: str) -> None:
    result = command(*words)
    assert result.returncode == 2
    assert said in result.stderr


def test_the_json_has_what_the_table_has() -> None:
    row = Row("b", "c", OURS, "s", 1.0, 0.5, 3, None, limit=2.0)
    found = json.loads(json.dumps(harness.as_json(row)))
    assert found == {
        "benchmark": "b", "case": "c", "who": OURS, "unit": "s", "median": 1.0, "minimum": 0.5,
        "rounds": 3, "ratio": None, "limit": 2.0, "note": "", "verdict": "met",
    }  # fmt: skip
