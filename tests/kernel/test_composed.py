"""The composed driver's images: made once whoever asks, and never on top of a damaged object."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from abilities import needs_overlay, needs_root

from layerstore import rootfs
from layerstore.api import Layerstore
from layerstore.errors import DamagedError
from layerstore.names import ImageRef
from layerstore.store.composed import composed
from layerstore.store.store import Store

pytestmark = [needs_root, needs_overlay]


@pytest.fixture
def store(tmp_path: Path) -> Layerstore:
    """A store with one image of a directory with two files."""
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "d" / "big").write_bytes(b"content " * 1000)
    (root / "small").write_bytes(b"small")
    found = Layerstore(tmp_path / "store")
    found.import_root(root, ImageRef("image"))
    return found


def make(root: Path) -> None:
    store = Store.open(root)
    composed(store, store.images.find("image").diff_ids)


def test_processes_that_make_the_same_image_at_once_agree(store: Layerstore) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=make, args=(store.settings.root,)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    names = sorted(path.suffix for path in (store.settings.root / "composed").iterdir())
    assert names == [".erofs", ".facts"]
    assert os.listdir(store.settings.root / "tmp") == []


def test_an_image_whose_facts_are_damaged_is_made_again(store: Layerstore) -> None:
    diff_ids = store.store.images.find("image").diff_ids
    before = composed(store.store, diff_ids)
    facts = next((store.settings.root / "composed").glob("*.facts"))
    content = before.image.read_bytes()
    facts.write_bytes(facts.read_bytes()[:-1])
    after = composed(store.store, diff_ids)
    assert (after, after.image.read_bytes()) == (before, content)


@pytest.mark.parametrize("driver", [rootfs.COMPOSED, rootfs.STACKED])
@pytest.mark.parametrize("damage", ["missing", "shorter"])
def test_a_damaged_object_is_named_and_an_import_heals_it(
    store: Layerstore, tmp_path: Path, driver: str, damage: str
) -> None:
    image = store.store.images.find("image")
    entries = store.store.layers.entries(image.diff_ids[0])
    digest = next(entry.digest for entry in entries if entry.path == b"d/big")
    assert digest is not None
    path = store.store.layout.object(digest)
    path.unlink()
    if damage == "shorter":
        path.write_bytes(b"content")
    with pytest.raises(DamagedError) as caught:
        rootfs.overlay(store.store, image.diff_ids, driver=driver)
    assert digest in caught.value.brief and "'/d/big'" in caught.value.brief
    store.import_root(tmp_path / "root", ImageRef("image"))
    rootfs.overlay(store.store, image.diff_ids, driver=driver)
    assert store.check(read_data=True).problems == ()
