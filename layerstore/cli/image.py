"""Images: how they come and go, what is in them, and what they are called."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from layerstore.cli import output
from layerstore.cli.session import Session, add
from layerstore.errors import UsageError
from layerstore.names import ImageRef
from layerstore.report import jsonl, terminal
from layerstore.report.text import escaped

Image = Annotated[str, typer.Argument(metavar="IMAGE", help="A name or the first digits of an id.",
                                      show_default=False)]  # fmt: skip
NewName = Annotated[str, typer.Argument(metavar="NAME", help="What the image is called.",
                                        show_default=False)]  # fmt: skip
Layer = Annotated[str, typer.Argument(metavar="DIFF_ID", help="The digest of the layer, or its "
                                      "first digits.", show_default=False)]  # fmt: skip
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

T = TypeVar("T", bound=str)

_FORMS: tuple[Literal["oci", "docker"], ...] = ("oci", "docker")
_COMPRESSIONS: tuple[Literal["zstd", "gzip", "none"], ...] = ("zstd", "gzip", "none")


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    add(app, "images", images)
    add(app, "inspect", inspect)
    add(app, "history", history)
    add(app, "import", import_)
    add(app, "load", load)
    add(app, "save", save)
    add(app, "tag", tag)
    add(app, "rmi", rmi)
    add(app, "diff", diff)
    add(app, "commit", commit)
    add(app, "mount", mount)
    add(app, "umount", umount)
    layers = typer.Typer(rich_markup_mode=None, help="Look into a layer.")
    add(layers, "ls", layer_ls)
    add(layers, "cat", layer_cat)
    app.add_typer(layers, name="layer")


# -- in and out ----------------------------------------------------------------------------------


def import_(
    session: Session,
    source: Annotated[
        Path, typer.Argument(metavar="TAR|DIR", help="A root filesystem: a directory, or a tar, "
                             "plain or compressed; - is standard input.", show_default=False)
    ],
    name: NewName,
) -> None:  # fmt: skip
    """Make an image of a root filesystem, and print its id."""
    output.say(session.store().import_root(_input(source), ImageRef.parse(name)))


def load(
    session: Session,
    source: Annotated[
        Path, typer.Argument(metavar="PATH", help="An OCI layout (a directory or a tar) or docker "
                             "archive; - is standard input.", show_default=False)
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Instead of the archive's own names.",
                                   show_default=False)
    ] = None,
) -> None:  # fmt: skip
    """Take the images of an archive, and print their names and ids."""
    ref = ImageRef.parse(name) if name is not None else None
    for loaded in session.store().load(_input(source), ref):
        for found in loaded.refs:
            output.say(f"{found} {loaded.image_id}")


def _input(path: Path) -> Path:
    return Path("/dev/stdin") if str(path) == "-" else path


def save(
    session: Session,
    image: Image,
    target: Annotated[
        Path, typer.Argument(metavar="PATH", help="A new directory, or a file that ends in .tar; "
                             "- is standard output.", show_default=False)
    ],
    form: Annotated[
        str, typer.Option("--format", metavar="oci|docker", help="OCI layout or docker archive.")
    ] = "oci",
    compression: Annotated[
        str | None,
        typer.Option("--compression", metavar="zstd|gzip|none", show_default=False,
                     help="Of layers: zstd in an OCI layout, none in a docker archive."),
    ] = None,
) -> None:  # fmt: skip
    """Write an image as an OCI layout or a docker archive."""
    chosen = _choose("--format", form, _FORMS)
    packing = None if compression is None else _choose("--compression", compression, _COMPRESSIONS)
    if str(target) == "-":
        _refuse_terminal("an archive")
        session.store().save(image, output.binary(), form=chosen, compression=packing)
        return
    session.store().save(image, target, form=chosen, compression=packing)
    output.note(f"saved {escaped(image)} to {escaped(str(target))}")


def _choose(option: str, value: str, among: tuple[T, ...]) -> T:
    for candidate in among:
        if candidate == value:
            return candidate
    choice = f"{', '.join(among[:-1])} or {among[-1]}"
    raise UsageError(f"{option} {value!r} is not there", hint=f"choose {choice}")


def _refuse_terminal(what: str) -> None:
    if sys.stdout is not None and sys.stdout.isatty():
        raise UsageError(
            f"{what} is not for a terminal", hint="send it to a file or a program: > FILE"
        )


# -- what there is -------------------------------------------------------------------------------


def images(
    session: Session,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print ids alone.")] = False,
    json: AsJson = False,
) -> None:
    """List the names of images, with their sizes."""
    found = session.store().images()
    if json:
        output.say_json([jsonl.image(summary) for summary in found])
    elif quiet:
        for image_id in dict.fromkeys(summary.image_id for summary in found):
            output.say(image_id)
    else:
        output.say(terminal.images(found, time.time()))


def inspect(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="An image or a container.",
                                        show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="Print JSON, as it does anyway.")] = False,
) -> None:  # fmt: skip
    """Print all that is known of an image or a container, as JSON."""
    del json
    output.say_json(session.store().inspect(name))


def history(session: Session, image: Image, json: AsJson = False) -> None:
    """List the steps that made an image, with what each added."""
    steps = session.store().history(image)
    if json:
        output.say_json([jsonl.history_step(step) for step in steps])
    else:
        output.say(terminal.history(steps, time.time(), room=output.room(60)))


def layer_ls(session: Session, diff_id: Layer, json: AsJson = False) -> None:
    """List the entries of a layer, in the order of its tar."""
    entries = session.store().layer_entries(diff_id)
    if json:
        output.say_json([jsonl.entry(entry) for entry in entries])
        return
    for entry in entries:
        output.say(terminal.entry(entry))


def layer_cat(session: Session, diff_id: Layer) -> None:
    """Write a layer's tar to standard output, bit for bit."""
    _refuse_terminal("a tar")
    out = output.binary()
    for chunk in session.store().layer_tar(diff_id):
        out.write(chunk)


# -- names ---------------------------------------------------------------------------------------


def tag(session: Session, image: Image, name: NewName) -> None:
    """Give an image one more name, and print its id."""
    output.say(session.store().tag(image, ImageRef.parse(name)))


def rmi(
    session: Session,
    names: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Names, or ids for all their names.",
                                  show_default=False)
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("-f", "--force", help="Even if a container uses it, or an id has "
                           "several names.")
    ] = False,
    json: AsJson = False,
) -> None:  # fmt: skip
    """Remove names of images, and the images that have none left."""
    found = session.store().remove_images(names, dry_run=dry_run, force=force)
    if json:
        output.say_json(jsonl.removal(found))
    else:
        output.say(terminal.removal(found, dry_run=dry_run))


# -- containers and mounts -----------------------------------------------------------------------


def diff(
    session: Session,
    before: Annotated[str, typer.Argument(metavar="CONTAINER|IMAGE", show_default=False,
                                          help="A container, or the image to start from.")],
    after: Annotated[
        str | None, typer.Argument(metavar="IMAGE", help="The image to compare with.",
                                   show_default=False)
    ] = None,
    json: AsJson = False,
) -> None:  # fmt: skip
    """List what a container changed, or what two images differ in.

    A is added, C changed, D deleted.
    """
    store = session.store()
    found = store.container_diff(before) if after is None else store.image_diff(before, after)
    if json:
        output.say_json([jsonl.change(change) for change in found])
        return
    for change in found:
        output.say(terminal.change(change))


def commit(
    session: Session,
    container: Annotated[str, typer.Argument(metavar="CONTAINER", help="A name or an id.",
                                             show_default=False)],
    name: NewName,
    pause: Annotated[
        bool, typer.Option("--pause/--no-pause", help="Let a running container stand still "
                           "meanwhile, as by default.", show_default=False)
    ] = True,
) -> None:  # fmt: skip
    """Make an image of a container, and print its id."""
    output.say(session.store().commit(container, ImageRef.parse(name), pause=pause))


def mount(
    session: Session,
    image: Image,
    target: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Where; a new directory if it is left "
                                    "out.", show_default=False)
    ] = None,
) -> None:  # fmt: skip
    """Mount an image's root on this host, read-only, and print where."""
    output.say(escaped(str(session.store().mount(image, target))))


def umount(
    session: Session,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Where an image is mounted.",
                                           show_default=False)],
) -> None:  # fmt: skip
    """Undo a mount."""
    session.store().umount(target)
