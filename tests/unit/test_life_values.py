"""What the life of containers decides without a container: logs, restarts, records, keys."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import layerstore
from layerstore.errors import FormatError, UsageError
from layerstore.kernel.mounts import OverlayMount
from layerstore.kernel.process import parse_signal
from layerstore.runtime.attach import parse_keys
from layerstore.runtime.control import Deframer, frame
from layerstore.runtime.limits import Limits
from layerstore.runtime.logs import LogReader, LogWriter, last_lines, parse_since, timestamp
from layerstore.runtime.plan import Bind, LaunchPlan, User
from layerstore.runtime.record import emit, parse
from layerstore.runtime.upkeep import (
    HealthCheck,
    Kept,
    Restart,
    Upkeep,
    next_delay,
    parse_duration,
    parse_restart,
)

# ---- records

PLAN = LaunchPlan(
    container_id="c1",
    argv=(b"sh", b"-c", b"a \xff\n\"'\\"),
    env=((b"A", b"\x01\xc3\xa4"),),
    user=User(user="web", group=5),
    hostname=b"box",
    root=OverlayMount(),
    binds=(Bind(source=Path("/a"), target=b"/b", read_only=True),),
    limits=Limits(memory=1 << 30, cpus=1.5),
    state_dir=Path("/var/x \u00e4"),
    init=True,
)


def test_a_plan_comes_back_from_its_record() -> None:
    kept = Kept(plan=PLAN, upkeep=Upkeep(restart=Restart(policy="on-failure", tries=3)))
    again = parse(emit(kept))
    assert isinstance(again, Kept)
    paths = {"state_dir": os.fspath(PLAN.state_dir), "binds": again.plan.binds}
    assert again.replace(plan=PLAN.replace(**paths)) == again  # but for paths, which are texts
    assert os.fspath(again.plan.binds[0].source) == "/a"
    assert again.upkeep == kept.upkeep
    assert emit(again) == emit(kept)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1] 2",
        '{"class": "NoSuch"}',
        '{"class": "User", "user": 1, "extra": 2}',
        '{"a": 1}',
    ],
)
def test_a_record_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse(text)


def test_a_record_is_not_made_of_anything() -> None:
    with pytest.raises(TypeError):
        emit(object())


# ---- logs


def _lines(directory: Path) -> list[tuple[bytes, bytes]]:
    reader = LogReader(directory)
    lines = [(stream, text) for _, stream, text in reader.read()]
    reader.close()
    return lines


def test_parts_and_lines_come_back(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, max_size=1 << 20, count=2)
    for chunk in (b"a\nb", b"c\n", b"\n", b"\n\nd"):
        writer.write(b"stdout", chunk)
    writer.write(b"stderr", b"e\n")
    writer.close()
    text = (tmp_path / "1").read_bytes()
    assert [line.split(b" ", 1)[1] for line in text.splitlines()] == [
        b"stdout F a", b"stdout P b", b"stdout F c", b"stdout F ", b"stdout F ", b"stdout F ",
        b"stdout P d", b"stderr F e",
    ]  # fmt: skip
    assert b"".join(t for s, t in _lines(tmp_path) if s == b"stdout") == b"a\nbc\n\n\n\nd"


def test_all_lines_of_a_read_have_its_time_and_times_grow(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, max_size=1 << 20, count=2)
    writer.write(b"stdout", b"a\nb\n")
    writer.write(b"stdout", b"c\n")
    writer.close()
    first, second, third = ((tmp_path / "1").read_bytes()).splitlines()
    assert first[:30] == second[:30] < third[:30]
    assert len(first.split(b" ")[0]) == len("2026-08-01T12:00:00.123456789Z")


def test_old_files_go_and_a_reader_moves_on(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, max_size=1000, count=3)
    reader = LogReader(tmp_path)
    seen = []
    for number in range(100):
        writer.write(b"stdout", b"%04d" % number * 10 + b"\n")
        seen += [text for _, _, text in reader.read()]
    assert seen == [b"%04d" % number * 10 + b"\n" for number in range(100)]
    writer.close()
    names = sorted(map(int, os.listdir(tmp_path)))
    assert len(names) == 3 and names == list(range(names[0], names[0] + 3))
    assert all((tmp_path / str(name)).stat().st_size <= 1000 for name in names)
    later = LogWriter(tmp_path, max_size=1000, count=3)  # a restart goes on
    later.write(b"stdout", b"again\n")
    later.close()
    assert [text for _, _, text in reader.read()] == [b"again\n"]
    reader.close()


def test_a_torn_line_is_left_out_and_an_unfinished_one_waits(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(b"torn\n2026 stdout F whole\n2026 stdout F unfini")
    reader = LogReader(tmp_path)
    assert [text for _, _, text in reader.read()] == [b"whole\n"]
    with (tmp_path / "1").open("ab") as file:
        file.write(b"shed\n")
    assert [text for _, _, text in reader.read()] == [b"unfinished\n"]
    reader.close()


def test_there_may_be_no_log(tmp_path: Path) -> None:
    assert _lines(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        pytest.param(0, [], id="none"),
        pytest.param(1, [b"c"], id="an unfinished line"),
        pytest.param(2, [b"b1", b"b2\n", b"c"], id="a line of parts"),
        pytest.param(3, [b"a\n", b"b1", b"b2\n", b"c"], id="all"),
        pytest.param(9, [b"a\n", b"b1", b"b2\n", b"c"], id="more than there are"),
    ],
)
def test_the_last_lines(count: int, expected: list[bytes]) -> None:
    lines = [(b"", b"stdout", text) for text in (b"a\n", b"b1", b"b2\n", b"c")]
    assert [text for _, _, text in last_lines(lines, count)] == expected


NOW = 1_785_585_600_000_000_000  # 2026-08-01T12:00:00Z


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        pytest.param("10m", b"2026-08-01T11:50:00.000000000Z", id="span"),
        pytest.param("1h30m", b"2026-08-01T10:30:00.000000000Z", id="composed-span"),
        pytest.param("2026-08-01T12:00:00.5Z", b"2026-08-01T12:00:00.500000000Z", id="moment"),
        pytest.param("2026-08-01", b"2026-08-01T00:00:00.000000000Z", id="date"),
        pytest.param("1785585600.25", b"2026-08-01T12:00:00.250000000Z", id="epoch"),
    ],
)
def test_since(text: str, moment: bytes) -> None:
    assert parse_since(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "m", "10x", "yesterday", "2026-08-01T12:00:00.xZ", "1h30"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError):
        parse_since(text, NOW)


def test_times_are_ordered_as_their_texts() -> None:
    moments = [0, 1, 999_999_999, 1_000_000_000, NOW, NOW + 1]
    texts = [timestamp(moment) for moment in moments]
    assert texts == sorted(texts) and len(set(texts)) == len(texts)


# ---- restarts


@pytest.mark.parametrize(
    ("text", "code", "restarts", "wants"),
    [
        ("no", 1, 0, False), ("on-failure", 1, 9, True), ("on-failure", 0, 0, False),
        ("on-failure:2", 1, 1, True), ("on-failure:2", 1, 2, False), ("always", 0, 99, True),
        ("unless-stopped", 0, 0, True),
    ],
)  # fmt: skip
def test_restart_policies(text: str, code: int, restarts: int, wants: bool) -> None:
    assert parse_restart(text).wants(code, restarts) is wants


@pytest.mark.parametrize(
    "text", ["", "maybe", "on-failure:", "on-failure:0", "on-failure:x", "always:3"]
)
def test_what_is_no_restart_policy(text: str) -> None:
    with pytest.raises(UsageError):
        parse_restart(text)


def test_delays_double_up_to_a_minute_and_begin_anew() -> None:
    delays = [next_delay(0, 0)]
    for _ in range(12):
        delays.append(next_delay(delays[-1], 0.01))
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == 60
    assert next_delay(60, 9.9) == 60
    assert next_delay(60, 10) == 0.1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10", 10), ("30s", 30), ("1m30s", 90), ("500ms", 0.5), ("1.5s", 1.5), ("1h", 3600), ("0", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1x", "1.2.3s", "1s x", "٣s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"log_size": 1}, id="log-size"),
        pytest.param({"log_files": 0}, id="log-files"),
        pytest.param({"stop_timeout_s": -1.0}, id="stop-timeout"),
    ],
)
def test_upkeep_that_has_no_meaning(values: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Upkeep().replace(**values)


def test_a_health_check_needs_a_try() -> None:
    with pytest.raises(UsageError):
        HealthCheck(argv=(b"true",), retries=0)


# ---- signals, keys, frames


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("TERM", 15), ("sigterm", 15), ("9", 9), ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("RTMAX", signal.SIGRTMAX), ("64", 64),
    ],
)  # fmt: skip
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize(
    "text", ["", "0", "65", "NOPE", "TERM+1", "RTMIN+99", "SIG", "_BLOCK", "-9"]
)
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(UsageError):
        parse_signal(text)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("a,b", b"ab"),
        ("ctrl-@", b"\0"),
        ("ctrl-[", b"\x1b"),
        ("", b""),
    ],
)
def test_detach_keys(text: str, keys: bytes) -> None:
    assert parse_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "ab", "ctrl-p,", "\u00e4"])
def test_what_are_no_detach_keys(text: str) -> None:
    with pytest.raises(UsageError):
        parse_keys(text)


def test_frames_come_back_whatever_the_chunks() -> None:
    frames = [(b"1", b""), (b"h", b"x" * 300), (b"e", b"\0\n")]
    stream = b"".join(frame(kind, payload) for kind, payload in frames)
    for size in (1, 4, 7, 1000):
        deframer = Deframer()
        found = []
        for at in range(0, len(stream), size):
            found += deframer.feed(stream[at : at + size])
        assert found == frames


# ---- what it costs to start


@pytest.mark.parametrize("module", ["runtime.monitor", "runtime.detached", "live", "cli.live"])
def test_nothing_slow_is_imported(module: str) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import importlib;"
        "importlib.import_module('layerstore.' + sys.argv[2]); print(*sys.modules)"
    )
    package = Path(layerstore.__file__).parents[1]
    command = [sys.executable, "-I", "-S", "-c", program, str(package), module]
    loaded = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    slow = {
        *("array", "collections", "contextlib", "ctypes", "dataclasses", "enum", "json"),
        *("pathlib", "re", "signal", "socket", "subprocess", "typing", "typer"),
    }
    assert slow & set(loaded) == set()
