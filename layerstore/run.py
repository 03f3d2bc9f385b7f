"""A container's life: from an image and what was asked for to an exit code, and what is left of it.

The record comes first, durable, and holds the image; the launcher gets a plan and never sees the
store; the changes stay in the container's upper directory until it is removed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from layerstore import live, rootfs
from layerstore.confinement import seccomp_program
from layerstore.errors import (
    ConflictError,
    HostError,
    LayerstoreError,
    NotFoundError,
    UsageError,
)
from layerstore.formats.oci import load_json
from layerstore.kernel import caps
from layerstore.kernel.cgroups import Cgroup
from layerstore.kernel.fs import fsync_path, write_all
from layerstore.kernel.mounts import OverlayMount
from layerstore.kernel.process import SIGKILL, parse_signal
from layerstore.kernel.values import Value
from layerstore.runtime import deliver, record, supervise
from layerstore.runtime.attach import DETACH_KEYS
from layerstore.runtime.detached import Monitor
from layerstore.runtime.limits import Limits
from layerstore.runtime.plan import Bind, LaunchError, LaunchPlan, Tmpfs, parse_user
from layerstore.runtime.state import State, cleanup_leftovers, read_state
from layerstore.runtime.supervise import Outcome
from layerstore.runtime.upkeep import HealthCheck, Kept, MonitorPlan, Restart, Upkeep
from layerstore.store.atomic import new_id
from layerstore.store.containers import Container
from layerstore.store.images import Image
from layerstore.store.store import Store

_UNSTARTED_S = 60.0
_ADJECTIVES = (
    "brave", "calm", "clear", "eager", "fair", "gentle", "happy", "keen",
    "lively", "neat", "proud", "quick", "quiet", "sharp", "steady", "warm",
)  # fmt: skip
_NOUNS = (
    "anchor", "beacon", "canal", "crane", "dock", "ferry", "gull", "harbor",
    "jetty", "keel", "ledger", "mast", "pier", "quay", "sail", "tide",
)  # fmt: skip


class RunOptions(Value):
    """What ``run`` is asked for, parsed."""

    image: str
    argv: tuple[str, ...] = ()
    """Instead of the image's command."""
    entrypoint: tuple[str, ...] | None = None
    name: str | None = None
    env: Mapping[str, str] = MappingProxyType({})
    user: str | None = None
    workdir: str | None = None
    hostname: str | None = None
    binds: tuple[Bind, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    network: str = "none"
    limits: Limits = Limits()
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    no_new_privs: bool = True
    seccomp: str | None = None
    """A profile's path, ``unconfined``, or None for the default one."""
    read_only: bool = False
    driver: str = rootfs.AUTO
    remove: bool = False
    interactive: bool = False
    terminal: bool = False
    init: bool = False
    restart: Restart = Restart()
    stop_signal: str | None = None
    """Instead of the image's, and of TERM."""
    stop_timeout_s: float | None = None
    log_size: int | None = None
    """Bytes of one file of a detached container's log."""
    log_files: int | None = None
    health: HealthCheck | None = None
    """Instead of the image's."""
    no_health: bool = False


class ContainerStatus(NamedTuple):
    """A container and what is true of it now."""

    container: Container
    state: State

    @property
    def is_running(self) -> bool:
        return self.state.status in ("running", "paused", "restarting")


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
    if options.restart.policy != "no":
        raise UsageError(
            "a container in the foreground is not restarted", hint="run it with -d, then attach"
        )
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


def run_detached(store: Store, options: RunOptions) -> Container:
    """A new container whose command runs on by itself, with a monitor that keeps its output.

    Raises as ``run``.
    """
    monitor = Monitor()
    try:
        container, plan = create(store, options)
        try:
            monitor.start(monitor_plan(store, container, plan, _upkeep(store, options)))
        except BaseException:
            _discard(store, container)
            raise
        return container
    finally:
        monitor.close()


def run_on_terminal(
    store: Store,
    options: RunOptions,
    *,
    stdin: int = 0,
    stdout: int = 1,
    stderr: int = 2,
    detach_keys: bytes = DETACH_KEYS,
) -> tuple[Container, Outcome | None]:
    """As ``run``, with a monitor, so that the caller may detach: then there is no Outcome."""
    monitor = Monitor()
    try:
        container, plan = create(store, options)
        try:
            whole = monitor_plan(store, container, plan, _upkeep(store, options))
            outcome = monitor.run_attached(
                whole, stdin=stdin if options.interactive else None, window=stdin,
                stdout=stdout, stderr=stderr, detach_keys=detach_keys,
            )  # fmt: skip
        except LaunchError:
            _discard(store, container)
            raise
        return container, outcome
    finally:
        monitor.close()


def _discard(store: Store, container: Container) -> None:
    with suppress(NotFoundError, FileNotFoundError):
        state_dir = store.containers.path(container.container_id) / "state"
        deliver.end(state_dir, SIGKILL, 0)
        cleanup_leftovers(state_dir)
        store.containers.remove(container.container_id)


def monitor_plan(
    store: Store, container: Container, plan: LaunchPlan, upkeep: Upkeep
) -> MonitorPlan:
    """What a monitor of the container does."""
    folder = store.containers.path(container.container_id)
    at_end: tuple[str, ...] = ()
    if container.ephemeral:
        places = (_PACKAGES, os.pathsep.join(sys.path), str(store.layout.root))
        at_end = (sys.executable, "-I", "-S", "-c", _AT_END, *places, container.container_id)
    return MonitorPlan(plan=plan, upkeep=upkeep, log_dir=str(folder / "log"), at_end=at_end)


_PACKAGES = str(Path(__file__).resolve().parents[1])
_AT_END = (
    "import os, sys; sys.path[:0] = [sys.argv[1], *sys.argv[2].split(os.pathsep)]; "
    "from layerstore.run import forget; forget(*sys.argv[3:])"
)


def forget(root: str, container_id: str) -> None:
    """The container that has ended is gone, if nobody else has removed it."""
    with suppress(LayerstoreError):
        store = Store.open(Path(root))
        with suppress(FileNotFoundError):
            cleanup_leftovers(store.containers.path(container_id) / "state")
            store.containers.remove(container_id)


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
        plan = _plan(store, options, image, container, folder)
        upkeep = _upkeep(store, options)
        save_kept(folder, Kept(plan=plan.replace(root=OverlayMount()), upkeep=upkeep),
                  is_durable=not container.ephemeral)  # fmt: skip
        return container, plan
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
        seccomp=seccomp_program(store.layout, options.seccomp, _capabilities(options)),
        init=options.init,
        state_dir=folder / "state",
    )


def _upkeep(store: Store, options: RunOptions) -> Upkeep:
    image = store.images.find(options.image)
    usual = Upkeep()
    signal_name = options.stop_signal or image.config.run.stop_signal
    timeout, size, files = options.stop_timeout_s, options.log_size, options.log_files
    return Upkeep(
        restart=options.restart,
        stop_signal=parse_signal(signal_name) if signal_name else usual.stop_signal,
        stop_timeout_s=usual.stop_timeout_s if timeout is None else timeout,
        log_size=usual.log_size if size is None else size,
        log_files=usual.log_files if files is None else files,
        health=None if options.no_health else options.health or _health_of(image),
    )


def _health_of(image: Image) -> HealthCheck | None:
    """Docker's extension of the image config; times in nanoseconds, 0 is the default."""
    document = load_json(image.raw_config, where=f"image {image.image_id.short}")
    check = (document.get("config") or {}).get("Healthcheck") or {}
    test = check.get("Test") or ["NONE"]
    if test[0] == "NONE":
        return None
    argv = ["/bin/sh", "-c", *test[1:]] if test[0] == "CMD-SHELL" else test[1:]
    usual = HealthCheck(argv=tuple(map(os.fsencode, argv)))
    return usual.replace(
        interval_s=(check.get("Interval") or 0) / 1e9 or usual.interval_s,
        timeout_s=(check.get("Timeout") or 0) / 1e9 or usual.timeout_s,
        start_period_s=(check.get("StartPeriod") or 0) / 1e9,
        retries=check.get("Retries") or usual.retries,
    )


def save_kept(folder: Path, kept: Kept, *, is_durable: bool = True) -> None:
    """The container can be started, and entered, from now on."""
    fd = os.open(folder / "launch.json.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        write_all(fd, record.emit(kept).encode())
        if is_durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    (folder / "launch.json.tmp").rename(folder / "launch.json")
    if is_durable:
        fsync_path(folder)


def plan_again(store: Store, container: Container) -> tuple[LaunchPlan, Upkeep]:
    """What starts the container once more, over the changes that it made before."""
    check_same_user(container)
    folder = store.containers.path(container.container_id)
    kept = live.Found(str(folder), container.name).kept()
    root = rootfs.overlay(
        store,
        container.diff_ids,
        driver=container.driver,
        upper=folder / "upper",
        work=folder / "work",
        volatile=container.ephemeral,
    )
    return kept.plan.replace(root=root), kept.upkeep


def check_same_user(container: Container) -> None:
    """Raises HostError if the marks of overlayfs in its upper directory are not for us to read."""
    mine = rootfs.xattr_prefix().decode()
    if container.xattr_prefix != mine:
        raise HostError(
            f"the container {container.name} was made "
            + ("by root" if mine.startswith("user") else "by a plain user"),
            hint="use it as the same user",
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
    """What is true now; what a killed monitor left behind is gone."""
    state_dir = store.containers.path(container.container_id) / "state"
    state = read_state(state_dir)
    if state.cgroups and not state.is_supervised:
        with suppress(ConflictError):  # it has just been started again
            state = cleanup_leftovers(state_dir)
    if state.status == "running" and Cgroup.of_paths(state.cgroups).is_frozen:
        state = state.replace(status="paused")
    return ContainerStatus(container, state)


def tidy(store: Store) -> list[str]:
    """What killed commands left of containers is gone; the ids of those that are gone themselves.

    Those are the ones of ``run --rm``. One that was never started may be about to be, for a minute.
    """
    gone = []
    for container in store.containers.all():
        found = store.containers.path(container.container_id)
        with suppress(ConflictError, NotFoundError, FileNotFoundError):
            state = status(store, container).state
            if not container.ephemeral or state.is_supervised or state.status == "running":
                continue
            if state.status == "created" and time.time() - found.stat().st_mtime < _UNSTARTED_S:
                continue
            cleanup_leftovers(found / "state")
            store.containers.remove(container.container_id)
            gone.append(container.container_id)
    return gone


def remove(store: Store, name: str, *, force: bool = False) -> str:
    """The container is gone, and its id is returned. Raises ConflictError while it runs."""
    container_id = store.containers.find(name)
    state_dir = store.containers.path(container_id) / "state"
    state = read_state(state_dir)
    if state.is_supervised or state.status in ("running", "restarting"):
        if not force:
            raise ConflictError(
                f"the container {name} is running",
                hint=f"stop it first, or use layerstore rm --force {name}",
            )
        deliver.end(state_dir, SIGKILL, timeout_s=10)
    if state_dir.is_dir():
        cleanup_leftovers(state_dir)
    try:
        store.containers.remove(container_id)
    except NotFoundError:
        if not force:  # its own `run --rm` removed it just now
            raise
    return container_id


def timestamp(epoch: int | None = None) -> str:
    """RFC 3339; now unless an epoch is given."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))
