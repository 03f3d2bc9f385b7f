"""Progress events as lines for people, or as one line of a terminal that changes.

Nothing here uses threads: a build clones its own process.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from layerstore.events import Caution, Event, Note, Output, StepFinished, StepStarted
from layerstore.report.text import clipped, duration, escaped, size

_LINE_END = re.compile(rb"\r\n|\n|\r")
_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_LONGEST = 8192


class Renderer(Protocol):
    """A sink that has something to clean up at the end."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


def remark(event: Note | Caution) -> str:
    if isinstance(event, Note):
        return escaped(event.text)
    where = f"{escaped(event.where)}: " if event.where else ""
    return f"warning: {where}{escaped(event.text)}"


class Lines:
    """Every step in lines that stay, with its command's output.

    ``implied_stage`` is left out of the steps' labels, ``explain`` says why a step runs.
    """

    def __init__(
        self, write: Callable[[str], None], *, implied_stage: str = "", explain: bool = False
    ) -> None:
        self._write = write
        self._implied_stage = implied_stage
        self._explain = explain
        self._label = ""
        self._is_cached = False
        self._partial = b""

    def __call__(self, event: Event) -> None:
        match event:
            case StepStarted():
                self._start(event)
            case StepFinished():
                self._finish(event)
            case Output():
                self._output(event.chunk)
            case Note() | Caution():
                self._write(remark(event))

    def _start(self, event: StepStarted) -> None:
        self._label = label(event, self._implied_stage)
        self._is_cached = event.action == "cached"
        self._write(headline(event, self._implied_stage, explain=self._explain))

    def _finish(self, event: StepFinished) -> None:
        self._flush()
        if not self._is_cached:
            self._write(f"{self._label} {summary(event)}")

    def _output(self, chunk: bytes) -> None:
        *lines, self._partial = _LINE_END.split(self._partial + chunk)
        if len(self._partial) > _LONGEST:
            lines.append(self._partial)
            self._partial = b""
        for line in lines:
            self._line(line)

    def _line(self, raw: bytes) -> None:
        if text := plain(raw):
            self._write(f"{self._label} | {text}")

    def _flush(self) -> None:
        if self._partial:
            self._line(self._partial)
            self._partial = b""

    def close(self) -> None:
        self._flush()


class StatusLine:
    """Steps in lines that stay once they are finished; the running one, with the last line of its
    output, in a line that changes."""

    def __init__(
        self,
        write: Callable[[str], None],
        columns: Callable[[], int],
        *,
        implied_stage: str = "",
        explain: bool = False,
    ) -> None:
        self._raw = write
        self._columns = columns
        self._implied_stage = implied_stage
        self._explain = explain
        self._running = ""
        self._is_drawn = False

    def __call__(self, event: Event) -> None:
        match event:
            case StepStarted():
                step = headline(event, self._implied_stage, explain=self._explain)
                if event.action == "cached":
                    self._stay(step)
                else:
                    self._running = step
                    self._draw(step)
            case StepFinished() if self._running:
                self._stay(f"{self._running}  {summary(event)}")
                self._running = ""
            case Output():
                text = plain(event.chunk.strip().rsplit(b"\n", 1)[-1].rsplit(b"\r", 1)[-1])
                if text:
                    self._draw(f"{self._running} | {text}")
            case Note() | Caution():
                self._stay(remark(event))

    def _stay(self, text: str) -> None:
        self._erase()
        self._raw(text + "\n")

    def _draw(self, text: str) -> None:
        self._raw("\r\x1b[K" + clipped(text.expandtabs(1), self._columns() - 1))
        self._is_drawn = True

    def _erase(self) -> None:
        if self._is_drawn:
            self._raw("\r\x1b[K")
            self._is_drawn = False

    def close(self) -> None:
        """A step that did not end stays as it is."""
        if self._running:
            self._stay(self._running)
            self._running = ""
        self._erase()


def headline(event: StepStarted, implied_stage: str, *, explain: bool) -> str:
    """``[2/5] copy app /app``, and why it runs, or that it does not have to."""
    line = f"{label(event, implied_stage)} {escaped(event.title)}"
    if event.action == "cached":
        return f"{line}  cached"
    return f"{line} ({escaped(event.reason)})" if explain and event.reason else line


def label(event: StepStarted, implied_stage: str) -> str:
    """``[2/5]``, or ``[build 2/5]`` in a stage that has to be named."""
    where = f"{event.index + 1}/{event.total}"
    return f"[{where}]" if event.stage == implied_stage else f"[{escaped(event.stage)} {where}]"


def summary(event: StepFinished) -> str:
    entries = "1 entry" if event.entries == 1 else f"{event.entries} entries"
    return f"done in {duration(event.seconds)}: {entries}, {size(event.added)}"


def plain(raw: bytes) -> str:
    """A line of a command's output without what moves the cursor or colours."""
    return escaped(_ESCAPES.sub(b"", raw).decode("utf-8", "surrogateescape").rstrip(), but="\t")
