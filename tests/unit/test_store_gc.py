"""A collection takes what nothing needs, nothing else, and needs no space for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from abilities import needs_root
from storekit import config_of, du, put_container, put_image, run_with_mount, stage_files

from layerstore.errors import ConflictError
from layerstore.names import ImageRef
from layerstore.store import cache, fsck, gc, locks
from layerstore.store.layout import BALLAST_BYTES
from layerstore.store.store import Store
from layerstore.store.trees import all_stacks, lower_directories


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def test_a_store_with_no_images_left_is_as_large_as_a_new_one(store: Store) -> None:
    empty = du(store.layout.root)
    for number in range(20):
        image_id = put_image(store, f"image{number}", {f"f{n}": b"%d" % n * 3000 for n in range(9)})
        lower_directories(store, store.images.get(image_id).diff_ids)
        store.refs.delete(ImageRef.parse(f"image{number}"))
    cache.Cache(store.layout).put(image_id, cache.Record(None, 0, 0, 0.0))
    plan = gc.plan(store)
    used = du(store.layout.root)
    gc.sweep(store, plan)
    assert used - du(store.layout.root) == plan.freed
    assert du(store.layout.root) == empty
    assert len(plan.images) == 1 and len(plan.layers) == 1 and len(plan.objects) == 9
    assert len(plan.trees) == 1 and len(plan.tables) == 1 and len(plan.cache) == 1


@pytest.mark.parametrize("root", ["ref", "container", "lease", "layer lease", "object lease"])
def test_whatever_a_root_reaches_stays(store: Store, root: str) -> None:
    image_id = put_image(store, "image", {"a": b"content"}, {"b": b"more"})
    diff_ids = store.images.get(image_id).diff_ids
    lower_directories(store, diff_ids)
    objects = [digest for digest, _ in store.objects.all()]
    if root == "container":
        put_container(store, "c1", "web", image_id)
    with store.transaction() as transaction:
        if root == "lease":
            transaction.lease([image_id])
        elif root == "layer lease":
            transaction.lease(list(diff_ids))
        elif root == "object lease":
            transaction.lease(objects)
        if root != "ref":
            store.refs.delete(ImageRef.parse("image"))
        plan = gc.plan(store)
        gc.sweep(store, plan)
        assert plan.objects == ()
        assert [digest for digest, _ in store.objects.all()] == objects
        is_record_kept = root != "object lease"
        assert bool(store.layers.all()) == bool(os.listdir(store.layout.folder("trees")))
        assert bool(store.layers.all()) == is_record_kept
        assert store.images.all() == ([] if "e" in root[:6] and " " in root else [image_id])


def test_a_build_keeps_the_lower_directories_of_a_stack_without_an_image(store: Store) -> None:
    with store.transaction() as transaction:
        layers = tuple(stage_files(transaction, {"f": b"%d" % n}) for n in range(3))
        transaction.publish()
        lowers = lower_directories(store, layers)
        gc.sweep(store, gc.plan(store))
        assert all((lower / "f").exists() for lower in lowers)
    gc.sweep(store, gc.plan(store))
    assert not any(lower.exists() for lower in lowers)
    assert all_stacks(store.layout) == []


def test_a_plan_that_is_out_of_date_takes_nothing_that_is_needed_now(store: Store) -> None:
    image_id = put_image(store, None, {"a": b"content"})
    plan = gc.plan(store)
    assert len(plan.objects) == 1 and plan.images == (image_id,)
    put_image(store, "image", {"a": b"content"})
    gc.sweep(store, plan)
    assert fsck.check(store, read_data=True).problems == ()
    assert store.images.find("image").image_id == image_id


def test_removing_one_of_two_names_frees_the_name_alone(store: Store) -> None:
    image_id = put_image(store, "one", {"a": b"x" * 5000})
    two = ImageRef.parse("two")
    with store.transaction() as transaction:
        transaction.publish({two: image_id})
    used = du(store.layout.root)
    plan = gc.plan_removal(store, [], refs=[two])
    store.refs.delete(two)
    gc.sweep(store, plan)
    assert used - du(store.layout.root) == plan.freed
    assert store.images.find("one").image_id == image_id


def test_only_one_collection_runs_at_a_time(store: Store) -> None:
    guard = locks.open_lock(store.layout.root / "gc")
    assert locks.try_lock(guard)
    try:
        with pytest.raises(ConflictError, match="another collection is running"):
            gc.sweep(store, gc.GcPlan())
    finally:
        os.close(guard)
    gc.sweep(store, gc.GcPlan())


# -- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["ref", "config", "entries", "container"])
def test_damage_elsewhere_keeps_no_image_from_being_removed(store: Store, what: str) -> None:
    good = put_image(store, "good", {"a": b"good" * 2000})
    bad = put_image(store, "bad", {"b": b"bad" * 2000})
    folder = put_container(store, "c1", "web", bad)
    path = {
        "ref": store.layout.ref(ImageRef.parse("bad")),
        "config": store.layout.image(bad),
        "entries": store.layout.layer(store.images.get(bad).diff_ids[0]) / "entries",
        "container": folder / "config.json",
    }[what]
    path.write_bytes(b"")

    plan = gc.plan_removal(store, [good])
    assert len(plan.unreadable) == 1
    store.refs.delete(ImageRef.parse("good"))
    gc.sweep(store, plan)
    gc.sweep(store, gc.plan(store))
    # Nothing that the damaged thing may have reached is lost.
    assert {p.name for p in store.layout.objects.glob("*/*")} >= {
        digest.hex[2:] for digest, status in store.objects.all() if status.st_size == 6000
    }
    assert any(status.st_size == 6000 for _, status in store.objects.all())

    fsck.repair(store, fsck.check(store))
    if what == "container":
        store.containers.remove("c1")
    gc.sweep(store, gc.plan(store))
    assert gc.plan(store).unreadable == ()
    assert not any(status.st_size == 8000 for _, status in store.objects.all())


def test_a_damaged_image_can_itself_be_removed(store: Store) -> None:
    empty = du(store.layout.root)
    bad = put_image(store, "bad", {"b": b"bad" * 2000})
    (store.layout.layer(store.images.get(bad).diff_ids[0]) / "entries").write_bytes(b"")
    plan = gc.plan_removal(store, [bad])
    store.refs.delete(ImageRef.parse("bad"))
    gc.sweep(store, plan)
    gc.sweep(store, gc.plan(store))
    assert du(store.layout.root) == empty


def test_a_throwaway_container_whose_record_a_power_cut_took_goes(store: Store) -> None:
    image_id = put_image(store, "image", {"a": b"1"})
    folder = put_container(store, "c1", "web", image_id, ephemeral=True)
    put_container(store, "c2", "kept", image_id)
    (folder / "config.json").write_bytes(b"")
    plan = gc.plan(store)
    assert (plan.containers, plan.unreadable) == (("c1",), ())
    gc.sweep(store, plan)
    assert store.containers.ids() == ["c2"]
    assert os.listdir(store.layout.folder("names")) == ["kept"]


# -- no space ----------------------------------------------------------------------------------

FULL = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from storekit import put_container, put_image
from layerstore.errors import HostError
from layerstore.names import ImageRef
from layerstore.store import fsck, gc
from layerstore.store.store import Store
from layerstore.store.trees import lower_directories

top = Path(sys.argv[1])
store = Store.open(top / "store")
content = {f"f{n}": b"%d" % n * 4000 for n in range(50)}
ids = [put_image(store, f"i{n}", content, {"own": bytes([n]) * 300_000}) for n in (1, 2, 3)]
for image_id in ids:
    lower_directories(store, store.images.get(image_id).diff_ids)
put_container(store, "c1", "web", ids[0])
ballast = (top / "store" / "ballast").stat().st_size
for size in (1 << 20, 4096, 1):
    try:
        with open(top / f"filler{size}", "wb", buffering=0) as filler:
            while filler.write(b"x" * size):
                pass
    except OSError:
        pass
free = os.statvfs(top).f_bavail
refused = 0
for _ in range(2):
    try:
        put_image(store, "new", {"new": os.urandom(20 << 20)})
    except HostError as error:
        refused += error.brief.startswith("no space left in the store")
report = fsck.check(store, read_data=True)
reopened = Store.open(top / "store")
plan = gc.plan_removal(reopened, [ids[1]])
reopened.refs.delete(ImageRef.parse("i2"))
gc.sweep(reopened, plan)
reopened.containers.remove("c1")
reopened.refs.delete(ImageRef.parse("i1"))
gc.sweep(reopened, gc.plan(reopened))
print(json.dumps({
    "ballast": ballast, "free": free, "refused": refused,
    "problems": [str(p) for p in report.problems + fsck.check(store, read_data=True).problems],
    "left": [str(ref) for ref in store.refs.all()], "staging": os.listdir(top / "store/tmp"),
    "objects": sum(1 for _ in store.objects.all()), "trash": os.listdir(top / "store/trash"),
    "trees": len(os.listdir(top / "store/trees")),
    "fits": put_image(store, "again", {"new": b"z" * 100_000}) is not None,
}))
"""


@needs_root
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_with_zero_bytes_free_images_and_containers_can_be_removed(
    tmp_path: Path, kind: str
) -> None:
    mount = f"mount -t tmpfs -o size=28m none {tmp_path}"
    if kind == "ext4":
        image = tmp_path.parent / f"{tmp_path.name}.img"
        mount = (
            f"truncate -s 32M {image} && mkfs.ext4 -q -m 0 {image}"
            f" && mount -o loop {image} {tmp_path} && rm -f {image}"
        )
    printed = run_with_mount(mount, FULL, str(tmp_path), str(Path(__file__).parent.parent))
    found = json.loads(printed)
    assert found == {
        "ballast": BALLAST_BYTES, "free": 0, "refused": 2, "problems": [], "left": ["i3:latest"],
        "staging": [], "objects": 51, "trash": [], "trees": 2, "fits": True,
    }  # fmt: skip


def test_the_ballast_comes_back_when_there_is_room(store: Store) -> None:
    (store.layout.root / "ballast").unlink()
    gc.sweep(store, gc.plan(store))
    assert (store.layout.root / "ballast").stat().st_size == BALLAST_BYTES


def test_an_image_whose_layers_are_another_ones_base_frees_only_its_own(store: Store) -> None:
    base = put_image(store, "base", {"a": b"x" * 9000})
    put_image(store, "child", {"a": b"x" * 9000}, {"b": b"y" * 9000})
    with store.transaction() as transaction:
        (layer,) = store.images.get(base).diff_ids
        transaction.lease([layer])
        assert transaction.stage_image(config_of([layer])) == base
    plan = gc.plan_removal(store, [base])
    assert (plan.images, plan.layers, plan.objects, plan.trees) == ((base,), (), (), ())
