"""Commands of a build: a container whose changes become a layer, or are thrown away."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layerstore import rootfs
from layerstore.confinement import seccomp_program
from layerstore.errors import BuildError, HostError
from layerstore.events import Caution, Output, Sink
from layerstore.formats.tree import Tree
from layerstore.idmaps import ids
from layerstore.kernel import caps
from layerstore.names import ChainID, DiffID
from layerstore.runtime import supervise
from layerstore.runtime.plan import Bind, LaunchPlan, Tmpfs, User, parse_user
from layerstore.runtime.state import read_stubs
from layerstore.runtime.supervision import ENDING, Watch
from layerstore.snapshot import Times, capture
from layerstore.sources import Context
from layerstore.spec import BindMount, CacheMount, Command, RunStep, TmpfsMount
from layerstore.store.atomic import Transaction, new_id
from layerstore.store.layout import quote_name
from layerstore.store.store import Store

_TAIL_LINES = 20


@dataclass(frozen=True, slots=True)
class Container:
    """Where a command of a build runs."""

    store: Store
    transaction: Transaction
    context: Context
    diff_ids: tuple[DiffID, ...]
    """Published layers, bottom first."""
    tree: Tree
    """What these layers show."""
    driver: str
    base_env: tuple[str, ...]
    sink: Sink
    stage: str
    index: int

    def output_of(self, command: Command) -> str:
        """What a command prints, less its last newline. What it changes is thrown away."""
        printed: list[bytes] = []
        _launch(self, command, _Place.make(self), take=printed.append)
        return b"".join(printed).decode("utf-8", "surrogateescape").removesuffix("\n")


@dataclass(frozen=True, slots=True)
class _Place:
    upper: Path
    work: Path
    state: Path

    @classmethod
    def make(cls, container: Container) -> _Place:
        folder = container.transaction.stage_directory(f"step-{new_id()}")
        place = cls(folder / "upper", folder / "work", folder / "state")
        for path in (place.upper, place.work, place.state):
            path.mkdir(0o755 if path.name == "upper" else 0o700)
        return place


def run_step(container: Container, step: RunStep, before: Tree, times: Times) -> Tree:
    """The tree after the step's command. Raises BuildError with the end of its output."""
    place = _Place.make(container)
    began_ns = place.upper.stat().st_ctime_ns
    try:
        _launch(container, step.command, place, step=step)
    except BuildError as error:
        raise BuildError(
            f"{step.position}: {error.brief}", hint=error.hint, details=error.details
        ) from error
    return capture(
        place.upper,
        before,
        container.transaction,
        xattr_prefix=rootfs.xattr_prefix(),
        stubs={stub.path.strip(b"/") for stub in read_stubs(place.state)},
        times=Times(made_since_ns=began_ns, made_at=times.made_at, latest=times.latest),
        ids=ids(),
        takes=True,
        warn=lambda text: container.sink(Caution(text, str(step.position))),
    )


def _launch(
    container: Container,
    command: Command,
    place: _Place,
    *,
    step: RunStep | None = None,
    take: object = None,
) -> None:
    tail = bytearray()

    def show(chunk: bytes) -> None:
        tail.extend(chunk)
        del tail[: -64 << 10]
        container.sink(Output(container.stage, container.index, chunk))

    def print_(chunk: bytes) -> None:
        if callable(take):
            take(chunk)
        else:
            show(chunk)

    plan = _plan(container, command, place, step)
    ending = _Ending()
    try:
        with Path("/dev/null").open("rb") as nothing:
            outcome = supervise.run(
                plan, stdin=nothing.fileno(), stdout=print_, stderr=show, watch=ending
            )
    finally:
        if ending.signum:  # the command had its copy; this one is the build's
            os.kill(os.getpid(), ending.signum)
    if outcome.exit_code != 0:
        why = "was killed for want of memory" if outcome.oom_killed else (
            f"ended with exit code {outcome.exit_code}")  # fmt: skip
        lines = bytes(tail).decode("utf-8", "backslashreplace").splitlines()[-_TAIL_LINES:]
        raise BuildError(
            f"{command} {why}",
            hint=_hint(step, lines),
            details="\n".join(lines) or None,
        )


class _Ending(Watch):
    """What was to end the build, and not only the command that ran."""

    signum = 0

    def on_signal(self, signum: int) -> None:
        if signum in ENDING:
            self.signum = signum


def _hint(step: RunStep | None, lines: Sequence[str]) -> str | None:
    text = "\n".join(lines).lower()
    unreachable = ("could not resolve", "temporary failure", "network is unreachable", "connect:")
    if step is not None and step.network == "none" and any(word in text for word in unreachable):
        return "steps have no network unless they say network: host"
    return None


def _plan(
    container: Container, command: Command, place: _Place, step: RunStep | None
) -> LaunchPlan:
    # No image has this stack yet: the lease is all that keeps what is made to mount it.
    container.transaction.lease([ChainID.of_stack(container.diff_ids)])
    env = dict(item.partition("=")[::2] for item in container.base_env)
    env.update(step.env if step is not None else ())
    user = parse_user(step.user) if step is not None and step.user is not None else User()
    return LaunchPlan(
        container_id=f"build-{new_id()}",
        argv=tuple(word.encode("utf-8", "surrogateescape") for word in command.argv),
        env=tuple((_bytes(name), _bytes(value)) for name, value in env.items()),
        cwd=b"/" + (step.workdir or b"") if step is not None else b"/",
        user=user,
        hostname=b"layerstore-build",
        root=rootfs.overlay(
            container.store,
            container.diff_ids,
            driver=container.driver,
            upper=place.upper,
            work=place.work,
            volatile=True,
            tree=container.tree,
        ),
        binds=_binds(container, step),
        tmpfs=tuple(
            Tmpfs(target=b"/" + mount.to, size=mount.size, is_executable=True)
            for mount in (step.mounts if step is not None else ())
            if isinstance(mount, TmpfsMount)
        ),
        network=step.network if step is not None else "none",
        # Package managers need setuid programs and file capabilities to work in a step.
        no_new_privs=False,
        seccomp=seccomp_program(container.store.layout, None, caps.DEFAULT),
        state_dir=place.state,
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _binds(container: Container, step: RunStep | None) -> tuple[Bind, ...]:
    binds: list[Bind] = []
    for mount in step.mounts if step is not None else ():
        target = b"/" + mount.to
        if isinstance(mount, BindMount):
            source = container.context.real_path(mount.source)
            binds.append(Bind(source=source, target=target, read_only=True))
        elif isinstance(mount, CacheMount):
            source = container.store.layout.folder("derived") / f"cache-{quote_name(mount.cache)}"
            source.mkdir(0o755, exist_ok=True)
            binds.append(Bind(source=source, target=target))
        elif not isinstance(mount, TmpfsMount):
            raise HostError(
                f"{mount.position}: secret and ssh mounts are not there yet",
                hint="bind a file of the spec's folder; ignore keeps it out of copy steps",
            )
    return tuple(binds)
