"""What a container changed becomes a layer: in-process, beyond mount and change themselves."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Mapping

from benchmarks.harness import OURS, Contender, Scenario, Target
from benchmarks.places import Worker, World, check

_MANY = 20_000


def changes(world: World) -> Generator[Scenario, None, None]:
    """diff and commit of one file, of metadata alone, of a moved tree, of many new files."""
    with world.disk() as disk, world.worker() as worker:
        store = str(disk / "store")
        layerstore = [str(world.installed() / "layerstore"), "--root", store]
        check([*layerstore, "import", str(world.debian()), "debian"])
        numbers = itertools.count()

        def one() -> Mapping[str, float]:
            script = f'echo changed {next(numbers)} >> "$ROOT/etc/passwd"'
            took = worker("changed", store=store, image="debian", script=script)
            return {
                "one file: parent tree read": took["tree"],
                "one file: diff": took["diff"],
                "one file: commit, durable": took["commit"],
            }

        targets = [Target("one file: diff", 0.010), Target("one file: commit, durable", 0.050)]
        yield Scenario([Contender(OURS, one)], targets, rounds=10, warmups=1)
        for title, script in (
            ("chown -R /usr", 'chown -hR 1000:1000 "$ROOT/usr"'),
            ("mv /usr/share /x", 'mv "$ROOT/usr/share" "$ROOT/x"'),
        ):
            yield _metadata(worker, store, title, script)
        yield _many(worker, store, numbers)


def _metadata(worker: Worker, store: str, title: str, script: str) -> Scenario:
    of_diff, of_commit = f"{title}: diff, an entry", f"{title}: commit, an entry"
    added = f"{title}: content added"

    def take() -> Mapping[str, float]:
        took = worker("changed", store=store, image="debian", script=script)
        count = took["entries"]
        return {
            of_diff: took["diff"] / count,
            of_commit: took["commit"] / count,
            added: took["added"],
        }

    targets = [Target(of_diff, 20e-6), Target(added, 0)]
    return Scenario([Contender(OURS, take)], targets, rounds=3, warmups=1, units={added: "B"})


def _many(worker: Worker, store: str, numbers: Iterator[int]) -> Scenario:
    of_diff, of_commit = "20,000 new files: diff, a file", "20,000 new files: commit, a file"

    def take() -> Mapping[str, float]:
        number = next(numbers)
        # seq and split: two processes instead of 20,000.
        script = (
            f'mkdir "$ROOT/many"; cd "$ROOT/many"; seq -f "%030.0f {number}" {_MANY * 20}'
            " | split -a 5 -d -l 20"
        )
        took = worker("changed", store=store, image="debian", script=script)
        return {of_diff: took["diff"] / _MANY, of_commit: took["commit"] / _MANY}

    targets = [Target(of_diff, 40e-6), Target(of_commit, 40e-6)]
    return Scenario([Contender(OURS, take)], targets, rounds=3)
