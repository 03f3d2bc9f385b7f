"""``run --rm --network none IMAGE true``: the whole process, and from a running Python."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks import peers
from benchmarks.harness import OURS, Contender, Scenario, Target, Unavailable
from benchmarks.places import World, check, timed, tool

IMAGE = "debian"


def launch(world: World) -> Generator[Scenario, None, None]:
    """Containers, back to back and with idleness between."""
    with ExitStack() as stack:
        disk = stack.enter_context(world.disk())
        tar = world.debian()
        binaries = world.installed()
        store = disk / "store"
        check([str(binaries / "layerstore"), "--root", str(store), "import", str(tar), IMAGE])
        contenders = {OURS: _ours(binaries, store), **_peers(stack, disk, tar)}
        python = str(binaries / "python")
        contenders["python -I -S -c pass"] = lambda: timed([python, "-I", "-S", "-c", "pass"])
        limits = {OURS: 0.025, "crun": 0.75, "runc": 0.5, "podman": 0.15, "docker": 0.1}
        for case, gap in (("back to back", 0.0), ("gaps of 100 ms", 0.1)):
            yield Scenario(
                [Contender(name, _once(case, take)) for name, take in contenders.items()],
                [Target(case, limit, None if name == OURS else name)
                 for name, limit in limits.items()],
                rounds=10, warmups=1, gap=gap,
            )  # fmt: skip
        with world.worker() as worker:
            take = lambda: float(worker("launch", store=store, image=IMAGE))  # noqa: E731
            for case, gap in (("from Python", 0.0), ("from Python, gaps", 0.1)):
                contender = Contender(OURS, _once(case, take))
                limit = Target(case, 0.007)
                yield Scenario([contender], [limit], rounds=20, warmups=2, gap=gap)


def _once(case: str, take: Callable[[], float]) -> Callable[[], Mapping[str, float]]:
    return lambda: {case: take()}


def _ours(binaries: Path, store: Path) -> Callable[[], float]:
    command = [str(binaries / "layerstore"), "--root", str(store), "run", "--rm"]
    return lambda: timed([*command, "--network", "none", IMAGE, "true"])


def _peers(stack: ExitStack, disk: Path, tar: Path) -> dict[str, Callable[[], float]]:
    """Each peer with the same image. One that is missing says so when it is called."""
    found: dict[str, Callable[[], float]] = {}
    numbers = itertools.count()
    try:
        bundle = peers.bundle(disk / "bundle", tar)
    except Unavailable as error:
        found |= dict.fromkeys(("crun", "runc", "bwrap"), _raising(error))
    else:
        for name in ("crun", "runc"):
            found[name] = _runtime(name, bundle, disk / name, numbers)
        root = str(bundle / "rootfs")
        words = ["--unshare-all", "--bind", root, "/", "--proc", "/proc", "--dev", "/dev", "true"]
        found["bwrap"] = lambda: timed([tool("bwrap"), *words])
    for name, start in (("podman", peers.podman), ("docker", peers.docker)):
        try:
            peer = stack.enter_context(start(disk / name))
            peer("import", tar, IMAGE)
        except Unavailable as error:
            found[name] = _raising(error)
        else:
            found[name] = _engine(peer, _LIMITS if name == "podman" else ())
    return found


_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
"""podman raises both by default, which a host may forbid."""


def _engine(peer: peers.Peer, options: tuple[str, ...]) -> Callable[[], float]:
    return lambda: peer.timed("run", "--rm", "--network", "none", *options, IMAGE, "true")


def _runtime(name: str, bundle: Path, state: Path, numbers: Iterator[int]) -> Callable[[], float]:
    def take() -> float:
        command = [tool(name), "--root", str(state), "run", "--bundle", str(bundle)]
        return timed([*command, f"bench-{name}-{next(numbers)}"])

    return take


def _raising(error: Unavailable) -> Callable[[], float]:
    def take() -> float:
        raise error

    return take
