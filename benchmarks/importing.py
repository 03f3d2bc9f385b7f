"""Import of a Debian root: new, and with every content in the store already."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from random import Random

from benchmarks import peers
from benchmarks.harness import OURS, Contender, Scenario, Target, Unavailable
from benchmarks.places import World, check, timed


def imports(world: World) -> Generator[Scenario, None, None]:
    """A 170 MB tar of some 9,000 entries, each time on a fresh disk."""
    tar = world.debian()
    binaries = world.installed()
    new, known = "new", "all contents known"

    def ours() -> Mapping[str, float]:
        with world.disk("4G") as disk:
            command = [str(binaries / "layerstore"), "--root", str(disk / "store")]
            check([*command, "images"])
            words = [*command, "import", str(tar), "debian"]
            return {new: timed(words), known: timed(words)}

    def unpacking(after: str) -> Callable[[], Mapping[str, float]]:
        def take() -> Mapping[str, float]:
            with world.disk("4G") as disk:
                script = f'tar -x -p --numeric-owner -f "$0" -C "$1"{after}'
                return {new: timed(["sh", "-ec", script, str(tar), str(disk)])}

        return take

    with ExitStack() as stack:
        contenders = [
            Contender(OURS, ours),
            Contender("tar x", unpacking("")),
            Contender("tar x, sync", unpacking('; sync -f "$1"')),
        ]
        for name, start in (("docker", peers.docker), ("podman", peers.podman)):
            home = stack.enter_context(world.disk()) / name
            try:
                peer = stack.enter_context(start(home))
            except Unavailable as error:
                contenders.append(Contender(name, _unavailable(error)))
            else:
                contenders.append(Contender(name, _engine(peer, tar, new)))
        targets = [Target(new, 1.0), Target(new, 1.2, "tar x"), Target(known, 0.4)]
        yield Scenario(contenders, targets, rounds=4)
        yield _memory(world, stack)


def _engine(peer: peers.Peer, tar: Path, case: str) -> Callable[[], Mapping[str, float]]:
    def take() -> Mapping[str, float]:
        took = peer.timed("import", tar, "debian")
        peer("rmi", "debian")
        return {case: took}

    return take


def _unavailable(error: Unavailable) -> Callable[[], Mapping[str, float]]:
    def take() -> Mapping[str, float]:
        raise error

    return take


# -- memory --------------------------------------------------------------------------------------


def _memory(world: World, stack: ExitStack) -> Scenario:
    """The most memory that a layer of 100,000 entries takes, in either direction."""
    disk = stack.enter_context(world.disk())
    tar = disk / "many.tar"
    write_many(tar, 100_000)
    (disk / "tree").mkdir()
    check(["tar", "-x", "-p", "-f", str(tar), "-C", str(disk / "tree")])
    of_import, of_diff = "peak memory, import of 100,000", "peak memory, diff of 100,000"

    def take() -> Mapping[str, float]:
        with world.worker() as worker:
            imported = worker("peak_of_import", store=disk / "store", tar=tar)
        with world.worker() as worker:
            read = worker("peak_of_diff", directory=disk / "tree")
        return {of_import: imported, of_diff: read}

    targets = [Target(of_import, 200e6), Target(of_diff, 200e6)]
    units = {of_import: "B", of_diff: "B"}
    return Scenario([Contender(OURS, take)], targets, rounds=1, units=units)


def write_many(path: Path, count: int) -> None:
    """A tar of ``count`` small files, 100 to a directory, each with a content of its own."""
    random = Random(1)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for number in range(count):
            if number % 100 == 0:
                folder = tarfile.TarInfo(f"d{number // 100}")
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(folder)
            file = tarfile.TarInfo(f"d{number // 100}/file{number}")
            file.size, file.mode = 100, 0o644
            archive.addfile(file, BytesIO(random.randbytes(100)))
