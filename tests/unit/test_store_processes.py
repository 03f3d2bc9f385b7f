"""Publishers, a remover, collectors and openers at once, in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from storekit import Files, du, put_container, put_image

from layerstore.errors import ConflictError
from layerstore.names import ImageRef
from layerstore.store import fsck, gc
from layerstore.store.store import Store
from layerstore.store.trees import lower_directories

SECONDS = 4.0
POOL = [b"%d" % number * 500 for number in range(12)]
"""Few contents, so that most of what is published is a hit on what is being collected."""


def some_files(random: Random) -> Files:
    return {f"f{n}": content for n, content in enumerate(random.sample(POOL, 3))}


def publisher(root: Path, number: int, deadline: float) -> int:
    """Publishes, looks at each object of what it published, and removes the name again."""
    random = Random(number)
    name = f"image{number}"
    done = 0
    while time.monotonic() < deadline:
        store = Store.open(root)
        image_id = put_image(store, name, some_files(random), some_files(random))
        check_image(store, name)
        if done % 4 == 0:
            lower_directories(store, store.images.get(image_id).diff_ids)
            put_container(store, f"c{number}", f"name{number}", image_id)
        store.refs.delete(ImageRef.parse(name))
        if done % 4 == 0:
            for diff_id in store.containers.get(f"c{number}").diff_ids:
                assert store.layers.has(diff_id)
            store.containers.remove(f"c{number}")
        done += 1
    put_image(Store.open(root), f"last{number}", some_files(random))
    return done


def check_image(store: Store, name: str) -> None:
    for diff_id in store.images.find(name).diff_ids:
        for entry in store.layers.entries(diff_id):
            assert entry.digest is None or store.objects.has(entry.digest, entry.size)


def collector(root: Path, number: int, deadline: float) -> int:
    swept = 0
    while time.monotonic() < deadline:
        store = Store.open(root)
        plan = gc.plan(store)
        with suppress(ConflictError):
            gc.sweep(store, plan)
            swept += len(plan.objects)
    return swept


def run(work: Callable[[Path, int, float], int], root: Path, number: int, report: object) -> None:
    try:
        done = work(root, number, time.monotonic() + SECONDS)
    except BaseException as error:
        done = -1
        print(repr(error))
    os.write(report, b"%d\n" % done)  # type: ignore[arg-type]


@pytest.mark.parametrize("creators", [False, True], ids=["in a store", "in a store to be made"])
def test_many_processes_at_once_leave_no_name_that_dangles(tmp_path: Path, creators: bool) -> None:
    root = tmp_path / "store"
    if not creators:
        Store.open(root)
    context = multiprocessing.get_context("fork")
    reader, writer = os.pipe()
    works = [publisher, publisher, publisher, collector, collector]
    processes = [
        context.Process(target=run, args=(work, root, number, writer))
        for number, work in enumerate(works)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    counts = [int(line) for line in os.read(reader, 1000).split()]
    os.close(reader)
    os.close(writer)
    assert len(counts) == len(works) and min(counts) >= 0, counts

    store = Store.open(root)
    assert fsck.check(store, read_data=True).problems == ()
    for number in range(3):
        check_image(store, f"last{number}")
        store.refs.delete(ImageRef.parse(f"last{number}"))
    gc.sweep(store, gc.plan(store))
    assert [*store.objects.all(), *store.layers.all(), *store.images.all()] == []
    assert all(not os.listdir(store.layout.folder(name)) for name in ("tmp", "leases", "trash"))
    assert os.listdir(store.layout.folder("quarantine")) == []
    fresh = Store.open(tmp_path / "fresh")
    assert abs(du(root) - du(fresh.layout.root)) <= 16384  # staging folders may have grown
