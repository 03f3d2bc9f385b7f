"""The store as a whole: what it costs, what can go, whether it is sound; and this host."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from layerstore.cli import output
from layerstore.cli.session import Session, add
from layerstore.report import jsonl, terminal

DAMAGED = 4
_NEEDED = ("kernel", "overlay")
"""Without these no container starts."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    add(app, "df", df)
    add(app, "gc", gc)
    add(app, "fsck", fsck)
    add(app, "doctor", doctor)


def df(session: Session, json: AsJson = False) -> int:
    """Print where every byte on disk is. Exit code 4 if the numbers do not add up."""
    store = session.store()
    found = store.usage()
    if json:
        output.say_json(found.to_json())
    else:
        output.say(terminal.usage(found, session.settings.root, time.time()))
    return 0 if found.adds_up else DAMAGED


def gc(
    session: Session,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Remove what no image or container needs, and the build cache."""
    plan = session.store().collect(dry_run=dry_run)
    if json:
        output.say_json(jsonl.gc_plan(plan))
    else:
        output.say(terminal.gc_plan(plan, dry_run=dry_run))


def fsck(
    session: Session,
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Read and hash every content, too.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Set aside what is damaged, so that it can be imported "
                           "or built again.")
    ] = False,
    json: AsJson = False,
) -> int:  # fmt: skip
    """Check the store. Exit code 4 if something is damaged."""
    store = session.store()
    report = store.check(read_data=read_data)
    set_aside = store.repair(report) if repair else ()
    if json:
        output.say_json(report.to_json())
    else:
        output.say(terminal.check(report, set_aside))
    return 0 if report.is_clean else DAMAGED


def doctor(session: Session, json: AsJson = False) -> int:
    """Print what this host can do, and what to do about what it can't. Exit code 1 if no container
    can start."""
    from layerstore.api import probe_host

    root = session.settings.root
    report = session.store().doctor() if (root / "FORMAT").exists() else probe_host(root)
    if json:
        output.say_json(jsonl.host(report))
    else:
        output.say(terminal.host(report))
    return 0 if all(report[name].is_there for name in _NEEDED) else 1
