"""A build of four steps over 20,000 files: new, again, and with one file changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from pathlib import Path
from random import Random

from benchmarks import peers
from benchmarks.harness import OURS, Contender, Scenario, Target, Unavailable
from benchmarks.places import World, check, timed

_FILES = 20_000
_NEW, _AGAIN, _CHANGED = "copy, delete, move, write", "again, unchanged", "again, one file changed"

_SPEC = """\
layerstore: 1
name: built
from: {image: debian}
steps:
  - copy: {src: tree/, to: /srv/}
  - remove: /srv/d1
  - run: mv /srv/d2 /srv/moved
  - write: {to: /srv/written, text: "written\\n"}
"""

_DOCKERFILE = """\
FROM debian:latest
COPY tree/ /srv/
RUN rm -rf /srv/d1
RUN mv /srv/d2 /srv/moved
RUN echo written > /srv/written
"""


def build(world: World) -> Generator[Scenario, None, None]:
    """20,000 files are copied, a tree is deleted, one moved, a file written."""
    with ExitStack() as stack:
        context = stack.enter_context(world.disk()) / "context"
        contenders = [
            Contender(OURS, _rounds(_ours(world, stack, context), context)),
            Contender("buildah", _rounds(_buildah(world, stack, context), context)),
            Contender("docker", _rounds(_docker(world, stack, context), context)),
        ]
        targets = [
            Target(_NEW, 1.6), Target(_NEW, 0.25, "buildah"), Target(_NEW, 0.12, "docker"),
            Target(_AGAIN, 0.25),
        ]  # fmt: skip
        yield Scenario(
            contenders, targets, rounds=2, before_round=lambda number: write(context, number)
        )
        worker = stack.enter_context(world.worker())
        case = "scan of 20,000 unchanged files"
        contender = Contender(OURS, lambda: {case: worker("scan", folder=context)})
        yield Scenario([contender], [Target(case, 0.1)], rounds=5, warmups=1)


def write(context: Path, number: int) -> None:
    """A context whose every file differs from those of all other rounds."""
    shutil.rmtree(context, ignore_errors=True)
    random = Random(number)
    for folder in range(_FILES // 100):
        path = context / "tree" / f"d{folder}"
        path.mkdir(parents=True)
        for file in range(100):
            size = random.randrange(1000, 9500)
            (path / f"file{file}").write_bytes(random.randbytes(size))
    (context / "spec.yaml").write_text(_SPEC)
    (context / "Dockerfile").write_text(_DOCKERFILE)
    check(["sync", "-f", str(context)])


def _rounds(take: Callable[[], float], context: Path) -> Callable[[], Mapping[str, float]]:
    """One contender's round: three builds. The context is as it was afterwards."""

    def measure() -> Mapping[str, float]:
        took = {_NEW: take(), _AGAIN: take()}
        changed = context / "tree" / "d7" / "file7"
        content = changed.read_bytes()
        changed.write_bytes(b"changed" + content)
        took[_CHANGED] = take()
        changed.write_bytes(content)
        return took

    return measure


def _ours(world: World, stack: ExitStack, context: Path) -> Callable[[], float]:
    store = stack.enter_context(world.disk()) / "store"
    command = [str(world.installed() / "layerstore"), "--root", str(store)]
    check([*command, "import", str(world.debian()), "debian"])
    return lambda: timed([*command, "build", str(context / "spec.yaml")])


def _buildah(world: World, stack: ExitStack, context: Path) -> Callable[[], float]:
    try:
        peer = stack.enter_context(peers.buildah(stack.enter_context(world.disk()) / "buildah"))
        peer("from", "--name", "base", "scratch")
        peer("add", "base", world.debian(), "/")
        peer("commit", "--rm", "base", "debian:latest")
    except Unavailable as error:
        return _raising(error)
    words = ["bud", "--layers", "--pull-never", "--network", "none", "-t", "built", str(context)]
    return lambda: peer.timed(*words)


def _docker(world: World, stack: ExitStack, context: Path) -> Callable[[], float]:
    try:
        peer = stack.enter_context(peers.docker(stack.enter_context(world.disk()) / "docker"))
        peer("import", world.debian(), "debian:latest")
    except Unavailable as error:
        return _raising(error)
    return lambda: peer.timed("build", "--network", "none", "-t", "built", context)


def _raising(error: Unavailable) -> Callable[[], float]:
    def take() -> float:
        raise error

    return take
