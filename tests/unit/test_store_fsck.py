"""A check finds every damage and names whom it concerns; a repair lets the next import heal it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from storekit import put_container, put_image

from layerstore.formats.entries import Entry, Kind
from layerstore.formats.sparse import SPARSE_HOLES
from layerstore.names import Digest, ImageRef
from layerstore.store import fsck
from layerstore.store.layers import stage_entries
from layerstore.store.store import Store
from layerstore.store.trees import lower_directories

ONE = {"a": b"content of a" * 400}
TWO = {"b": b"content of b" * 500}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two images that share a layer, and a container of the first."""
    store = Store.open(tmp_path / "store")
    first = put_image(store, "first", ONE)
    put_image(store, "second", ONE, TWO)
    put_container(store, "c1", "web", first)
    return store


def kinds(report: fsck.Report) -> list[tuple[str, tuple[str, ...]]]:
    return [(problem.kind, problem.affects) for problem in report.problems]


def flip(path: Path) -> None:
    """One bit of the file is another."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


def paths(store: Store) -> dict[str, Path]:
    second = store.images.find("second")
    return {
        "shared object": store.layout.object(Digest.of(ONE["a"])),
        "own object": store.layout.object(Digest.of(TWO["b"])),
        "shared entries": store.layout.layer(second.diff_ids[0]) / "entries",
        "own entries": store.layout.layer(second.diff_ids[1]) / "entries",
        "config": store.layout.image(second.image_id),
        "name": store.layout.ref(ImageRef.parse("second")),
        "record": store.containers.path("c1") / "config.json",
    }


ALL_THREE = ("container web", "first:latest", "second:latest")
SECOND = ("second:latest",)


def test_a_sound_store_is_clean(store: Store) -> None:
    report = fsck.check(store, read_data=True)
    assert report.is_clean
    assert (report.images, report.layers, report.objects) == (2, 2, 2)


@pytest.mark.parametrize(
    ("what", "kind", "affects"),
    [
        ("shared object", "object-damaged", ALL_THREE),
        ("own object", "object-damaged", SECOND),
        ("shared entries", "layer-damaged", ALL_THREE),
        ("own entries", "layer-damaged", SECOND),
        ("config", "image-damaged", SECOND),
        ("name", "name-damaged", SECOND),
        ("record", "container-damaged", ("container c1",)),
    ],
)
@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_damage_is_found_names_whom_it_concerns_and_heals(
    store: Store, what: str, kind: str, affects: tuple[str, ...], how: str
) -> None:
    path = paths(store)[what]
    flip(path) if how == "flip" else os.truncate(path, 0)
    if what == "name" and how == "flip":
        kind = "image-missing"  # still a digest, but nothing's

    report = fsck.check(store, read_data=True)
    assert kinds(report) == [(kind, affects)]
    # Sizes and records are checked without reading contents, too.
    if how == "truncate" or "object" not in what:
        assert kinds(fsck.check(store)) == [(kind, affects)]

    done = fsck.repair(store, report)
    if what == "record":
        assert done == () and path.exists()
        store.containers.remove("c1")
    elif kind == "image-missing":
        assert done == () and path.exists()
    else:
        assert len(done) == 1 and not path.exists()
        assert len(os.listdir(store.layout.folder("quarantine"))) == 1
    put_image(store, "first", ONE)
    put_image(store, "second", ONE, TWO)
    assert fsck.check(store, read_data=True).is_clean


@pytest.mark.parametrize("what", ["shared object", "shared entries", "config"])
def test_what_is_missing_is_found(store: Store, what: str) -> None:
    path = paths(store)[what]
    if "entries" in what:
        path.unlink()
        path.parent.rmdir()
    else:
        path.unlink()
    report = fsck.check(store)
    kind = {"shared object": "object", "shared entries": "layer", "config": "image"}[what]
    assert {problem.kind for problem in report.problems} == {f"{kind}-missing"}
    affected = {name for problem in report.problems for name in problem.affects}
    assert affected == set(SECOND if what == "config" else ALL_THREE)
    assert fsck.repair(store, report) == ()


def test_an_object_that_nobody_names_is_checked_as_well(store: Store) -> None:
    with store.transaction() as transaction:
        transaction.stage(b"unreferenced")
        transaction.publish()
    assert fsck.check(store, read_data=True).is_clean
    path = store.layout.object(Digest.of(b"unreferenced"))
    flip(path)
    assert kinds(fsck.check(store, read_data=True)) == [("object-damaged", ())]
    os.truncate(path, 0)
    assert kinds(fsck.check(store)) == [("object-damaged", ())]


def test_a_sparse_object_is_known_by_its_map(store: Store) -> None:
    size, extents = 2 * SPARSE_HOLES, ((8192, 4096),)
    with store.transaction() as transaction:
        with transaction.writer(extents, size) as writer:
            writer.write(b"data" * 1024)
            digest = writer.finish()
        transaction.publish()
        assert fsck.check(store, read_data=True).is_clean  # before a layer tells the map
        stage_entries(transaction, [
            Entry(b"disk", Kind.FILE, 0o644, size=size, digest=digest, extents=extents),
        ])  # fmt: skip
        transaction.publish()
    assert fsck.check(store, read_data=True).is_clean
    with store.layout.object(digest).open("r+b") as file:
        file.seek(9000)
        file.write(b"x")
    assert [p.kind for p in fsck.check(store, read_data=True).problems] == ["object-damaged"]


@pytest.mark.parametrize(
    "name", ["stray", "objects/stray", "images/stray", "layers/stray", "refs/STRAY", "trees/stray",
             "containers/stray", "names/stray", "objects/.layerstore/ab/short"],
)  # fmt: skip
def test_what_nothing_owns_is_found_and_set_aside(store: Store, name: str) -> None:
    (store.layout.root / name).write_bytes(b"?")
    report = fsck.check(store)
    orphans = [problem for problem in report.problems if problem.kind == "orphan"]
    assert [problem.subject for problem in orphans] == [name]
    fsck.repair(store, report)
    assert fsck.check(store).is_clean
    assert len(os.listdir(store.layout.folder("quarantine"))) == 1


def test_names_of_containers_are_repaired(store: Store) -> None:
    names = store.layout.folder("names")
    (names / "web").unlink()
    (names / "old").symlink_to("gone")
    report = fsck.check(store)
    assert kinds(report) == [("container-name", ("container web",)), ("container-name", ())]
    assert len(fsck.repair(store, report)) == 2
    assert fsck.check(store).is_clean
    assert os.listdir(names) == ["web"]


def test_a_repair_leaves_alone_what_was_healed_since_the_check(store: Store) -> None:
    path = paths(store)["own object"]
    os.truncate(path, 1)
    report = fsck.check(store)
    put_image(store, "second", ONE, TWO)
    assert fsck.repair(store, report) == ()
    assert path.read_bytes() == TWO["b"]


def test_a_repair_leaves_alone_what_a_transaction_counts_on(store: Store) -> None:
    path = paths(store)["own object"]
    flip(path)
    report = fsck.check(store, read_data=True)
    with store.transaction() as transaction:
        transaction.lease([Digest.of(TWO["b"])])
        assert fsck.repair(store, report) == ()
    assert len(fsck.repair(store, report)) == 1


def test_a_repaired_object_is_gone_from_lower_directories_too(store: Store) -> None:
    diff_ids = store.images.find("second").diff_ids
    lowers = lower_directories(store, diff_ids)
    path = paths(store)["own object"]
    if path.stat().st_nlink == 1:
        pytest.skip("needs a file system on which lower directories are hard links")
    flip(path)
    fsck.repair(store, fsck.check(store, read_data=True))
    put_image(store, "second", ONE, TWO)
    assert lower_directories(store, diff_ids) == lowers
    assert (lowers[0] / "b").read_bytes() == TWO["b"]


def test_a_layer_that_gives_another_tar_is_found(store: Store) -> None:
    from layerstore.formats import entries as entries_format

    path = paths(store)["own entries"]
    (entry,) = entries_format.parse(path.read_bytes(), where="test")
    path.write_bytes(entries_format.emit([entry._replace(uid=7)]))
    assert fsck.check(store).is_clean
    assert kinds(fsck.check(store, read_data=True)) == [("layer-damaged", SECOND)]


def test_the_json_says_what_the_report_says(store: Store) -> None:
    os.truncate(paths(store)["own object"], 1)
    document = fsck.check(store).to_json()
    assert document["clean"] is False and document["objects"] == 2
    (problem,) = document["problems"]
    assert problem["kind"] == "object-damaged" and problem["affects"] == ["second:latest"]
    assert problem["subject"] == str(Digest.of(TWO["b"]))
    assert problem["detail"] == f"it has 1 bytes instead of {len(TWO['b'])}"
