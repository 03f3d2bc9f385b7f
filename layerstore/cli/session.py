"""What a command is given to work with: the settings of this process, and the store.

Click only parses. A command is called by ``main``, outside of Click, so that there is one place
that explains what goes wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from layerstore.cli import output
from layerstore.events import Caution, Event, Note, Sink
from layerstore.report.progress import remark
from layerstore.settings import Settings

if TYPE_CHECKING:
    from layerstore.api import Layerstore

Bound = Callable[["Session"], int | None]
"""A command with all its arguments but the session; its exit code, None for 0."""


class Session:
    """Opened when a command needs it, so that wrong usage touches nothing."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def store(self, sink: Sink | None = None) -> Layerstore:
        """The store; notes and warnings go to standard error unless a sink takes them."""
        from layerstore.api import Layerstore  # builds, too: half of the time that --help takes

        return Layerstore(self.settings.root, settings=self.settings, sink=sink or tell)


def tell(event: Event) -> None:
    """Notes and warnings, in lines on standard error."""
    if isinstance(event, Note | Caution):
        output.note(remark(event))


# Any: commands have every kind of parameters.
def add(app: typer.Typer, name: str, function: Callable[..., int | None], **extra: Any) -> None:
    """``layerstore NAME`` parses the function's parameters but its first, which is the session."""

    def parsed(**given: Any) -> Bound:
        return partial(_call, function, given)

    signature = inspect.signature(function, eval_str=True)
    parameters = list(signature.parameters.values())[1:]
    # Typer reads both; the annotations are evaluated here, where the function's module is known.
    parsed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    parsed.__annotations__ = {}
    parsed.__doc__ = function.__doc__
    app.command(name, **extra)(parsed)


def _call(
    function: Callable[..., int | None],
    given: dict[str, Any],  # Any: as above
    session: Session,
) -> int | None:
    return function(session, **given)
