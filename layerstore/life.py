"""What can be done with containers that are there: start, stop, enter, watch, and copy from and to.

Every call takes a container's name, id, or the first digits of its id, and leaves no process,
mount, cgroup or descriptor behind. What is true of a container is asked of the kernel each time,
so that a killed monitor, or a reboot, confuses nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from layerstore import live
from layerstore import run as running
from layerstore.live import ExecOptions, Process, Stats
from layerstore.runtime import copying
from layerstore.runtime.attach import DETACH_KEYS
from layerstore.runtime.copying import Copied, Place
from layerstore.runtime.detached import Monitor
from layerstore.runtime.rootview import StoppedRoot, running_root
from layerstore.runtime.state import await_free, read_state
from layerstore.runtime.supervise import Outcome
from layerstore.store.containers import Container
from layerstore.store.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.runtime.logs import Line


# -- start and stop ------------------------------------------------------------------------------


def create(store: Store, options: running.RunOptions) -> Container:
    """A new container that is not started."""
    container, _ = running.create(store, options)
    return container


def start(store: Store, name: str) -> Container:
    """The container runs, with the changes that it made before. One that runs is left alone.

    Raises LaunchError if its command does not start; the container stays.
    """
    container = store.containers.get(store.containers.find(name))
    if running.status(store, container).state.is_supervised:
        return container
    monitor = Monitor()
    try:
        plan, upkeep = running.plan_again(store, container)
        monitor.start(running.monitor_plan(store, container, plan, upkeep))
    finally:
        monitor.close()
    return container


def start_attached(
    store: Store,
    name: str,
    *,
    stdin: int | None = 0,
    stdout: int = 1,
    stderr: int = 2,
    detach_keys: bytes = DETACH_KEYS,
) -> Outcome | None:
    """As ``start``, with the caller's streams until it ends; None if the caller detached."""
    container = store.containers.get(store.containers.find(name))
    monitor = Monitor()
    try:
        plan, upkeep = running.plan_again(store, container)
        return monitor.run_attached(
            running.monitor_plan(store, container, plan, upkeep),
            stdin=stdin if plan.interactive else None, window=stdout if stdin is None else stdin,
            stdout=stdout, stderr=stderr, detach_keys=detach_keys,
        )  # fmt: skip
    finally:
        monitor.close()


def restart(store: Store, name: str, *, timeout_s: float | None = None) -> None:
    """The container has been stopped, if it ran, and runs."""
    stop(store, name, timeout_s=timeout_s)
    start(store, name)


def stop(store: Store, name: str, *, timeout_s: float | None = None) -> None:
    """See ``live.stop``; so it is with all that follow."""
    live.stop(live.find(store.layout.root, name), timeout_s=timeout_s)


def kill(store: Store, name: str, signal: str = "KILL") -> None:
    live.kill(live.find(store.layout.root, name), signal)


def wait(store: Store, name: str) -> int | None:
    return live.wait(live.find(store.layout.root, name))


def pause(store: Store, name: str) -> None:
    live.pause(live.find(store.layout.root, name))


def unpause(store: Store, name: str) -> None:
    live.unpause(live.find(store.layout.root, name))


# -- enter, attach, watch ------------------------------------------------------------------------


def execute(
    store: Store,
    name: str,
    options: ExecOptions,
    *,
    stdin: int = 0,
    stdout: int = 1,
    stderr: int = 2,
) -> Outcome:
    found = live.find(store.layout.root, name)
    return live.execute(found, options, stdin=stdin, stdout=stdout, stderr=stderr)


def execute_detached(store: Store, name: str, options: ExecOptions) -> None:
    live.execute_detached(live.find(store.layout.root, name), options)


def attach(
    store: Store,
    name: str,
    *,
    stdin: int | None = 0,
    stdout: int = 1,
    stderr: int = 2,
    detach_keys: bytes = DETACH_KEYS,
) -> Outcome | None:
    found = live.find(store.layout.root, name)
    return live.attach(found, stdin=stdin, stdout=stdout, stderr=stderr, detach_keys=detach_keys)


def logs(
    store: Store,
    name: str,
    *,
    since: str | None = None,
    tail: int | None = None,
    follow: bool = False,
) -> Iterator[Line]:
    found = live.find(store.layout.root, name)
    return live.logs(found, since=since, tail=tail, follow=follow)


def top(store: Store, name: str) -> list[Process]:
    return live.top(live.find(store.layout.root, name))


def stats(store: Store, names: list[str] | None = None) -> list[Stats]:
    """One sample of the named containers, or of all that run."""
    root = store.layout.root
    if names is None:
        return live.stats_of_all(root)
    return [live.stats(live.find(root, name)) for name in names]


# -- files ---------------------------------------------------------------------------------------


@contextmanager
def _root(store: Store, name: str) -> Iterator[int]:
    """The descriptor of the container's root, whether it runs or not."""
    found = live.find(store.layout.root, name)
    state = read_state(found.state_dir)
    if state.status == "running" and state.pid is not None:
        root = running_root(state.pid, state.pid_started)
        if root is not None:
            try:
                yield root
            finally:
                os.close(root)
            return
    await_free(found.state_dir, 1)  # it may be ending
    plan, _ = running.plan_again(store, store.containers.get(found.container_id))
    with StoppedRoot(found.state_dir, plan.root) as root:
        yield root


def copy_from(
    store: Store, name: str, path: bytes, target: bytes, *, archive: bool = False,
    follow: bool = False,
) -> Copied:  # fmt: skip
    """``cp CONTAINER:PATH TARGET``; see ``runtime.copying``."""
    with _host_root() as host, _root(store, name) as root:
        return copying.copy(
            Place(root_fd=root, path=path), Place(root_fd=host, path=_absolute(target)),
            archive=archive, follow=follow,
        )  # fmt: skip


def copy_to(
    store: Store, name: str, source: bytes, path: bytes, *, archive: bool = False,
    follow: bool = False,
) -> Copied:  # fmt: skip
    """``cp SOURCE CONTAINER:PATH``."""
    with _host_root() as host, _root(store, name) as root:
        return copying.copy(
            Place(root_fd=host, path=_absolute(source)), Place(root_fd=root, path=path),
            archive=archive, follow=follow,
        )  # fmt: skip


def _absolute(path: bytes) -> bytes:
    """The same place, and the same meaning of what is at its end."""
    return path if path.startswith(b"/") else os.getcwdb() + b"/" + path


@contextmanager
def _host_root() -> Iterator[int]:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield root
    finally:
        os.close(root)
