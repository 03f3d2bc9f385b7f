"""A transaction is there whole or not at all, and what it found damaged is healed by it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from storekit import config_of, put_image, stage_files

from layerstore.errors import DamagedError, HostError, LayerstoreError, NotFoundError
from layerstore.formats.entries import Entry, Kind
from layerstore.names import Digest, ImageID, ImageRef
from layerstore.store import fsck, layout
from layerstore.store.layers import stage_entries, stage_tar
from layerstore.store.store import Store
from layerstore.store.trees import lower_directories

REF = ImageRef.parse("image")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def names_below(root: Path) -> set[str]:
    return {os.path.relpath(path, root) for path in root.rglob("*")}


def test_a_published_image_reads_back_and_the_staging_is_gone(store: Store) -> None:
    image_id = put_image(store, "image", {"etc/name": b"value"}, {"empty": b""})

    assert store.refs.get(REF) == image_id
    tree = store.layers.tree(store.images.get(image_id).diff_ids)
    node = tree.lookup(b"etc/name")
    assert node is not None and node.digest == Digest.of(b"value")
    assert store.objects.read(Digest.of(b"value")) == b"value"
    assert tree.lookup(b"empty") is not None
    assert os.listdir(store.layout.folder("tmp")) == []
    assert os.listdir(store.layout.folder("leases")) == []


def test_a_transaction_that_is_not_published_leaves_nothing(store: Store) -> None:
    before = names_below(store.layout.root)
    with store.transaction() as transaction:
        stage_files(transaction, {"file": b"content"})
        with transaction.writer() as writer:
            writer.write(b"more")
            writer.finish()
    assert names_below(store.layout.root) == before


def test_a_transaction_that_fails_leaves_nothing(store: Store) -> None:
    before = names_below(store.layout.root)
    with pytest.raises(ZeroDivisionError), store.transaction() as transaction:
        stage_files(transaction, {"file": b"content"})
        raise ZeroDivisionError
    assert names_below(store.layout.root) == before


def test_the_same_content_is_stored_once_whoever_brings_it(store: Store) -> None:
    put_image(store, "one", {"a": b"content" * 1000})
    with store.transaction() as transaction:
        stage_files(transaction, {"b": b"content" * 1000, "c": b"content" * 1000})
        with transaction.writer() as writer:
            writer.write(b"content" * 1000)
            assert writer.finish() == Digest.of(b"content" * 1000)
        transaction.publish()
        assert transaction.new_bytes == 0
    assert [digest for digest, _ in store.objects.all()] == [Digest.of(b"content" * 1000)]


def test_publishing_several_times_adds_up(store: Store) -> None:
    with store.transaction() as transaction:
        first = stage_files(transaction, {"a": b"one"})
        transaction.publish()
        second = stage_files(transaction, {"a": b"one", "b": b"two"})
        image_id = transaction.stage_image(config_of([first, second]))
        transaction.publish()
        transaction.publish({REF: image_id})
    assert store.images.find("image").diff_ids == (first, second)
    assert fsck.check(store, read_data=True).problems == ()


def test_several_names_are_published_at_once(store: Store) -> None:
    image_id = put_image(store, None, {"a": b"one"})
    refs = {ImageRef.parse(name): image_id for name in ("one", "two:v1", "host:5000/three")}
    with store.transaction() as transaction:
        transaction.publish(refs)
    assert store.refs.all() == refs


def test_a_name_for_an_image_that_is_not_there_is_refused(store: Store) -> None:
    missing = ImageID.of(b"nothing")
    with pytest.raises(NotFoundError, match=f"no image {missing}"), store.transaction() as tx:
        tx.publish({REF: missing})
    assert store.refs.all() == {}


def test_after_a_failed_flush_the_transaction_cannot_be_published(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "syncfs failed")

    with pytest.raises(OSError), store.transaction() as transaction:
        stage_files(transaction, {"a": b"one"})
        with monkeypatch.context() as patch:
            patch.setattr("layerstore.store.atomic.syncfs", fail)
            with pytest.raises(OSError):
                transaction.publish()
        # The kernel reports the loss once: now its flush "succeeds".
        with pytest.raises(LayerstoreError, match="an earlier write of this transaction failed"):
            transaction.publish()
        raise OSError
    assert list(store.objects.all()) == []


@pytest.mark.parametrize("where", ["stage", "writer", "lease"])
def test_a_full_disk_is_one_clear_message(
    store: Store, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = names_below(store.layout.root)
    with pytest.raises(HostError, match="no space left in the store"), store.transaction() as tx:
        if where == "writer":
            with tx.writer() as writer:
                monkeypatch.setattr(os, "pwrite", full)
                writer.write(b"content")
        else:
            monkeypatch.setattr(os, "write", full)
            if where == "stage":
                tx.stage(b"content")
                tx.publish()
            else:
                tx.lease([Digest.of(b"content")])
    monkeypatch.undo()
    assert names_below(store.layout.root) == before


# -- healing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 3, 8000], ids=["empty", "short", "long"])
@pytest.mark.parametrize("through", ["stage", "writer"])
def test_an_object_of_the_wrong_size_is_no_hit_and_is_replaced(
    store: Store, size: int, through: str
) -> None:
    content = b"content" * 1000
    put_image(store, "image", {"a": content})
    path = store.layout.object(Digest.of(content))
    os.truncate(path, size)

    with store.transaction() as transaction:
        if through == "stage":
            transaction.stage(content)
        else:
            with transaction.writer() as writer:
                writer.write(content)
                writer.finish()
        transaction.publish()
        assert transaction.replaced == [Digest.of(content)]

    assert path.read_bytes() == content
    (aside,) = store.layout.folder("quarantine").iterdir()
    assert aside.name.startswith(Digest.of(content).hex) and aside.stat().st_size == size


def test_lower_directories_that_share_a_replaced_object_are_made_again(store: Store) -> None:
    image_id = put_image(store, "image", {"a": b"content" * 1000})
    diff_ids = store.images.get(image_id).diff_ids
    (lower,) = lower_directories(store, diff_ids)
    os.truncate(lower / "a", 1)
    os.truncate(store.layout.object(Digest.of(b"content" * 1000)), 1)

    put_image(store, "image", {"a": b"content" * 1000})

    if (lower / "a").exists():  # a file system with clones: the directory has its own inodes
        pytest.skip("needs a file system on which lower directories are hard links")
    (again,) = lower_directories(store, diff_ids)
    assert (again / "a").read_bytes() == b"content" * 1000


def foreign_tar(content: bytes) -> bytes:
    import io
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        member = tarfile.TarInfo("./file")
        member.size = len(content)
        member.uname = "somebody"
        archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize("damage", ["entries", "tarsplit", "no entries", "no tarsplit"])
def test_a_damaged_layer_record_is_replaced(store: Store, damage: str) -> None:
    raw = foreign_tar(b"content")

    def import_it() -> Path:
        with store.transaction() as transaction:
            stored = stage_tar(transaction, [raw], where="the archive")
            transaction.publish()
        assert b"".join(store.layers.tar(stored.diff_id)) == raw
        return store.layout.layer(stored.diff_id)

    folder = import_it()
    path = folder / damage.removeprefix("no ")
    if damage.startswith("no "):
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert import_it() == folder
    assert fsck.check(store, read_data=True).problems == ()


def test_a_sound_layer_record_is_kept(store: Store) -> None:
    put_image(store, "image", {"a": b"one"})
    (diff_id,) = store.layers.all()
    inode = store.layout.layer(diff_id).stat().st_ino
    put_image(store, "image", {"a": b"one"})
    assert store.layout.layer(diff_id).stat().st_ino == inode


def test_a_damaged_config_and_a_damaged_name_are_replaced(store: Store) -> None:
    image_id = put_image(store, "image", {"a": b"one"})
    store.layout.image(image_id).write_bytes(b"")
    store.layout.ref(REF).write_bytes(b"")
    with pytest.raises(DamagedError):
        store.images.find("image")
    assert put_image(store, "image", {"a": b"one"}) == image_id
    assert store.images.find("image").image_id == image_id


# -- opening -----------------------------------------------------------------------------------


def test_opening_removes_what_dead_transactions_left_and_nothing_else(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    clean = names_below(store.layout.root)
    folders = store.layout.folder
    (folders("leases") / "dead").write_text("sha256:…\n")
    (folders("tmp") / "dead" / "inner" / "deep").mkdir(parents=True)
    (folders("tmp") / "dead" / "inner" / "file").touch()
    (folders("tmp") / "dead" / "inner").chmod(0)
    (folders("tmp") / "ownerless").mkdir()
    (folders("tmp") / "half.lease").touch()
    (folders("tmp") / "half.new").touch()
    (folders("trash") / "half" / "removed").mkdir(parents=True)
    (folders("trash") / "link").symlink_to("/etc")
    with store.transaction() as running:
        running.stage(b"content")
        running.publish()
        alive = names_below(store.layout.root) - clean
        Store.open(tmp_path / "store")
        left = names_below(store.layout.root) - clean
        assert left == {name for name in alive if not name.startswith(("trash", "tmp/half"))} - {
            "leases/dead", "tmp/ownerless", "tmp/dead", "tmp/dead/inner", "tmp/dead/inner/deep",
            "tmp/dead/inner/file",
        }  # fmt: skip
        assert any(name.startswith("leases/") for name in left)


def test_opening_a_store_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path)
    (tmp_path / "FORMAT").write_text('{"layerstore": 2}')
    with pytest.raises(HostError, match="has format 2; this layerstore knows format 1"):
        Store.open(tmp_path)


@pytest.mark.parametrize("kind", ["incompat", "ro_compat"])
def test_opening_a_store_with_an_unknown_feature_is_refused(tmp_path: Path, kind: str) -> None:
    Store.open(tmp_path)
    (tmp_path / "FORMAT").write_text(json.dumps({"layerstore": 1, kind: ["packs"]}))
    with pytest.raises(HostError, match="features packs"):
        Store.open(tmp_path)


def test_an_unknown_compatible_feature_means_nothing(tmp_path: Path) -> None:
    Store.open(tmp_path)
    (tmp_path / "FORMAT").write_text('{"layerstore": 1, "compat": ["notes"]}')
    Store.open(tmp_path)


def test_a_damaged_format_file_is_damage(tmp_path: Path) -> None:
    Store.open(tmp_path)
    (tmp_path / "FORMAT").write_bytes(b"\0\0\0")
    with pytest.raises(DamagedError):
        Store.open(tmp_path)


def test_a_directory_with_other_things_is_not_made_a_store(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(HostError, match="is not empty and is no store"):
        Store.open(tmp_path)
    assert os.listdir(tmp_path) == ["letter.txt"]


def test_a_store_that_was_half_made_is_finished(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    (tmp_path / "FORMAT.new").touch()
    store = Store.open(tmp_path)
    assert set(os.listdir(tmp_path)) == {
        *layout.DIRECTORIES, "objects", "FORMAT", "gate", "lock", "gc", "ballast",
    }  # fmt: skip
    assert len(os.listdir(store.layout.objects)) == 256


def test_a_layer_of_every_kind_of_entry_reads_back(store: Store) -> None:
    entries = [
        Entry(b"dir", Kind.DIRECTORY, 0o755),
        Entry(b"dir/file", Kind.FILE, 0o4755, 1, 2, 3_000_000_000, 0),
        Entry(b"dir/link", Kind.SYMLINK, 0o777, link=b"file"),
        Entry(b"gone", Kind.WHITEOUT),
    ]
    with store.transaction() as transaction:
        stored = stage_entries(transaction, entries)
        transaction.publish()
    assert store.layers.entries(stored.diff_id) == entries
