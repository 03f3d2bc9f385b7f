"""What other tools write is loaded bit for bit: every layer gives its tar back."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from abilities import needs_root, needs_tool
from archives import config_of, docker_files, sha256, tar_of
from facts import differences, in_whole_seconds, of_directory, of_image

from layerstore.archive import import_root, load, save
from layerstore.names import ImageRef, Platform
from layerstore.store.images import Image
from layerstore.store.store import Store

if TYPE_CHECKING:
    from peers import Rich, Tool

pytest_plugins = ("peers",)

REFS = [ImageRef.parse("compat/rich:1")]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "fresh")


def loaded_exactly(store: Store, path: Path, diff_ids: list[str]) -> Image:
    """The one image of the archive, once each of its layers was regenerated and hashed."""
    [loaded] = load(store, path)
    image = store.images.get(loaded.image_id)
    assert list(image.diff_ids) == diff_ids
    for diff_id in image.diff_ids:
        hasher = hashlib.sha256()
        for chunk in store.layers.tar(diff_id):
            hasher.update(chunk)
        assert hasher.hexdigest() == diff_id.hex
    return image


def changes_below(path: Path) -> Path:
    """Files for a new layer of whoever copies them."""
    folder = path / "added"
    (folder / "sub").mkdir(parents=True)
    (folder / "file").write_text("added\n")
    (folder / "sub" / ("long" * 40)).write_bytes(os.urandom(100_000))
    (folder / "link").symlink_to("file")
    os.setxattr(folder / "file", "user.text", b"value")
    return folder


# -- docker ----------------------------------------------------------------------------------


def committed_by_docker(docker: Tool, dense: Rich, tmp_path: Path) -> list[str]:
    """DiffIDs of ``made/by-docker:1``: the image, and a layer that docker made on it."""
    save(dense.store, dense.image, tmp_path / "rich.tar", refs=REFS, form="docker")
    docker("load", "--input", tmp_path / "rich.tar")
    container = docker("create", "compat/rich:1")
    docker("cp", changes_below(tmp_path), f"{container}:/a/")
    docker("commit", container, "made/by-docker:1")
    docker("rm", container)
    return list(docker.json("image", "inspect", "made/by-docker:1")[0]["RootFS"]["Layers"])


@needs_root
@needs_tool("docker", "dockerd")
def test_a_docker_save_archive_is_loaded_bit_for_bit(
    dense: Rich, docker: Tool, store: Store, tmp_path: Path
) -> None:
    diff_ids = committed_by_docker(docker, dense, tmp_path)
    assert len(diff_ids) == 4
    docker("save", "--output", tmp_path / "image.tar", "made/by-docker:1")
    image = loaded_exactly(store, tmp_path / "image.tar", diff_ids)
    assert store.refs.names() == [ImageRef("made/by-docker", "1")]
    assert docker("image", "inspect", "--format", "{{.Id}}", "made/by-docker:1") == image.image_id
    facts = of_image(store, image.diff_ids)
    assert facts[b"a/added/file"].content == hashlib.sha256(b"added\n").hexdigest()
    with (
        open(tmp_path / "image.tar", "rb") as plain,
        gzip.open(tmp_path / "image.tgz", "wb") as out,
    ):
        shutil.copyfileobj(plain, out)
    loaded_exactly(Store.open(tmp_path / "other"), tmp_path / "image.tgz", diff_ids)


@needs_root
@needs_tool("docker", "dockerd")
def test_several_images_of_one_docker_save_archive_are_loaded(
    dense: Rich, docker: Tool, store: Store, tmp_path: Path
) -> None:
    diff_ids = committed_by_docker(docker, dense, tmp_path)
    docker("tag", "made/by-docker:1", "other/name:2")
    names = ("made/by-docker:1", "compat/rich:1", "other/name:2")
    docker("save", "--output", tmp_path / "image.tar", *names)
    loaded = load(store, tmp_path / "image.tar")
    assert sorted(str(ref) for image in loaded for ref in image.refs) == sorted(names)
    assert store.images.find("compat/rich:1").raw_config == dense.image.raw_config
    assert list(store.images.find("other/name:2").diff_ids) == diff_ids


@needs_root
@needs_tool("docker", "dockerd")
def test_a_layer_that_docker_saves_as_a_symlink_is_loaded(
    docker: Tool, store: Store, tmp_path: Path
) -> None:
    layers = [tar_of({"one": b"1"}), tar_of({"two": b"2"})]
    stack = [layers[0], layers[1], layers[0]]
    files = docker_files(
        {"a": layers[0], "b": layers[1], "c": layers[0]}, tags=["twice:1"], config=config_of(stack)
    )
    (tmp_path / "in.tar").write_bytes(tar_of(files))
    docker("load", "--input", tmp_path / "in.tar")
    docker("save", "--output", tmp_path / "image.tar", "twice:1")
    with tarfile.open(tmp_path / "image.tar") as archive:
        links = [member.name for member in archive if member.issym()]
    assert [name.endswith("/layer.tar") for name in links] == [True]
    loaded_exactly(store, tmp_path / "image.tar", [sha256(layer) for layer in stack])


# -- podman ----------------------------------------------------------------------------------


@needs_root
@needs_tool("podman")
@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci-dir"])
def test_what_podman_saves_is_loaded_bit_for_bit(
    dense: Rich, podman: Tool, store: Store, tmp_path: Path, form: str
) -> None:
    save(dense.store, dense.image, tmp_path / "rich.tar", refs=REFS, form="docker")
    podman("load", "--input", tmp_path / "rich.tar")
    container = podman("create", "docker.io/compat/rich:1")
    podman("cp", changes_below(tmp_path), f"{container}:/a/")
    kind = "docker" if form == "docker-archive" else "oci"
    podman("commit", "--format", kind, container, "made/by-podman:1")
    podman("rm", container)
    out = tmp_path / "image"
    podman("save", "--format", form, "--output", out, "localhost/made/by-podman:1")
    diff_ids = podman.json("image", "inspect", "localhost/made/by-podman:1")[0]["RootFS"]["Layers"]
    image = loaded_exactly(store, out, diff_ids)
    assert store.refs.names() == [ImageRef("localhost/made/by-podman", "1")]
    facts = of_image(store, image.diff_ids)
    assert facts[b"a/added/file"].content == hashlib.sha256(b"added\n").hexdigest()


# -- skopeo ----------------------------------------------------------------------------------


@needs_tool("skopeo")
@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("oci:{}:1", ["--dest-compress", "--dest-compress-format", "gzip"]),
        ("oci:{}:1", ["--dest-compress", "--dest-compress-format", "zstd"]),
        ("oci-archive:{}:1", []),
        ("docker-archive:{}:compat/rich:1", []),
    ],
    ids=["gzip", "zstd", "oci-tar", "docker-tar"],
)
def test_what_skopeo_copies_is_loaded_bit_for_bit(
    rich: Rich, skopeo: Tool, store: Store, tmp_path: Path, target: str, options: list[str]
) -> None:
    save(rich.store, rich.image, tmp_path / "o", refs=REFS, form="oci", compression="none")
    out = tmp_path / "rich"
    skopeo("copy", *options, f"oci:{tmp_path / 'o'}:1", target.format(out))
    image = loaded_exactly(store, out, list(rich.image.diff_ids))
    assert differences(rich.facts, of_image(store, image.diff_ids)) == {}
    expected = "compat/rich" if target.startswith("docker") else "rich"
    assert store.refs.names() == [ImageRef(expected, "1")]


# -- umoci -----------------------------------------------------------------------------------


@needs_root
@needs_tool("umoci")
def test_a_layer_that_umoci_makes_is_loaded_bit_for_bit(
    rich: Rich, umoci: Tool, store: Store, tmp_path: Path
) -> None:
    layout = tmp_path / "o"
    save(rich.store, rich.image, layout, refs=REFS, form="oci", compression="gzip")
    umoci("unpack", "--image", f"{layout}:1", tmp_path / "bundle")
    root = tmp_path / "bundle" / "rootfs"
    shutil.rmtree(root / "modes")
    (root / "a" / "plain").write_text("other\n")
    shutil.move(changes_below(tmp_path), root / "a" / "added")
    for path in (root / "a").rglob("**/*"):  # umoci rounds to the nearest second, not down
        os.utime(path, (0, 1_700_000_000), follow_symlinks=False)
    os.utime(root / "a", (0, 1_700_000_000))
    os.utime(root, (0, 1_700_000_000))
    umoci("repack", "--image", f"{layout}:2", tmp_path / "bundle")
    umoci("rm", "--image", f"{layout}:1")
    index = json.loads((layout / "index.json").read_bytes())
    blob = layout / "blobs" / "sha256"
    manifest = json.loads((blob / index["manifests"][0]["digest"][7:]).read_bytes())
    config = json.loads((blob / manifest["config"]["digest"][7:]).read_bytes())
    image = loaded_exactly(store, layout, config["rootfs"]["diff_ids"])
    assert len(image.diff_ids) == 4
    assert differences(of_directory(bytes(root)), of_image(store, image.diff_ids)) == {}


@needs_root
@needs_tool("umoci", "skopeo")
def test_an_image_is_added_to_a_layout_of_umoci_that_stays_one(
    rich: Rich, umoci: Tool, skopeo: Tool, tmp_path: Path
) -> None:
    layout = tmp_path / "o"
    umoci("init", "--layout", layout)
    umoci("new", "--image", f"{layout}:theirs")
    for _ in range(2):
        save(rich.store, rich.image, layout, refs=REFS, form="oci", compression="gzip")
    assert sorted(umoci("ls", "--layout", layout).split()) == ["1", "theirs"]
    assert skopeo.json("inspect", f"oci:{layout}:theirs")["Layers"] == []
    assert len(skopeo.json("inspect", f"oci:{layout}:1")["Layers"]) == 3


# -- a root filesystem -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def large_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 files of 50 MB in all."""
    root = tmp_path_factory.mktemp("large") / "root"
    source = random.Random(5)
    for number in range(2000):
        folder = root / f"{number % 40:02}" / f"{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        half = source.randbytes(source.randrange(25_000))
        (folder / f"file-{number}").write_bytes(half + b"text %d " % number * (len(half) // 9))
    return root


def imported(store: Store, path: Path) -> Image:
    image_id = import_root(
        store, path, ImageRef("large", "1"),
        platform=Platform("linux", "amd64"), created="2020-01-01T00:00:00Z",
    )  # fmt: skip
    return store.images.get(image_id)


@needs_root
@needs_tool("docker", "dockerd", "skopeo")
def test_a_large_image_goes_through_skopeo_and_docker_and_comes_back(
    large_root: Path, docker: Tool, skopeo: Tool, store: Store, tmp_path: Path
) -> None:
    image = imported(store, large_root)
    assert differences(in_whole_seconds(of_directory(bytes(large_root))),
                       of_image(store, image.diff_ids)) == {}  # fmt: skip
    save(
        store, image, tmp_path / "o", refs=[ImageRef("large", "1")], form="oci", compression="gzip"
    )
    skopeo("copy", f"oci:{tmp_path / 'o'}:1", f"docker-archive:{tmp_path / 'd.tar'}:large:1")
    docker("load", "--input", tmp_path / "d.tar")
    docker("save", "--output", tmp_path / "back.tar", "large:1")
    again = loaded_exactly(
        Store.open(tmp_path / "other"), tmp_path / "back.tar", list(image.diff_ids)
    )
    assert again == image


@needs_root
@needs_tool("umoci", "tar", "xz", "zstd", "gzip")
@pytest.mark.parametrize("packer", ["none", "gzip", "zstd", "xz"])
def test_a_root_that_gnu_tar_packed_is_imported_with_all_that_it_holds(
    rich: Rich, umoci: Tool, store: Store, tmp_path: Path, packer: str
) -> None:
    save(rich.store, rich.image, tmp_path / "o", refs=REFS, form="oci", compression="gzip")
    umoci("unpack", "--image", f"{tmp_path / 'o'}:1", tmp_path / "bundle")
    root = tmp_path / "bundle" / "rootfs"
    command = ["tar", "--format=pax", "--numeric-owner", "--xattrs", "--xattrs-include=*",
               "--sparse", "-C", str(root), "-cf", str(tmp_path / "root.tar"), "."]  # fmt: skip
    if packer != "none":
        command.insert(1, f"--{packer}")
    subprocess.run(command, check=True)
    image = imported(store, tmp_path / "root.tar")
    assert differences(rich.facts, of_image(store, image.diff_ids)) == {}
    [diff_id] = image.diff_ids
    assert sum(map(len, store.layers.tar(diff_id))) % 512 == 0
