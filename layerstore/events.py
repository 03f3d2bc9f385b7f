"""What happens while it happens: frozen progress events, and the sink they are sent to.

The library never prints. A caller that wants to see progress passes a Sink; the command line
renders the events on standard error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, in the order in which it did."""


@dataclass(frozen=True, slots=True)
class Note(Event):
    """One sentence for people: something finished or was decided."""

    text: str


@dataclass(frozen=True, slots=True)
class Caution(Event):
    """Something was done that the user may not have meant. ``where`` names the file or step."""

    text: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class StepStarted(Event):
    """A build step begins. ``action`` is ``run`` or ``cached``; ``reason`` says why."""

    stage: str
    index: int
    total: int
    title: str
    action: str
    reason: str


@dataclass(frozen=True, slots=True)
class StepFinished(Event):
    """A build step ended. ``added`` counts the bytes of the content it added."""

    stage: str
    index: int
    seconds: float
    entries: int
    added: int


@dataclass(frozen=True, slots=True)
class Output(Event):
    """Bytes that a build step's command wrote."""

    stage: str
    index: int
    chunk: bytes


Sink = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The sink of callers who don't look."""
