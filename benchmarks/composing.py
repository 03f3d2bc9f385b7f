"""Roots: merging layers into one image, mounting it, reading through it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack

from benchmarks.harness import OURS, Contender, Scenario, Target, Unavailable
from benchmarks.places import Worker, World, check


def compose(world: World) -> Generator[Scenario, None, None]:
    """The merged image, mounts of stacks of 1 to 200 layers, warm reads."""
    with ExitStack() as stack:
        disk = stack.enter_context(world.disk())
        worker = stack.enter_context(world.worker())
        store = str(disk / "store")
        layerstore = [str(world.installed() / "layerstore"), "--root", store]
        tar = world.debian()
        check([*layerstore, "import", str(tar), "debian-1"])
        depths = (1, 10, 60, 200)
        for depth in depths[1:]:
            worker("layered", store=store, base="debian-1", name=f"debian-{depth}", count=depth)
        for depth in (1, 200):
            case = f"merged image of {depth} layers, an entry"
            target = Target(case, 12e-6)
            contender = Contender(OURS, _merging(worker, store, f"debian-{depth}", case))
            yield Scenario([contender], [target], rounds=5, warmups=1)
        for depth in depths:
            case = f"mount of a cached root of {depth} layers"
            contenders = [
                Contender(name, _mounting(worker, store, f"debian-{depth}", driver, case))
                for name, driver in ((OURS, "composed"), ("stacked driver", "stacked"))
            ]
            yield Scenario(contenders, [Target(case, 0.005)], rounds=10, warmups=1)

        plain, merged = disk / "plain", disk / "merged"
        plain.mkdir()
        merged.mkdir()
        check(["tar", "-x", "-p", "--numeric-owner", "-f", str(tar), "-C", str(plain)])
        check([*layerstore, "mount", "debian-1", str(merged)])
        stack.callback(check, [*layerstore, "umount", str(merged)])
        case = "warm read of all files"
        contenders = [
            Contender(name, _reading(worker, str(where), case))
            for name, where in ((OURS, merged), ("plain directory", plain))
        ]
        target = Target(case, 1.1, "plain directory")
        yield Scenario(contenders, [target], rounds=10, warmups=2)


def _merging(
    worker: Worker, store: str, image: str, case: str
) -> Callable[[], Mapping[str, float]]:
    def take() -> Mapping[str, float]:
        took = worker("merge", store=store, image=image)
        return {case: took["seconds"] / took["entries"]}

    return take


def _mounting(
    worker: Worker, store: str, image: str, driver: str, case: str
) -> Callable[[], Mapping[str, float]]:
    return lambda: {case: worker("mount", store=store, image=image, driver=driver)}


def _reading(worker: Worker, where: str, case: str) -> Callable[[], Mapping[str, float]]:
    def take() -> Mapping[str, float]:
        took = worker("read_all", directory=where)
        if not took:
            raise Unavailable("nothing to read")
        return {case: took}

    return take
