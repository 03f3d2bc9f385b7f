"""What images take on disk, and how long it takes to look after a store."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks import peers
from benchmarks.harness import OURS, Contender, Scenario, Target, Unavailable
from benchmarks.places import World, check, disk_usage, timed

_IMAGES = 10
_OBJECTS = 50_000


def storesize(world: World) -> Generator[Scenario, None, None]:
    """Ten roots that differ in one file each, and so share no layer."""
    with ExitStack() as stack:
        disk = stack.enter_context(world.disk("16G"))
        variants = [_variant(world.debian(), disk / f"{n}.tar", n) for n in range(_IMAGES)]
        one, all_of_them = "one image", f"{_IMAGES} images"

        def growing(put: Callable[[Path, str], object], size: Callable[[], int]) -> _Measure:
            def take() -> Mapping[str, float]:
                put(variants[0], "image0")
                first = size()
                for number, variant in enumerate(variants[1:], 1):
                    put(variant, f"image{number}")
                return {one: first, all_of_them: size()}

            return take

        store = disk / "store"
        layerstore = [str(world.installed() / "layerstore"), "--root", str(store)]
        contenders = [
            Contender(
                OURS,
                growing(
                    lambda tar, name: check([*layerstore, "import", str(tar), name]),
                    lambda: disk_usage(store),
                ),
            )
        ]
        for name, start in (("docker", peers.docker), ("podman", peers.podman)):
            try:
                peer = stack.enter_context(start(stack.enter_context(world.disk("16G")) / name))
            except Unavailable as error:
                contenders.append(Contender(name, _raising(error)))
            else:
                contenders.append(Contender(name, growing(_importing(peer), peer.stored)))
        sizes = [variant.stat().st_size for variant in variants]
        contenders.append(Contender("the tars", lambda: {one: sizes[0], all_of_them: sum(sizes)}))
        targets = [Target(all_of_them, 0.75, name) for name in ("docker", "podman")]
        targets.append(Target(one, 1.1, "docker"))
        yield Scenario(contenders, targets, rounds=1, units={one: "B", all_of_them: "B"})


_Measure = Callable[[], Mapping[str, float]]


def _importing(peer: peers.Peer) -> Callable[[Path, str], object]:
    return lambda tar, name: peer("import", tar, name)


def _variant(tar: Path, path: Path, number: int) -> Path:
    """The same root with one more file, so that its layer has another digest."""
    shutil.copyfile(tar, path)
    with tarfile.open(path, "a") as archive:
        content = f"variant {number}\n".encode() * 20
        file = tarfile.TarInfo("etc/variant")
        file.size = len(content)
        archive.addfile(file, io.BytesIO(content))
    return path


def _raising(error: Unavailable) -> _Measure:
    def take() -> Mapping[str, float]:
        raise error

    return take


# -- upkeep --------------------------------------------------------------------------------------


def upkeep(world: World) -> Generator[Scenario, None, None]:
    """df, plans of rmi and gc, and fsck of a store with 50,000 objects."""
    with world.disk() as disk, world.worker() as worker:
        store = disk / "store"
        worker("synthetic", store=store, objects=_OBJECTS)
        command = [str(world.installed() / "layerstore"), "--root", str(store), "df"]

        def take() -> Mapping[str, float]:
            took: dict[str, float] = dict(worker("store_work", store=store))
            return took | {"df, whole command": timed(command)}

        targets = [Target("df", 0.1)]
        yield Scenario([Contender(OURS, take)], targets, rounds=5, warmups=1)
