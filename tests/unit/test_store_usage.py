"""Where every byte is: totals that equal du, and exact sets."""

from __future__ import annotations

import json
import os
from itertools import chain, combinations
from pathlib import Path

import pytest
from storekit import (
    config_of,
    copy_store,
    du,
    make_deep,
    put_container,
    put_five_images,
    put_image,
)

from layerstore.errors import NotFoundError
from layerstore.formats.entries import Entry, Kind
from layerstore.formats.sparse import SPARSE_HOLES
from layerstore.names import Digest, ImageID, ImageRef
from layerstore.store import cache, deep, gc, usage
from layerstore.store.layers import stage_entries
from layerstore.store.store import Store
from layerstore.store.trees import lower_directories

SIZES = [(3_000_000, 500_000, 70_000), (200_000, 210_000, 4_097)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def fill(store: Store) -> dict[str, ImageID]:
    """Something of every kind that a store holds."""
    images = put_five_images(store, *SIZES[0])
    lower_directories(store, store.images.get(images["b"]).diff_ids)
    folder = put_container(store, "c1", "web", images["a"])
    (folder / "upper" / "changed").write_bytes(b"x" * 10_000)
    os.link(folder / "upper" / "changed", folder / "upper" / "again")
    cache.Cache(store.layout).put(Digest.of(b"key"), cache.Record(None, 0, 0, 0.0))
    for name in ("quarantine/damaged", "derived/table", "stray"):
        (store.layout.root / name).write_bytes(b"x" * 5000)
    (store.layout.folder("trash") / "old").mkdir()
    return images


def test_the_total_is_what_du_says_and_the_classes_sum_up_to_it(store: Store) -> None:
    fill(store)
    with store.transaction() as transaction:
        transaction.stage(b"staged" * 10_000)
        with transaction.writer() as writer:
            writer.write(b"staged" * 10_000)
            found = usage.measure(store)
            assert found.physical == du(store.layout.root)
    assert found.adds_up
    assert sum(amount.physical for amount in found.classes.values()) == found.physical
    assert sum(amount.inodes for amount in found.classes.values()) == found.inodes
    assert found.open_transactions == 1
    empty = [name for name, amount in found.classes.items() if not amount.inodes]
    assert empty == ["mounts", "trash"]  # a directory in the trash counts as a directory
    assert found.classes["orphans"] == usage.Amount(8192, 1)
    assert found.classes["staging"].physical == 61_440


def test_a_container_deeper_than_paths_is_counted(store: Store) -> None:
    image_id = put_image(store, "image", {"a": b"1"})
    folder = put_container(store, "c1", "web", image_id)
    make_deep(folder / "upper" / "deep", 300)
    found = usage.measure(store)
    assert found.physical == du(store.layout.root)
    assert found.containers[0].upper == du(folder / "upper")
    deep.remove_tree(folder / "upper")


def test_each_image_has_its_sizes(store: Store) -> None:
    large, further, small = SIZES[0]
    images = put_five_images(store, large, further, small)
    found = {str(i.names[0]): i for i in usage.measure(store).images}
    assert {name: (i.apparent, i.stored, i.exclusive, i.shared) for name, i in found.items()} == {
        "base:latest": (small, small, 0, small),
        "a:latest": (small + large, small + large, 0, small + large),
        "b:latest": (small + large + further,) * 2 + (0, small + large + further),
        "c:latest": (small + further, small + further, 0, small + further),
        "d:latest": (large, large, 0, large),
    }
    b = store.images.get(images["b"])
    assert usage.sizes_of(store, b) == (small + large + further,) * 2


def test_what_a_layer_hides_is_stored_and_not_apparent(store: Store) -> None:
    with store.transaction() as transaction:
        first = stage_entries(transaction, [
            Entry(b"a", Kind.FILE, 0o644, size=5, digest=transaction.stage(b"first")),
            Entry(b"b", Kind.HARDLINK, link=b"a"),
            Entry(b"d", Kind.DIRECTORY, 0o755),
            Entry(b"l", Kind.SYMLINK, 0o777, link=b"a/target"),
        ])  # fmt: skip
        second = stage_entries(transaction, [
            Entry(b"a", Kind.FILE, 0o644, size=6, digest=transaction.stage(b"second")),
        ])  # fmt: skip
        image_id = transaction.stage_image(config_of([first.diff_id, second.diff_id]))
        transaction.publish({ImageRef.parse("image"): image_id})
    # a: 6, b: still the 5 bytes of the lower a, l: 8, d: 0
    assert usage.sizes_of(store, store.images.get(image_id)) == (6 + 5 + 8, 5 + 6)


def test_holes_are_apparent_and_not_stored(store: Store) -> None:
    size = 2 * SPARSE_HOLES
    extents = ((8192, 4),)
    with store.transaction() as transaction:
        with transaction.writer(extents, size) as writer:
            writer.write(b"data")
            digest = writer.finish()
        stored = stage_entries(transaction, [
            Entry(b"disk", Kind.FILE, 0o644, size=size, digest=digest, extents=extents),
        ])  # fmt: skip
        image_id = transaction.stage_image(config_of([stored.diff_id]))
        transaction.publish({ImageRef.parse("image"): image_id})
    assert usage.sizes_of(store, store.images.get(image_id)) == (size, 4)
    (image,) = usage.measure(store).images
    assert (image.apparent, image.stored, image.exclusive) == (size, 4, 4)


def test_an_image_with_two_names_has_two_rows_and_is_counted_once(store: Store) -> None:
    image_id = put_image(store, "one", {"a": b"x" * 5000})
    with store.transaction() as transaction:
        transaction.publish({ImageRef.parse("two"): image_id})
    found = usage.measure(store)
    assert [(str(name), i.exclusive) for i in found.images for name in i.names] == [
        ("one:latest", 5000), ("two:latest", 5000),
    ]  # fmt: skip
    assert usage.exclusive_of(found, [image_id]) == 5000
    rows = found.to_json()["images"]
    assert [row["name"] for row in rows] == ["one:latest", "two:latest"]
    assert {row["image_id"] for row in rows} == {str(image_id)}


def test_the_json_has_what_scripts_rely_on(store: Store) -> None:
    images = fill(store)
    document = json.loads(json.dumps(usage.measure(store).to_json()))
    assert document["schema"] == "layerstore.df/1"
    assert document["store"]["physical"] == du(store.layout.root)
    assert document["store"]["adds_up"] is True
    assert [row["name"] for row in document["images"]].count("a:latest") == 1
    (row,) = [row for row in document["images"] if row["name"] == "a:latest"]
    assert row["image_id"] == str(images["a"])
    assert row["shared"] == row["stored"] - row["exclusive"]
    assert row["pinned_by"] == ["container web"]
    (container,) = document["containers"]
    assert container["name"] == "web" and container["upper"] == 4096 + 12288


@pytest.mark.parametrize("sizes", SIZES, ids=["far apart", "close"])
def test_what_removing_any_set_of_images_frees_is_known_to_the_byte(
    store: Store, tmp_path: Path, sizes: tuple[int, int, int]
) -> None:
    images = put_five_images(store, *sizes)
    for name in ("b", "c"):
        lower_directories(store, store.images.get(images[name]).diff_ids)
    found = usage.measure(store)
    before = du(store.layout.root)
    names = sorted(images)
    for subset in chain.from_iterable(combinations(names, k) for k in range(6)):
        chosen = [images[name] for name in subset]
        copy = copy_store(store, tmp_path / "copy")
        plan = gc.plan_removal(copy, chosen)
        for name in subset:
            copy.refs.delete(ImageRef.parse(name))
        gc.sweep(copy, plan)
        freed = before - du(copy.layout.root)
        assert (plan.freed, usage.freed_by(found, chosen)) == (freed, freed), subset
        assert gc.plan(copy).freed == 0, subset
        assert sorted(str(ref.name) for ref in copy.refs.all()) == sorted(set(names) - set(subset))
        for name in set(names) - set(subset):
            assert b"".join(
                chunk
                for diff_id in copy.images.find(name).diff_ids
                for chunk in copy.layers.tar(diff_id)
            )
        deep.remove_tree(tmp_path / "copy")


def test_a_set_frees_more_than_its_members_apart(store: Store) -> None:
    large, further, small = SIZES[0]
    images = put_five_images(store, large, further, small)
    found = usage.measure(store)
    assert usage.exclusive_of(found, [images["a"], images["b"]]) == 0
    assert usage.exclusive_of(found, [images["a"], images["b"], images["d"]]) == large
    assert usage.exclusive_of(found, images.values()) == large + further + small
    with pytest.raises(NotFoundError):
        usage.exclusive_of(found, [ImageID.of(b"none")])


def test_what_a_container_or_a_transaction_holds_is_not_promised(store: Store) -> None:
    image_id = put_image(store, "held", {"a": b"x" * 5000})
    other = put_image(store, "leased", {"b": b"y" * 5000})
    put_container(store, "c1", "web", image_id)
    with store.transaction() as transaction:
        transaction.lease(list(store.images.get(other).diff_ids))
        found = usage.measure(store)
        assert found.pins == ("container web", "running transactions")
        assert usage.exclusive_of(found, [image_id, other]) == 0
        plan = gc.plan_removal(store, [image_id, other])
        assert plan.freed == usage.freed_by(found, [image_id, other])
        assert (plan.images, plan.layers, plan.objects) == ((other,), (), ())


def test_damage_lowers_numbers_and_is_named(store: Store) -> None:
    images = put_five_images(store, *SIZES[1])
    good = usage.measure(store)
    layer = store.images.get(images["b"]).diff_ids[2]
    (store.layout.layer(layer) / "entries").write_bytes(b"")
    store.layout.image(images["d"]).write_bytes(b"{}")
    found = usage.measure(store)
    assert found.physical == du(store.layout.root) and found.adds_up
    assert len(found.unreadable) == 2
    assert {i.names[0].name for i in found.images} == {"base", "a", "b", "c"}
    expected = {i.image_id: i.apparent for i in good.images}
    assert {i.names[0].name for i in found.images if i.apparent != expected[i.image_id]} == {"b"}


def test_measuring_many_objects_is_cheap(store: Store) -> None:
    """A bound that a walk of two passes or a read of contents would break many times over."""
    import time

    put_image(store, "many", {f"f{n}": b"%d" % n for n in range(5000)})
    began = time.perf_counter()
    usage.measure(store)
    assert time.perf_counter() - began < 2
