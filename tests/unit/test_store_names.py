"""Names of images and containers, and directories of any depth."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from storekit import make_deep, put_container, put_image

from layerstore.errors import ConflictError, DamagedError, NotFoundError, UsageError
from layerstore.names import ImageRef
from layerstore.store import deep
from layerstore.store.refs import is_ref
from layerstore.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def refs(*names: str) -> list[ImageRef]:
    return [ImageRef.parse(name) for name in names]


# -- images ------------------------------------------------------------------------------------


def test_a_name_moves_to_another_image_and_goes(store: Store) -> None:
    first, second = (put_image(store, "app:v1", {"a": b"%d" % n}) for n in (1, 2))
    (ref,) = refs("app:v1")
    assert first != second and store.refs.get(ref) == second
    store.refs.delete(ref)
    assert store.refs.get(ref) is None
    with pytest.raises(NotFoundError, match="there is no image named app:v1"):
        store.refs.delete(ref)


def test_names_with_slashes_ports_and_tags_are_one_file_each(store: Store) -> None:
    names = refs("host.example:5000/team/app:v1.2_x", "app", "localhost/app:latest")
    image_id = put_image(store, None, {"a": b"1"})
    with store.transaction() as transaction:
        transaction.publish(dict.fromkeys(names, image_id))
    assert store.refs.names() == sorted(names)
    assert len(os.listdir(store.layout.folder("refs"))) == 3


def test_one_damaged_name_concerns_no_other(store: Store) -> None:
    image_id = put_image(store, "good", {"a": b"1"})
    put_image(store, "bad", {"a": b"2"})
    good, bad = refs("good", "bad")
    store.layout.ref(bad).write_bytes(b"sha256:0")
    (store.layout.folder("refs") / "NO NAME").write_bytes(b"")

    assert store.refs.all() == {good: image_id}
    assert store.images.names_of(image_id) == [good]
    with pytest.raises(DamagedError, match="the name bad:latest is damaged") as caught:
        store.refs.get(bad)
    assert caught.value.hint and "layerstore rmi bad:latest" in caught.value.hint


@pytest.mark.parametrize(
    ("component", "expected"),
    [("app:latest", True), ("host%2Fapp:v1", True), ("app", False), ("host/app:v1", False),
     ("App:latest", False), ("%61pp:latest", False), ("", False)],
)  # fmt: skip
def test_a_file_is_a_ref_if_a_name_gives_it(component: str, expected: bool) -> None:
    assert is_ref(component) is expected


# -- containers --------------------------------------------------------------------------------


def test_a_container_is_found_by_name_id_and_first_digits(store: Store) -> None:
    image_id = put_image(store, "image", {"a": b"1"})
    put_container(store, "abcd1234", "web", image_id)
    put_container(store, "abef5678", "db", image_id)
    assert store.containers.find("web") == "abcd1234"
    assert store.containers.find("abcd1234") == "abcd1234"
    assert store.containers.find("abe") == "abef5678"
    with pytest.raises(UsageError, match="'ab' fits 2 containers"):
        store.containers.find("ab")
    assert [container.name for container in store.containers.all()] == ["web", "db"]


def test_a_taken_name_is_a_conflict_and_leaves_nothing(store: Store) -> None:
    image_id = put_image(store, "image", {"a": b"1"})
    put_container(store, "c1", "web", image_id)
    with pytest.raises(ConflictError, match="the container name 'web' is taken"):
        put_container(store, "c2", "web", image_id)
    assert store.containers.ids() == ["c1"]
    assert os.listdir(store.layout.folder("tmp")) == []


@pytest.mark.parametrize("name", ["", "-x", "a/b", "..", "a b", "x" * 129, "é"])
def test_a_bad_container_name_is_refused(store: Store, name: str) -> None:
    image_id = put_image(store, "image", {"a": b"1"})
    with pytest.raises(UsageError, match="is not a container name"):
        put_container(store, "c1", name, image_id)
    assert store.containers.ids() == []


def test_a_name_that_a_crash_left_is_free(store: Store) -> None:
    image_id = put_image(store, "image", {"a": b"1"})
    (store.layout.folder("names") / "web").symlink_to("gone")
    put_container(store, "c1", "web", image_id)
    assert store.containers.find("web") == "c1"


def test_of_many_that_want_a_name_at_once_one_gets_it(store: Store) -> None:
    image_id = put_image(store, "image", {"a": b"1"})

    def create(number: int) -> bool:
        try:
            put_container(store, f"c{number}", "web", image_id)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(24))) == 1
    (container,) = store.containers.all()
    assert store.containers.find("web") == container.container_id


def test_a_removed_container_and_its_name_are_gone(store: Store) -> None:
    image_id = put_image(store, "image", {"a": b"1"})
    folder = put_container(store, "c1", "web", image_id)
    (folder / "upper" / "closed").mkdir()
    (folder / "upper" / "closed" / "file").touch()
    (folder / "upper" / "closed").chmod(0)
    store.containers.remove("c1")
    assert store.containers.ids() == []
    for name in ("names", "trash"):
        assert os.listdir(store.layout.folder(name)) == []
    with pytest.raises(NotFoundError, match="there is no container c1"):
        store.containers.remove("c1")


def test_a_damaged_container_concerns_no_other_and_can_be_removed(store: Store) -> None:
    image_id = put_image(store, "image", {"a": b"1"})
    folder = put_container(store, "c1", "web", image_id)
    put_container(store, "c2", "db", image_id)
    (folder / "config.json").write_bytes(b"")
    assert [container.name for container in store.containers.all()] == ["db"]
    with pytest.raises(DamagedError, match="the record of container c1 is damaged"):
        store.containers.get("c1")
    store.containers.remove(store.containers.find("web"))
    assert os.listdir(store.layout.folder("names")) == ["db"]


# -- depth -------------------------------------------------------------------------------------


def test_a_tree_deeper_than_paths_and_the_stack_is_removed(tmp_path: Path) -> None:
    make_deep(tmp_path / "deep", 3000)
    deep.remove_tree(tmp_path / "deep")
    assert os.listdir(tmp_path) == []


def test_a_directory_deeper_than_paths_is_opened(tmp_path: Path) -> None:
    make_deep(tmp_path / "deep", 400)
    fd = deep.open_directory(f"{tmp_path}/deep" + f"/{'d' * 20}" * 400)
    try:
        assert os.listdir(fd) == ["file"]
    finally:
        os.close(fd)
        deep.remove_tree(tmp_path / "deep")


def test_removing_a_tree_follows_no_link_and_leaves_what_links_lead_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "link").symlink_to(tmp_path / "kept")
    deep.remove_tree(tmp_path / "gone")
    deep.remove_tree(tmp_path / "never")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    deep.remove_tree(tmp_path / "link")
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "file"]
