"""A container's life: from an image and what was asked for to an exit code, and what is left of it.

The record comes first, durable, and holds the image; the launcher gets a plan and never sees the
store; the changes stay in the container's upper directory until it is removed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from layerstore import rootfs
from layerstore.errors import ConflictError, HostError, NotFoundError, UsageError
from layerstore.formats.changes import diff
from layerstore.formats.entries import Entry, Kind
from layerstore.formats.oci import Json, emit_config, load_json
from layerstore.formats.tree import Tree
from layerstore.kernel import caps
from layerstore.names import ImageID, ImageRef
from layerstore.runtime import supervise
from layerstore.runtime.limits import Limits
from layerstore.runtime.plan import Bind, LaunchPlan, Tmpfs, parse_user
from layerstore.runtime.state import State, cleanup_leftovers, read_state, read_stubs
from layerstore.runtime.supervise import Outcome
from layerstore.snapshot import AS_THEY_ARE, Contents, Hashed, Times, capture
from layerstore.store.atomic import new_id
from layerstore.store.containers import Container
from layerstore.store.images import Image
from layerstore.store.layers import stage_entries
from layerstore.store.store import Store

_ADJECTIVES = (
    "brave", "calm", "clear", "eager", "fair", "gentle", "happy", "keen",
    "lively", "neat", "proud", "quick", "quiet", "sharp", "steady", "warm",
)  # fmt: skip
_NOUNS = (
    "anchor", "beacon", "canal", "crane", "dock", "ferry", "gull", "harbor",
    "jetty", "keel", "ledger", "mast", "pier", "quay", "sail", "tide",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What ``run`` is asked for, parsed."""

    image: str
    argv: tuple[str, ...] = ()
    """Instead of the image's command."""
    entrypoint: tuple[str, ...] | None = None
    name: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    workdir: str | None = None
    hostname: str | None = None
    binds: tuple[Bind, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    network: str = "none"
    limits: Limits = field(default_factory=Limits)
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    no_new_privs: bool = True
    read_only: bool = False
    driver: str = rootfs.AUTO
    remove: bool = False
    interactive: bool = False
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    """A container and what is true of it now."""

    container: Container
    state: State

    @property
    def is_running(self) -> bool:
        return self.state.status == "running"


@dataclass(frozen=True, slots=True)
class Change:
    """``A`` added, ``C`` changed, ``D`` deleted; the path is absolute."""

    kind: str
    path: bytes


def run(
    store: Store,
    options: RunOptions,
    *,
    stdin: int = 0,
    stdout: int = 1,
    stderr: int = 2,
) -> Outcome:
    """Runs a new container to its end. With ``remove`` nothing is left of it.

    Raises LaunchError (125, 126, 127) if the command did not start; the container is removed then.
    """
    container, plan = create(store, options)
    folder = store.containers.path(container.container_id)
    keep = False
    try:
        outcome = supervise.run(plan, stdin=stdin, stdout=stdout, stderr=stderr)
        keep = not options.remove
        return outcome
    finally:
        if not keep and folder.exists():
            store.containers.remove(container.container_id)


def create(store: Store, options: RunOptions) -> tuple[Container, LaunchPlan]:
    """The container's record, and the plan that starts it."""
    image = store.images.find(options.image)
    argv = _argv(options, image)
    with store.transaction() as transaction:
        transaction.lease([image.image_id, *image.diff_ids])
        driver = rootfs.choose(store, options.driver)
        # What it mounts is there before the record is.
        rootfs.overlay(store, image.diff_ids, driver=driver)
        container_id = new_id()
        container = Container(
            container_id=container_id,
            name=options.name or _invent_name(container_id),
            image_id=image.image_id,
            image_name=options.image,
            diff_ids=image.diff_ids,
            created=timestamp(),
            argv=argv,
            driver=driver,
            xattr_prefix=rootfs.xattr_prefix().decode(),
            ephemeral=options.remove,
        )
        folder = store.containers.create(transaction, container)
    try:
        return container, _plan(store, options, image, container, folder)
    except BaseException:
        store.containers.remove(container_id)
        raise


def _argv(options: RunOptions, image: Image) -> tuple[str, ...]:
    """As docker: --entrypoint takes the image's command away, arguments take its place."""
    config = image.config.run
    if options.entrypoint is not None:
        argv = (*options.entrypoint, *options.argv)
    else:
        argv = (*config.entrypoint, *(options.argv or config.cmd))
    if not argv:
        raise UsageError(
            f"the image {options.image!r} has no command of its own",
            hint=f"say what to run: layerstore run {options.image} COMMAND",
        )
    return argv


def _plan(
    store: Store, options: RunOptions, image: Image, container: Container, folder: Path
) -> LaunchPlan:
    config = image.config.run
    env = dict(item.partition("=")[::2] for item in config.env)
    env.update(options.env)
    user = options.user if options.user is not None else config.user
    workdir = options.workdir or config.working_dir or "/"
    return LaunchPlan(
        container_id=container.container_id,
        argv=tuple(os.fsencode(word) for word in container.argv),
        env=tuple((os.fsencode(name), os.fsencode(value)) for name, value in env.items()),
        cwd=os.fsencode(workdir),
        user=parse_user(user),
        hostname=os.fsencode(options.hostname or container.container_id[:12]),
        root=rootfs.overlay(
            store,
            container.diff_ids,
            driver=container.driver,
            upper=folder / "upper",
            work=folder / "work",
            volatile=container.ephemeral,
        ),
        read_only=options.read_only,
        binds=options.binds,
        tmpfs=options.tmpfs,
        network=options.network,
        limits=options.limits,
        terminal=options.terminal,
        interactive=options.interactive,
        capabilities=_capabilities(options),
        no_new_privs=options.no_new_privs,
        state_dir=folder / "state",
    )


def _capabilities(options: RunOptions) -> frozenset[str]:
    """Dropped first, then added, so that ``--cap-drop all --cap-add X`` is X alone."""
    chosen = set(caps.DEFAULT)
    for name in options.cap_drop:
        chosen -= set(caps.NUMBERS) if name.lower() == "all" else {caps.parse_capability(name)}
    for name in options.cap_add:
        chosen |= set(caps.NUMBERS) if name.lower() == "all" else {caps.parse_capability(name)}
    return frozenset(chosen)


def _invent_name(container_id: str) -> str:
    number = int(container_id, 16)
    return f"{_ADJECTIVES[number % 16]}-{_NOUNS[number // 16 % 16]}-{container_id[:4]}"


def parse_bind(text: str) -> Bind:
    """``-v SOURCE:TARGET[:ro|rw]``; the source is an absolute path of the host."""
    source, _, rest = text.partition(":")
    target, _, flags = rest.partition(":")
    if not target or not set(flags.split(",")) <= {"", "ro", "rw"}:
        raise UsageError(
            f"{text!r} is not a volume", hint="write SOURCE:TARGET or SOURCE:TARGET:ro"
        )
    if not source.startswith("/"):
        raise UsageError(
            f"{source!r} is not an absolute path of this host",
            hint=f'to mount a directory from here, write -v "$PWD/{source}:{target}"',
        )
    if not Path(source).exists():
        raise NotFoundError(f"there is no {source} on this host to mount", hint="create it first")
    return Bind(source=Path(source), target=os.fsencode(target), read_only="ro" in flags.split(","))


# -- what is there -------------------------------------------------------------------------------


def status(store: Store, container: Container) -> ContainerStatus:
    return ContainerStatus(
        container, read_state(store.containers.path(container.container_id) / "state")
    )


def remove(store: Store, name: str, *, force: bool = False) -> str:
    """The container is gone, and its id is returned. Raises ConflictError while it runs."""
    container_id = store.containers.find(name)
    state_dir = store.containers.path(container_id) / "state"
    state = read_state(state_dir)
    if state.status == "running":
        if not force:
            raise ConflictError(
                f"the container {name} is running",
                hint=f"stop it first, or use layerstore rm --force {name}",
            )
        _kill(state)
        deadline = time.monotonic() + 10
        while read_state(state_dir).status == "running" and time.monotonic() < deadline:
            time.sleep(0.02)
    if state_dir.is_dir():
        cleanup_leftovers(state_dir)
    try:
        store.containers.remove(container_id)
    except NotFoundError:
        if not force:  # its own `run --rm` removed it just now
            raise
    return container_id


def _kill(state: State) -> None:
    if state.pid is not None:
        with suppress(ProcessLookupError):
            os.kill(state.pid, signal.SIGKILL)


# -- what it changed -----------------------------------------------------------------------------


def changed_entries(
    store: Store, container: Container, contents: Contents, times: Times = AS_THEY_ARE
) -> tuple[Tree, list[Entry]]:
    """The parent tree, and the entries that the container's changes are."""
    folder = store.containers.path(container.container_id)
    mine = rootfs.xattr_prefix().decode()
    if container.xattr_prefix != mine:
        raise HostError(
            f"the container {container.name} was made "
            + ("by root" if mine.startswith("user") else "by a plain user"),
            hint="read it as the same user",
        )
    parent = store.layers.tree(container.diff_ids)
    tree = capture(
        folder / "upper",
        parent,
        contents,
        xattr_prefix=container.xattr_prefix.encode(),
        stubs={stub.path.strip(b"/") for stub in read_stubs(folder / "state")},
        times=times,
        ids=rootfs.ids(),
    )
    return parent, diff(parent, tree)


def changes(store: Store, name: str) -> list[Change]:
    """What the container changed, by path."""
    container = store.containers.get(store.containers.find(name))
    parent, entries = changed_entries(store, container, Hashed())
    return changes_of(parent, entries)


def changes_of(parent: Tree, entries: list[Entry]) -> list[Change]:
    found = []
    for entry in entries:
        if entry.kind is Kind.WHITEOUT:
            kind = "D"
        else:
            kind = "C" if parent.lookup(entry.path) is not None else "A"
        found.append(Change(kind, b"/" + entry.path))
    return found


def commit(store: Store, name: str, ref: ImageRef, *, epoch: int | None = None) -> ImageID:
    """An image of the container's layers and its changes. Raises ConflictError while it runs."""
    container = store.containers.get(store.containers.find(name))
    if status(store, container).is_running:
        raise ConflictError(
            f"the container {name} is running",
            hint="stop it first: its files may change while they are read",
        )
    image = store.images.get(container.image_id)
    with store.transaction() as transaction:
        transaction.lease([image.image_id, *image.diff_ids])
        _, entries = changed_entries(store, container, transaction, Times(latest=epoch))
        diff_ids = list(container.diff_ids)
        history: Json = {
            "created": timestamp(epoch),
            "created_by": " ".join(container.argv),
            "comment": f"layerstore commit {container.name}",
        }
        if entries:
            diff_ids.append(stage_entries(transaction, entries).diff_id)
        else:
            history["empty_layer"] = True
        document = load_json(image.raw_config, where=f"image {image.image_id.short}")
        config = emit_config(
            platform=image.config.platform,
            diff_ids=diff_ids,
            run=document.get("config") or {},
            created=timestamp(epoch),
            history=(*image.config.history, history),
        )
        image_id = transaction.stage_image(config)
        transaction.publish({ref: image_id})
    return image_id


def timestamp(epoch: int | None = None) -> str:
    """RFC 3339; now unless an epoch is given."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))
