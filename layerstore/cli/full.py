"""All commands as a Typer application, of which only what is needed is imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Annotated

import typer

from layerstore.cli.options import HOT
from layerstore.cli.session import Session
from layerstore.errors import UsageError
from layerstore.settings import Settings

MODULES = {
    "build": ("build", "plan"),
    "hot": tuple(HOT),
    "image": (
        "images", "inspect", "history", "import", "load", "save", "tag", "rmi", "diff", "commit",
        "mount", "umount", "layer",
    ),
    "store": ("df", "gc", "fsck", "doctor"),
}  # fmt: skip
"""Which module of ``cli`` has which commands, in the order of ``--help``."""


def parse_and_call(command: str, words: list[str], settings: Callable[[], Settings]) -> int:
    """The exit code of the words, of which ``command`` is the first. Raises UsageError."""
    app = make_app(command)
    try:
        bound = app(words or ["--help"], prog_name="layerstore", standalone_mode=False)
    except Exception as error:
        # Newer Typers have a Click of their own, and none lets us name its base of such errors.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "layerstore"
        brief = str(error.format_message()).rstrip(".")
        raise UsageError(
            brief[:1].lower() + brief[1:], hint=f"{path} --help lists what it takes"
        ) from None
    if isinstance(bound, int):  # --help and the like
        return bound
    return bound(Session(settings())) or 0


def make_app(command: str = "") -> typer.Typer:
    """With the module of one command, or with all of them if there is none of that name."""
    app = typer.Typer(
        name="layerstore",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    chosen = [module for module, names in MODULES.items() if command in names]
    for module in chosen or MODULES:
        importlib.import_module(f"layerstore.cli.{module}").register(app)
    return app


def _global_options(
    root: Annotated[
        str | None,
        typer.Option("--root", metavar="DIR", help="The store's directory.",
                     envvar="LAYERSTORE_ROOT", show_default=False),
    ] = None,
    driver: Annotated[
        str | None,
        typer.Option("--driver", metavar="auto|composed|stacked", help="How roots are mounted.",
                     envvar="LAYERSTORE_DRIVER", show_default=False),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version."),
    ] = False,
) -> None:  # fmt: skip
    """Build images, keep each content once, and run them."""
    # For the help: app.py has taken them before.
