"""``build`` and ``plan``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from layerstore.cli import output
from layerstore.cli.session import Session, add
from layerstore.errors import LayerstoreError, NotFoundError, UsageError
from layerstore.events import Event, ignore
from layerstore.names import ImageRef
from layerstore.report import jsonl, terminal
from layerstore.report.progress import Lines, Renderer, StatusLine

_DEFAULTS = ("layerstore.yaml", "spec.yaml")
_IMPLIED_STAGE = "image"
"""The stage of a spec without stages; progress does not name it."""

Spec = Annotated[
    Path | None,
    typer.Argument(metavar="SPEC", help="The spec file; ./layerstore.yaml or ./spec.yaml.",
                   show_default=False),
]  # fmt: skip
Tag = Annotated[
    str | None, typer.Option("-t", "--tag", metavar="NAME", help="Name the image, instead of the "
                             "spec's name.", show_default=False),
]  # fmt: skip
Variables = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set a variable of the spec. Repeatable.",
                 show_default=False),
]  # fmt: skip
StageName = Annotated[
    str | None, typer.Option("--stage", metavar="STAGE", help="End with this stage.",
                             show_default=False),
]  # fmt: skip
NoCache = Annotated[bool, typer.Option("--no-cache", help="Run every step.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    add(app, "build", build)
    add(app, "plan", plan)


def build(
    session: Session,
    spec: Spec = None,
    tag: Tag = None,
    set_: Variables = None,
    stage: StageName = None,
    no_cache: NoCache = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say why a step runs.")] = False,
    progress: Annotated[
        str,
        typer.Option("--progress", metavar="auto|plain|jsonl|quiet",
                     help="How to show progress, on standard error."),
    ] = "auto",
) -> int:  # fmt: skip
    """Build an image from a spec, and print its id."""
    path, ref, variables = _spec_path(spec), _ref(tag), _variables(set_)
    if dry_run:
        decided = session.store(ignore).plan(
            path, tag=ref, variables=variables, stage=stage, use_cache=not no_cache
        )
        output.say(terminal.build_plan(decided))
        return 0
    renderer = _renderer(progress, explain=explain)
    try:
        built = session.store(renderer).build(
            path, tag=ref, variables=variables, stage=stage, use_cache=not no_cache
        )
    except LayerstoreError as error:
        renderer.close()
        if progress != "jsonl":
            raise
        output.note(jsonl.error_line(error))
        return error.exit_code
    finally:
        renderer.close()
    output.say(built.image_id)
    return 0


def plan(
    session: Session,
    spec: Spec = None,
    tag: Tag = None,
    set_: Variables = None,
    stage: StageName = None,
    no_cache: NoCache = False,
    json: AsJson = False,
) -> None:
    """Print what a build would do, and why. Bases that are missing are made."""
    decided = session.store().plan(
        _spec_path(spec), tag=_ref(tag), variables=_variables(set_), stage=stage,
        use_cache=not no_cache,
    )  # fmt: skip
    if json:
        output.say_json(jsonl.build_plan(decided))
    else:
        output.say(terminal.build_plan(decided))


def _spec_path(given: Path | None) -> Path:
    if given is not None:
        if given.is_dir():
            for name in _DEFAULTS:
                if (given / name).is_file():
                    return given / name
            raise NotFoundError(
                f"there is no spec in the directory {str(given)!r}",
                hint=f"name the spec file, or call it {_DEFAULTS[0]}",
            )
        return given
    for name in _DEFAULTS:
        if Path(name).is_file():
            return Path(name)
    raise UsageError(
        f"no spec is named, and there is no {' or '.join(_DEFAULTS)} here",
        hint="name one: layerstore build SPEC",
    )


def _ref(tag: str | None) -> ImageRef | None:
    return None if tag is None else ImageRef.parse(tag)


def _variables(words: list[str] | None) -> dict[str, str]:
    found = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise UsageError(f"--set {word!r} sets nothing", hint="write --set NAME=VALUE")
        found[name] = value
    return found


class _Quiet:
    def __call__(self, event: Event) -> None:
        pass

    def close(self) -> None:
        pass


class _JsonLines(_Quiet):
    def __call__(self, event: Event) -> None:
        output.note(jsonl.event_line(event))


def _renderer(progress: str, *, explain: bool) -> Renderer:
    if progress == "quiet":
        return _Quiet()
    if progress == "jsonl":
        return _JsonLines()
    if progress not in ("auto", "plain"):
        raise UsageError(
            f"{progress!r} is no kind of progress", hint="choose auto, plain, jsonl or quiet"
        )
    if progress == "auto" and _stderr_is_terminal():
        return StatusLine(
            output.draw, output.columns, implied_stage=_IMPLIED_STAGE, explain=explain
        )
    return Lines(output.note, implied_stage=_IMPLIED_STAGE, explain=explain)


def _stderr_is_terminal() -> bool:
    """Whether it can erase a line, too."""
    return os.isatty(2) and os.environ.get("TERM", "dumb") != "dumb"
