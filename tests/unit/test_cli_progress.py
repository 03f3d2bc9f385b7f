"""Progress, as lines that stay, as a line that changes, and as JSON."""

from __future__ import annotations

import json

from layerstore.events import Caution, Event, Note, Output, StepFinished, StepStarted
from layerstore.report.jsonl import event_line
from layerstore.report.progress import Lines, StatusLine

BUILD: list[Event] = [
    StepStarted("image", 0, 3, "copy app /app", "cached", "nothing changed"),
    StepFinished("image", 0, 0.0, 12, 3400),
    StepStarted("image", 1, 3, "run \x1bmake", "run", "the content of app changed"),
    Output("image", 1, b"one\ntw"),
    Output("image", 1, b"o\r\n\x1b[32mgreen\x1b[0m \xff\r"),
    Output("image", 1, b"\x1b]0;title\x07unfinished"),
    StepFinished("image", 1, 1.24, 1, 1_500_000),
    Caution("a socket was left out", "spec.yaml:7"),
    Note("2 tests pass"),
    StepStarted("other", 0, 1, "write /x", "run", ""),
]


def lines(events: list[Event], *, explain: bool = False) -> list[str]:
    written: list[str] = []
    sink = Lines(written.append, implied_stage="image", explain=explain)
    for event in events:
        sink(event)
    sink.close()
    return written


def test_lines_say_what_every_step_does_and_prints() -> None:
    assert lines(BUILD) == [
        "[1/3] copy app /app  cached",
        "[2/3] run \\x1bmake",
        "[2/3] | one",
        "[2/3] | two",
        "[2/3] | green \\xff",
        "[2/3] | unfinished",
        "[2/3] done in 1.2s: 1 entry, 1.50 MB",
        "warning: spec.yaml:7: a socket was left out",
        "2 tests pass",
        "[other 1/1] write /x",
    ]


def test_lines_explain_why_a_step_runs() -> None:
    assert lines(BUILD, explain=True)[1] == "[2/3] run \\x1bmake (the content of app changed)"


def test_a_line_without_an_end_does_not_grow_for_ever() -> None:
    chunk = b"x" * 5000
    written = lines([BUILD[2], Output("image", 1, chunk), Output("image", 1, chunk)])
    assert [len(line) for line in written[1:]] == [10_000 + len("[2/3] | ")]


def test_a_terminal_keeps_the_finished_steps_and_erases_the_rest() -> None:
    screen: list[str] = []
    sink = StatusLine(screen.append, lambda: 24, implied_stage="image")
    for event in BUILD:
        sink(event)
    sink.close()
    drawn = "".join(screen)
    assert [line.rsplit("\x1b[K", 1)[-1] for line in drawn.split("\n")] == [
        "[1/3] copy app /app  cached",
        "[2/3] run \\x1bmake  done in 1.2s: 1 entry, 1.50 MB",
        "warning: spec.yaml:7: a socket was left out",
        "2 tests pass",
        "[other 1/1] write /x",
        "",
    ]
    status = [part for text in screen for part in text.split("\x1b[K")[1:] if "\n" not in part]
    assert all(len(part) < 24 for part in status)
    assert "[2/3] run \\x1bmake | tw" in status


def test_events_are_lines_of_json() -> None:
    assert [json.loads(event_line(event)) for event in BUILD[2:5]] == [
        {
            "event": "step_started", "stage": "image", "index": 1, "total": 3,
            "title": "run \x1bmake", "action": "run", "reason": "the content of app changed",
        },
        {"event": "output", "stage": "image", "index": 1, "chunk": "one\ntw"},
        {
            "event": "output", "stage": "image", "index": 1,
            "chunk": "o\r\n\x1b[32mgreen\x1b[0m \\xff\r",
            "chunk_b64": "bw0KG1szMm1ncmVlbhtbMG0g/w0=",
        },
    ]  # fmt: skip
    assert json.loads(event_line(Caution("a", "b"))) == {
        "event": "caution", "text": "a", "where": "b",
    }  # fmt: skip
    assert "\n" not in "".join(map(event_line, BUILD))
