"""Archives are taken whole or not at all, and written the same every time."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from abilities import needs_overlay, needs_root
from archives import (
    CONFIG,
    LAYER,
    Json,
    Layout,
    config_of,
    contents_of,
    docker_files,
    link,
    named,
    packed,
    sha256,
    tar_of,
)
from storekit import put_image

from layerstore.archive import Loaded, import_root, load, save, stage_archive
from layerstore.archive_save import Form
from layerstore.errors import (
    ConflictError,
    DamagedError,
    FormatError,
    HostError,
    LayerstoreError,
    NotFoundError,
    UsageError,
)
from layerstore.events import Caution, Event
from layerstore.formats.compress import Compression
from layerstore.formats.streams import Limits
from layerstore.names import DiffID, ImageID, ImageRef, Platform
from layerstore.store.images import Image
from layerstore.store.store import Store

AMD64 = Platform("linux", "amd64")
BASE = tar_of({"etc/name": b"base\n", "usr/share/text": b"text " * 1000})
TOP = tar_of({"etc/.wh.name": b"", "etc/new": b"new\n"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def tar_bytes(store: Store, diff_id: DiffID) -> bytes:
    return b"".join(store.layers.tar(diff_id))


def layer_tars(store: Store, image_id: ImageID) -> list[bytes]:
    return [tar_bytes(store, diff_id) for diff_id in store.images.get(image_id).diff_ids]


def the_image(store: Store, name: str = "some/image:1") -> Image:
    image_id = put_image(
        store, name, {"etc/name": b"base\n", "big": bytes(range(256)) * 9000}, {"etc/new": b"x"}
    )
    return store.images.get(image_id)


def ref(text: str) -> ImageRef:
    return ImageRef.parse(text)


# -- save and load again ---------------------------------------------------------------------

WRITTEN: list[tuple[Form, str, Compression]] = [
    ("oci", "layout", "none"),
    ("oci", "layout", "gzip"),
    ("oci", "layout", "zstd"),
    ("oci", "image.tar", "none"),
    ("oci", "image.tar", "gzip"),
    ("oci", "image.tar", "zstd"),
    ("docker", "image.tar", "none"),
    ("docker", "image.tar", "gzip"),
]


@pytest.mark.parametrize(("form", "target", "compression"), WRITTEN)
def test_what_was_saved_is_loaded_bit_for_bit(
    store: Store, tmp_path: Path, form: Form, target: str, compression: Compression
) -> None:
    image = the_image(store)
    path = tmp_path / "out" / target
    save(store, image, path, refs=[ref("some/image:1")], form=form, compression=compression)
    other = Store.open(tmp_path / "other")
    assert load(other, path) == [Loaded(image.image_id, (ref("some/image:1"),))]
    assert other.images.get(image.image_id).raw_config == image.raw_config
    assert layer_tars(other, image.image_id) == layer_tars(store, image.image_id)
    assert other.refs.all() == {ref("some/image:1"): image.image_id}


@pytest.mark.parametrize(
    ("compression", "suffix", "magic"),
    [
        ("none", "", b"big\0"),
        ("gzip", "+gzip", b"\x1f\x8b"),
        ("zstd", "+zstd", b"\x28\xb5\x2f\xfd"),
    ],
)
def test_the_media_type_says_how_layers_are_compressed(
    store: Store, tmp_path: Path, compression: Compression, suffix: str, magic: bytes
) -> None:
    image = the_image(store)
    top = save(store, image, tmp_path / "o", refs=[], form="oci", compression=compression)
    blobs = tmp_path / "o" / "blobs" / "sha256"
    manifest = json.loads((blobs / top.digest.hex).read_bytes())
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["config"] == {
        "mediaType": CONFIG, "digest": image.image_id, "size": len(image.raw_config),
    }  # fmt: skip
    assert [layer["mediaType"] for layer in manifest["layers"]] == [LAYER + suffix] * 2
    for layer in manifest["layers"]:
        content = (blobs / layer["digest"][7:]).read_bytes()
        assert (sha256(content), len(content)) == (layer["digest"], layer["size"])
    assert (blobs / manifest["layers"][0]["digest"][7:]).read_bytes().startswith(magic)
    assert sorted(path.name for path in blobs.iterdir()) == sorted(
        [top.digest.hex, image.image_id.hex, *(item["digest"][7:] for item in manifest["layers"])]
    )


def test_a_sparse_file_comes_back_sparse(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with open(root / "sparse", "wb") as file:
        file.truncate(1 << 40)
        for offset in (1 << 30, 1 << 35):
            file.seek(offset)
            file.write(b"data")
    image = imported(store, root)
    [top, found] = store.layers.entries(image.diff_ids[0])
    assert (top.path, found.path, found.size) == (b"", b"sparse", 1 << 40)
    assert found.extents == (((1 << 30), 4096), ((1 << 35), 4096))
    save(store, image, tmp_path / "x.tar", refs=[ref("a:1")], form="docker")
    assert (tmp_path / "x.tar").stat().st_size < 30_000
    other = Store.open(tmp_path / "other")
    load(other, tmp_path / "x.tar")
    assert other.layers.entries(image.diff_ids[0])[1] == found


def test_the_default_is_zstd_in_a_layout_and_none_in_a_docker_archive(
    store: Store, tmp_path: Path
) -> None:
    image = the_image(store)
    for form, name, compression in (("oci", "a", "zstd"), ("docker", "b.tar", "none")):
        first = save(store, image, tmp_path / name, refs=[], form=form)  # type: ignore[arg-type]
        second = save(
            store, image, tmp_path / f"2{name}", refs=[], form=form, compression=compression  # type: ignore[arg-type]
        )  # fmt: skip
        assert first == second


def test_a_docker_archive_has_no_zstd_layers(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="zstd"):
        save(
            store, the_image(store), tmp_path / "x.tar", refs=[], form="docker", compression="zstd"
        )
    assert not (tmp_path / "x.tar").exists()


# The sha256 of the whole file: a change here breaks users who compare archives.
GOLDEN = {
    "oci": "1f870397c79daa1fe38264b6e5a0687160712a4b32dd44cddb127f3494cf35d4",
    "docker": "d6610fbd61180b42333f4d5743faf219100f9bbab736afdb92114c3589bc6d53",
}


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_the_same_image_gives_the_same_archive_on_any_machine(
    store: Store, tmp_path: Path, form: Form
) -> None:
    image = the_image(store)
    old_mask = os.umask(0o077)
    try:
        save(store, image, tmp_path / "1.tar", refs=[ref("a:1")], form=form, compression="none")
    finally:
        os.umask(old_mask)
    again = io.BytesIO()
    save(store, image, again, refs=[ref("a:1")], form=form, compression="none")
    assert (tmp_path / "1.tar").read_bytes() == again.getvalue()
    assert hashlib.sha256(again.getvalue()).hexdigest() == GOLDEN[form]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_compressed_layouts_are_the_same_every_time(
    store: Store, tmp_path: Path, compression: Compression
) -> None:
    image = the_image(store)
    trees = []
    for name in ("1", "2"):
        save(store, image, tmp_path / name, refs=[ref("a:1")], form="oci", compression=compression)
        trees.append({str(path.relative_to(tmp_path / name)): path.read_bytes()
                      for path in (tmp_path / name).rglob("*") if path.is_file()})  # fmt: skip
    assert trees[0] == trees[1]


def index_of(layout: Path) -> list[Json]:
    manifests: list[Json] = json.loads((layout / "index.json").read_bytes())["manifests"]
    return manifests


@pytest.mark.parametrize(
    ("refs", "annotations"),
    [
        ([], [None]),
        (["debian:12"], [("12", "docker.io/library/debian:12")]),
        (["acme/api:1"], [("1", "docker.io/acme/api:1")]),
        (["localhost/x:1"], [("1", "localhost/x:1")]),
        (["reg.io:5000/x/y:1"], [("1", "reg.io:5000/x/y:1")]),
        (
            ["a:1", "a:2", "b:1"],
            [("1", "docker.io/library/a:1"), ("2", "docker.io/library/a:2"),
             (None, "docker.io/library/b:1")],
        ),
    ],
    ids=["no-name", "official", "user", "localhost", "registry", "several"],
)  # fmt: skip
def test_the_index_names_the_image_as_containerd_and_skopeo_look_for_it(
    store: Store,
    tmp_path: Path,
    refs: list[str],
    annotations: list[tuple[str | None, str] | None],
) -> None:
    image = the_image(store)
    save(store, image, tmp_path / "o", refs=[ref(text) for text in refs], form="oci")
    index = index_of(tmp_path / "o")
    assert len({item["digest"] for item in index}) == 1
    found = [item.get("annotations") for item in index]
    expected: list[Json | None] = []
    for pair in annotations:
        if pair is None:
            expected.append(None)
            continue
        tag, full = pair
        expected.append({"io.containerd.image.name": full} | ({REF: tag} if tag else {}))
    assert found == expected
    if refs:
        loaded = load(Store.open(tmp_path / "other"), tmp_path / "o")
        assert loaded == [Loaded(image.image_id, tuple(ref(text) for text in refs))]


REF = "org.opencontainers.image.ref.name"


# -- where save writes -----------------------------------------------------------------------


def test_an_image_is_added_to_a_layout_and_its_tag_replaced(store: Store, tmp_path: Path) -> None:
    layout = Layout()
    old = layout.image([BASE], **named("1"))
    kept = layout.image([BASE, TOP], artifactType="kept as it is", **named("2"))
    layout.index = [old, kept]
    path = layout.write(tmp_path / "o")
    document = json.loads((path / "index.json").read_bytes()) | {"annotations": {"a": "b"}}
    (path / "index.json").write_text(json.dumps(document))
    image = the_image(store)
    first = save(store, image, path, refs=[ref("some/image:1")], form="oci")
    assert [item["digest"] for item in index_of(path)] == [kept["digest"], first.digest]
    assert index_of(path)[0] == kept
    assert json.loads((path / "index.json").read_bytes())["annotations"] == {"a": "b"}
    before = sorted(path.rglob("*"))
    assert save(store, image, path, refs=[ref("some/image:1")], form="oci") == first
    assert sorted(path.rglob("*")) == before
    assert len(index_of(path)) == 2


def test_a_second_image_takes_the_tag_of_the_first_and_not_its_name(
    store: Store, tmp_path: Path
) -> None:
    image = the_image(store)
    for name in ("a:1", "b:1"):
        save(store, image, tmp_path / "o", refs=[ref(name)], form="oci")
    assert [item["annotations"] for item in index_of(tmp_path / "o")] == [
        {"io.containerd.image.name": "docker.io/library/a:1"},
        {"io.containerd.image.name": "docker.io/library/b:1", REF: "1"},
    ]
    loaded = load(Store.open(tmp_path / "other"), tmp_path / "o")
    assert loaded == [Loaded(image.image_id, (ref("a:1"), ref("b:1")))]


def test_a_layout_may_be_written_into_an_empty_directory(store: Store, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    save(store, the_image(store), tmp_path / "o", refs=[ref("a:1")], form="oci")
    assert sorted(os.listdir(tmp_path / "o")) == ["blobs", "index.json", "oci-layout"]


def test_a_save_that_was_killed_in_an_empty_directory_can_be_repeated(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "o" / "blobs" / "sha256").mkdir(parents=True)
    (tmp_path / "o" / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    save(store, the_image(store), tmp_path / "o", refs=[ref("a:1")], form="oci")
    assert len(index_of(tmp_path / "o")) == 1


def _other_directory(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def _new_layout_version(path: Path) -> None:
    path.mkdir()
    (path / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')


@pytest.mark.parametrize(
    ("form", "name", "prepare", "kind", "says"),
    [
        ("oci", "dir", _other_directory, ConflictError, "not empty and is no OCI layout"),
        ("oci", "dir", _new_layout_version, FormatError, "the version '2.0.0'"),
        ("oci", "file", lambda path: path.write_text("mine"), UsageError, "is a file"),
        ("oci", "x.tar", lambda path: path.mkdir(), UsageError, "is a directory"),
        ("docker", "dir", lambda path: path.mkdir(), UsageError, "is a directory"),
        ("docker", "file/x.tar", lambda path: path.parent.write_text(""), HostError, "written"),
    ],
    ids=["not-a-layout", "newer-layout", "file", "tar-is-dir", "docker-dir", "no-dir"],
)
def test_nothing_but_a_layout_or_a_file_is_written_over(
    store: Store,
    tmp_path: Path,
    form: Form,
    name: str,
    prepare: Callable[[Path], None],
    kind: type[LayerstoreError],
    says: str,
) -> None:
    prepare(tmp_path / name)
    before = sorted(path for path in tmp_path.rglob("*") if "store" not in path.parts)
    image = the_image(store)
    with pytest.raises(kind, match=says):
        save(store, image, tmp_path / name, refs=[], form=form)
    assert sorted(path for path in tmp_path.rglob("*") if "store" not in path.parts) == before


@pytest.mark.parametrize("name", ["new", "image.tar", "old.tar"])
def test_a_save_that_fails_leaves_no_half_file(store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / "old.tar").write_text("old")
    image = the_image(store)
    digest = store.layers.entries(image.diff_ids[0])[0].digest
    assert digest is not None
    store.layout.object(digest).unlink()
    with pytest.raises(DamagedError, match=digest):
        save(store, image, tmp_path / name, refs=[], form="oci")
    assert sorted(os.listdir(tmp_path)) == ["old.tar", "store"]
    assert (tmp_path / "old.tar").read_text() == "old"
    assert os.listdir(store.layout.folder("tmp")) == []


def test_a_layer_whose_bytes_are_wrong_is_not_saved(store: Store, tmp_path: Path) -> None:
    image = the_image(store)
    digest = store.layers.entries(image.diff_ids[0])[0].digest
    assert digest is not None
    path = store.layout.object(digest)
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-1] + b"!")
    with pytest.raises(DamagedError, match=image.diff_ids[0]):
        save(store, image, tmp_path / "x.tar", refs=[], form="docker")
    assert os.listdir(tmp_path) == ["store"]


def test_an_archive_goes_through_pipes_both_ways(store: Store, tmp_path: Path) -> None:
    image = the_image(store)
    os.mkfifo(tmp_path / "pipe")
    other = Store.open(tmp_path / "other")
    loaded: list[Loaded] = []
    reader = threading.Thread(target=lambda: loaded.extend(load(other, tmp_path / "pipe")))
    reader.start()
    save(store, image, tmp_path / "pipe", refs=[ref("a:1")], form="docker", compression="gzip")
    reader.join()
    assert loaded == [Loaded(image.image_id, (ref("a:1"),))]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_full_disk_under_the_target_is_one_clear_error(store: Store) -> None:
    with pytest.raises(HostError, match="'/dev/full' cannot be written: No space left on device"):
        save(store, the_image(store), Path("/dev/full"), refs=[], form="docker")


@needs_overlay
def test_a_full_disk_under_the_store_is_one_clear_error_and_leaves_nothing(
    store: Store, tmp_path: Path
) -> None:
    layer = tar_of({"large": os.urandom(6 << 20)})
    files = docker_files({"l": layer}, tags=["a:1"], config=config_of([layer]))
    (tmp_path / "image.tar.gz").write_bytes(packed(tar_of(files), "gzip"))
    (tmp_path / "root.tar").write_bytes(layer)
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(mount)], check=True)
    try:
        small = Store.open(mount / "store")
        for path in (tmp_path / "image.tar.gz", tmp_path / "root.tar"):
            with pytest.raises(HostError, match=f"(?i)no space.*{mount}|{mount}.*full"):
                load(small, path) if path.suffix == ".gz" else imported(small, path)
            assert contents_of(small) == []
    finally:
        # Fails if a descriptor of the store was left open.
        subprocess.run(["umount", str(mount)], check=True)


# -- the kinds of archive that load takes ----------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("target", ["layout", "layout.tar"])
def test_a_layout_is_loaded(store: Store, tmp_path: Path, target: str, compression: str) -> None:
    layout = Layout()
    # The media type claims no compression: the first bytes are what counts.
    layout.index = [layout.image([BASE, TOP], compression=compression, **named("a/b:1"))]
    [loaded] = load(store, layout.write(tmp_path / target))
    assert loaded.refs == (ref("a/b:1"),)
    assert loaded.image_id == sha256(config_of([BASE, TOP]))
    assert layer_tars(store, loaded.image_id) == [BASE, TOP]


def test_blobs_of_a_layout_may_be_symlinks(store: Store, tmp_path: Path) -> None:
    layout = Layout()
    layout.index = [layout.image([BASE], **named("a:1"))]
    path = layout.write(tmp_path / "o")
    name = f"blobs/sha256/{sha256(BASE)[7:]}"
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    [loaded] = load(store, path)
    assert layer_tars(store, loaded.image_id) == [BASE]


LAYERS = {"1/layer.tar": BASE, "2/layer.tar": TOP}


@pytest.mark.parametrize("outer", ["none", "gzip", "zstd", "xz"])
@pytest.mark.parametrize("inner", ["none", "gzip", "zstd"])
def test_a_docker_archive_is_loaded(store: Store, tmp_path: Path, outer: str, inner: str) -> None:
    layers = {name: packed(tar, inner) for name, tar in LAYERS.items()}
    raw = tar_of(docker_files(layers, tags=["a/b:1", "c"], config=config_of([BASE, TOP])))
    path = tmp_path / "image"
    path.write_bytes(lzma.compress(raw) if outer == "xz" else packed(raw, outer))
    [loaded] = load(store, path)
    assert loaded.refs == (ref("a/b:1"), ref("c:latest"))
    assert layer_tars(store, loaded.image_id) == [BASE, TOP]


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("../1/layer.tar", tarfile.SYMTYPE),
        ("/1/layer.tar", tarfile.SYMTYPE),
        ("1/layer.tar", tarfile.LNKTYPE),
    ],
    ids=["relative", "absolute", "hardlink"],
)
def test_a_layer_of_a_docker_archive_may_be_a_link_to_another(
    store: Store, tmp_path: Path, target: str, kind: bytes
) -> None:
    layers: dict[str, bytes | tarfile.TarInfo] = {
        "1/layer.tar": BASE,
        "2/layer.tar": link(target, kind),
    }
    path = tmp_path / "image.tar"
    path.write_bytes(tar_of(docker_files(layers, tags=["a"], config=config_of([BASE, BASE]))))
    [loaded] = load(store, path)
    assert store.images.get(loaded.image_id).diff_ids == (sha256(BASE), sha256(BASE))


def test_of_a_tar_that_is_both_dockers_manifest_names_the_images(
    store: Store, tmp_path: Path
) -> None:
    layout = Layout()
    layout.index = [layout.image([BASE], **named("from-the-index:1"))]
    config = f"blobs/{sha256(config_of([BASE])).replace(':', '/')}"
    layer = f"blobs/{sha256(BASE).replace(':', '/')}"
    manifest = [{"Config": config, "RepoTags": ["from-docker:1"], "Layers": [layer]}]
    layout.files["manifest.json"] = json.dumps(manifest).encode()
    [loaded] = load(store, layout.write(tmp_path / "both.tar"))
    assert loaded.refs == (ref("from-docker:1"),)


def test_every_image_of_an_archive_is_loaded_and_shared_layers_are_stored_once(
    store: Store, tmp_path: Path
) -> None:
    layout = Layout()
    layout.index = [
        layout.image([BASE], **named("one:1")),
        layout.image([BASE, TOP], **named("two:2")),
    ]
    loaded = load(store, layout.write(tmp_path / "o.tar"))
    assert [image.refs for image in loaded] == [(ref("one:1"),), (ref("two:2"),)]
    assert store.layers.all() == sorted([DiffID(sha256(BASE)), DiffID(sha256(TOP))])


def test_an_image_without_layers_is_loaded(store: Store, tmp_path: Path) -> None:
    layout = Layout()
    layout.index = [layout.image([], **named("empty:1"))]
    [loaded] = load(store, layout.write(tmp_path / "o"))
    assert store.images.get(loaded.image_id).diff_ids == ()


# -- names -----------------------------------------------------------------------------------

CONTAINERD = "io.containerd.image.name"


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({REF: "debian:12"}, "debian:12"),
        ({REF: "12"}, "some.dir:12"),
        ({REF: "docker.io/library/debian:12"}, "debian:12"),
        ({CONTAINERD: "docker.io/library/debian:12", REF: "12"}, "debian:12"),
        ({CONTAINERD: "docker.io/acme/api:12", REF: "12"}, "acme/api:12"),
        ({CONTAINERD: "reg.io/acme/api:12", REF: "12"}, "reg.io/acme/api:12"),
    ],
    ids=["name", "tag", "official", "containerd", "user", "registry"],
)
def test_a_layout_names_its_image(
    store: Store, tmp_path: Path, annotations: dict[str, str], expected: str
) -> None:
    layout = Layout()
    layout.index = [layout.image([BASE], annotations=annotations)]
    assert load(store, layout.write(tmp_path / "some.dir"))[0].refs == (ref(expected),)
    assert load(store, layout.write(tmp_path / "some.dir.tar"))[0].refs == (ref(expected),)


def test_a_name_that_is_given_goes_before_all_others(store: Store, tmp_path: Path) -> None:
    layout = Layout()
    layout.index = [layout.image([BASE], **named("theirs:1"))]
    [loaded] = load(store, layout.write(tmp_path / "o"), name=ref("mine:2"))
    assert loaded.refs == (ref("mine:2"),)
    assert store.refs.names() == [ref("mine:2")]


def _nameless(layout: Layout) -> None:
    layout.index = [layout.image([BASE])]


def _two(layout: Layout) -> None:
    layout.index = [layout.image([BASE], **named("a:1")), layout.image([TOP], **named("b:1"))]


def _bad_name(layout: Layout) -> None:
    layout.index = [layout.image([BASE], **named("A b@c/:"))]


@pytest.mark.parametrize(
    ("build", "name", "says"),
    [
        (_nameless, None, "does not say what its image is called"),
        (_bad_name, None, "does not say what its image is called"),
        (_two, "x:1", "has 2 images, and only one can be called x:1: a:1, b:1"),
    ],
    ids=["nameless", "malformed", "one-name-for-two"],
)
def test_an_image_that_would_have_no_name_of_its_own_is_an_error(
    store: Store, tmp_path: Path, build: Callable[[Layout], None], name: str | None, says: str
) -> None:
    layout = Layout()
    build(layout)
    with pytest.raises(UsageError, match=says):
        load(store, layout.write(tmp_path / "o"), name=ref(name) if name else None)
    assert contents_of(store) == []


def test_an_image_of_a_docker_archive_without_tags_needs_a_name(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "image.tar"
    for tags in (None, [], ["<none>:<none>"]):
        path.write_bytes(tar_of(docker_files({"l": BASE}, tags=tags, config=config_of([BASE]))))
        with pytest.raises(UsageError, match="does not say what its image is called"):
            load(store, path)
    [loaded] = load(store, path, name=ref("mine"))
    assert loaded.refs == (ref("mine:latest"),)


def test_a_nameless_image_beside_named_ones_is_left_out_with_a_warning(
    store: Store, tmp_path: Path
) -> None:
    layout = Layout()
    layout.index = [layout.image([BASE], **named("a:1")), layout.image([TOP])]
    events: list[Event] = []
    [loaded] = load(store, layout.write(tmp_path / "o"), sink=events.append)
    assert loaded.refs == (ref("a:1"),)
    assert events == [Caution("left out 1 images that have no name", str(tmp_path / "o"))]


def test_one_image_of_an_archive_can_be_staged_for_a_larger_transaction(
    store: Store, tmp_path: Path
) -> None:
    layout = Layout()
    _nameless(layout)
    path = layout.write(tmp_path / "one")
    with store.transaction() as transaction:
        image_id = stage_archive(store, transaction, path)
        assert store.images.all() == []
        transaction.publish({ref("made:1"): image_id})
    assert store.refs.all() == {ref("made:1"): sha256(config_of([BASE]))}
    _two(layout)
    with store.transaction() as transaction, pytest.raises(UsageError, match="has 2 images"):
        stage_archive(store, transaction, layout.write(tmp_path / "two"))


# -- platforms -------------------------------------------------------------------------------


# Any: descriptor fields, as JSON has them.
def for_platform(layout: Layout, platform: str, **fields: Any) -> Json:
    """An image whose only difference is its platform."""
    system, architecture, *variant = platform.split("/")
    fact = {"os": system, "architecture": architecture} | (
        {"variant": variant[0]} if variant else {}
    )
    return layout.image([BASE], config=config_of([BASE], **fact), platform=fact, **fields)


@pytest.mark.parametrize(
    ("offered", "wanted", "chosen"),
    [
        ("linux/arm64 linux/amd64", "linux/amd64", "linux/amd64"),
        ("linux/amd64/v3 linux/amd64", "linux/amd64", "linux/amd64"),
        ("linux/amd64/v1 windows/amd64", "linux/amd64", "linux/amd64/v1"),
        ("linux/arm64/v8 linux/amd64", "linux/arm64", "linux/arm64/v8"),
        ("linux/arm/v6 linux/arm/v7 linux/arm/v5", "linux/arm/v7", "linux/arm/v7"),
        ("linux/arm/v6 linux/arm64", "linux/arm/v7", "linux/arm/v6"),
        ("linux/s390x", "linux/amd64", "linux/s390x"),
    ],
)
@pytest.mark.parametrize("is_nested", [False, True], ids=["flat", "nested"])
def test_the_image_of_the_wanted_platform_is_chosen(
    store: Store, tmp_path: Path, offered: str, wanted: str, chosen: str, is_nested: bool
) -> None:
    layout = Layout()
    if is_nested:
        children = [for_platform(layout, platform) for platform in offered.split()]
        attestation = layout.image([TOP], platform={"os": "unknown", "architecture": "unknown"})
        middle = layout.nested([*children, attestation])
        layout.index = [layout.nested([middle], **named("a:1"))]
    else:
        layout.index = [for_platform(layout, text, **named("a:1")) for text in offered.split()]
    events: list[Event] = []
    [loaded] = load(
        store,
        layout.write(tmp_path / "o"),
        platform=Platform(*wanted.split("/")),
        sink=events.append,
    )
    assert str(store.images.get(loaded.image_id).config.platform) == chosen
    foreign = [Caution(f"is an image for {chosen}, not {wanted}", f"{tmp_path / 'o'}: a:1")]
    assert events == (foreign if chosen == "linux/s390x" else [])


def test_blobs_of_other_platforms_need_not_be_there(store: Store, tmp_path: Path) -> None:
    layout = Layout()
    missing = for_platform(Layout(), "linux/arm64")
    layout.index = [layout.nested([missing, for_platform(layout, "linux/amd64")], **named("a:1"))]
    load(store, layout.write(tmp_path / "o"), platform=AMD64)
    assert store.refs.names() == [ref("a:1")]


def test_manifests_without_a_platform_are_told_apart_by_their_configs(
    store: Store, tmp_path: Path
) -> None:
    layout = Layout()
    children = [
        layout.image([BASE], config=config_of([BASE], architecture=name))
        for name in ("arm64", "amd64")
    ]
    signature = layout.image([], config=b"{}", config_type="application/vnd.oci.empty.v1+json")
    layout.index = [layout.nested([signature, *children], **named("a:1"))]
    [loaded] = load(store, layout.write(tmp_path / "o"), platform=AMD64)
    assert loaded.image_id == sha256(config_of([BASE], architecture="amd64"))


@pytest.mark.parametrize(
    ("offered", "says"),
    [
        (
            "linux/arm64 linux/s390x",
            "no image 'a:1' for linux/amd64, only for linux/arm64, linux/s390x",
        ),
        ("linux/amd64/v2 linux/amd64/v3", "only for linux/amd64/v2, linux/amd64/v3"),
    ],
)
def test_no_image_for_the_platform_is_an_error_that_says_what_there_is(
    store: Store, tmp_path: Path, offered: str, says: str
) -> None:
    layout = Layout()
    children = [for_platform(layout, platform) for platform in offered.split()]
    layout.index = [layout.nested(children, **named("a:1"))]
    with pytest.raises(FormatError, match=says):
        load(store, layout.write(tmp_path / "o"), platform=AMD64)


# -- what is refused -------------------------------------------------------------------------


def damaged_blob(layout: Layout, content: bytes) -> None:
    name = f"blobs/sha256/{sha256(content)[7:]}"
    layout.files[name] = content[:600] + bytes([content[600] ^ 1]) + content[601:]


def build_layer_damage(layout: Layout) -> None:
    layout.index = [layout.image([BASE, TOP], **named("a:1"))]
    damaged_blob(layout, BASE)


def build_gzip_damage(layout: Layout) -> None:
    tar = tar_of({"random": os.urandom(5000)})
    layout.index = [layout.image([tar], compression="gzip", **named("a:1"))]
    damaged_blob(layout, packed(tar, "gzip"))


def build_gzip_comment(layout: Layout) -> None:
    """The same layer in another gzip stream than the one of the descriptor."""
    layout.index = [layout.image([BASE], compression="gzip", **named("a:1"))]
    content = packed(BASE, "gzip")
    layout.files[f"blobs/sha256/{sha256(content)[7:]}"] = content[:4] + b"\1" + content[5:]


def build_truncated(layout: Layout) -> None:
    layout.index = [layout.image([BASE], **named("a:1"))]
    layout.files[f"blobs/sha256/{sha256(BASE)[7:]}"] = BASE[:1024]


def build_missing(layout: Layout) -> None:
    layout.index = [layout.image([BASE, TOP], **named("a:1"))]
    del layout.files[f"blobs/sha256/{sha256(TOP)[7:]}"]


def build_config_damage(layout: Layout) -> None:
    layout.index = [layout.image([BASE], **named("a:1"))]
    config = config_of([BASE])
    layout.files[f"blobs/sha256/{sha256(config)[7:]}"] = config.replace(b"amd64", b"arm64")


def build_manifest_damage(layout: Layout) -> None:
    layout.index = [layout.image([BASE], **named("a:1")) | {"size": 3}]


def build_wrong_diff_id(layout: Layout) -> None:
    layout.index = [layout.image([BASE], config=config_of([TOP]), **named("a:1"))]


def build_fewer_diff_ids(layout: Layout) -> None:
    layout.index = [layout.image([BASE, TOP], config=config_of([BASE]), **named("a:1"))]


def build_encrypted(layout: Layout) -> None:
    layout.index = [layout.image([BASE], layer_type=LAYER + "+encrypted", **named("a:1"))]


def build_artifact(layout: Layout) -> None:
    layout.index = [layout.image([BASE], config_type="application/vnd.cncf.helm", **named("a:1"))]


def build_empty_index(layout: Layout) -> None:
    layout.index = []


def build_deep(layout: Layout) -> None:
    descriptor = layout.image([BASE])
    for _ in range(6):
        descriptor = layout.nested([descriptor], **named("a:1"))
    layout.index = [descriptor]


def build_wide(layout: Layout) -> None:
    layout.index = [layout.nested([], **named("a:1"))] * 2000


def build_bad_config(layout: Layout) -> None:
    layout.index = [layout.image([], config=b'{"os": "linux", "os": "other"}', **named("a:1"))]


def build_hostile(layout: Layout) -> None:
    layout.index = [layout.image([BASE, tar_of({"../escape": b"x"})], **named("a:1"))]


def build_dangling_link(layout: Layout) -> None:
    tar = tar_of({"name": link("nothing/there", tarfile.LNKTYPE)})
    layout.index = [layout.image([BASE, tar], **named("a:1"))]


def build_reserved(layout: Layout) -> None:
    layout.index = [layout.image([BASE, tar_of({".layerstore/ab/c": b"x"})], **named("a:1"))]


def build_layout_version(layout: Layout) -> None:
    layout.index = [layout.image([BASE], **named("a:1"))]
    layout.files["oci-layout"] = b'{"imageLayoutVersion": "9"}'


def build_same_name_twice(layout: Layout) -> None:
    layout.index = [layout.image([tar], **named("a:1")) for tar in (BASE, TOP)]


REFUSED: list[tuple[Callable[[Layout], None], str]] = [
    (build_layer_damage, "has the digest sha256:"),
    (build_gzip_damage, "the blob blobs/sha256/[0-9a-f]+ has the digest sha256:"),
    (build_gzip_comment, "the blob blobs/sha256/[0-9a-f]+ has the digest sha256:"),
    (build_truncated, f"has 1024 bytes, not {len(BASE)}"),
    (build_missing, f"has no file .?blobs/sha256/{sha256(TOP)[7:]}"),
    (build_config_damage, f"the blob {sha256(config_of([BASE]))} is damaged"),
    (build_manifest_damage, "is damaged"),
    (build_wrong_diff_id, f"has the digest {sha256(BASE)}, where {sha256(TOP)} was promised"),
    (build_fewer_diff_ids, "a:1 has 2 layers, but its config names 1"),
    (build_encrypted, r"no known type of layer: '.*\+encrypted'"),
    (build_artifact, "has no image"),
    (build_empty_index, "has no image"),
    (build_deep, "nests its indexes too deeply"),
    (build_wide, "nests its indexes too deeply"),
    (build_bad_config, "a key is there twice"),
    (build_hostile, "leaves the root"),
    (build_dangling_link, "the hard link '/name' leads to '/nothing/there', which does not exist"),
    (build_reserved, "/.layerstore is reserved"),
    (build_layout_version, "the version '9' of the image layout is unknown"),
    (build_same_name_twice, "has 2 images for linux/amd64 'a:1'"),
]


@pytest.mark.parametrize("target", ["o", "o.tar"])
@pytest.mark.parametrize(
    ("build", "says"), REFUSED, ids=[build.__name__[6:] for build, _ in REFUSED]
)
def test_an_archive_that_is_not_whole_and_true_leaves_nothing_behind(
    store: Store, tmp_path: Path, build: Callable[[Layout], None], says: str, target: str
) -> None:
    layout = Layout()
    build(layout)
    path = layout.write(tmp_path / target)
    with pytest.raises(FormatError, match=says) as caught:
        load(store, path, platform=AMD64)
    assert str(path) in caught.value.brief or "layerstore is reserved" in caught.value.brief
    assert contents_of(store) == []


@pytest.mark.parametrize("build", [build_layer_damage, build_gzip_comment], ids=["tar", "gzip"])
def test_what_the_store_holds_already_does_not_make_a_damaged_archive_good(
    store: Store, tmp_path: Path, build: Callable[[Layout], None]
) -> None:
    good, bad = Layout(), Layout()
    good.index = [good.image([BASE, TOP], **named("good:1"))]
    load(store, good.write(tmp_path / "good"))
    before = contents_of(store)
    build(bad)
    with pytest.raises(FormatError, match="has the digest"):
        load(store, bad.write(tmp_path / "bad"))
    assert contents_of(store) == before


def test_a_layer_that_is_there_is_not_written_again(store: Store, tmp_path: Path) -> None:
    layout = Layout()
    layout.index = [layout.image([BASE], **named("a:1"))]
    path = layout.write(tmp_path / "o")
    load(store, path)
    record = store.layout.layer(DiffID(sha256(BASE))) / "entries"
    before = record.stat().st_ino, record.stat().st_mtime_ns
    load(store, path, name=ref("b:1"))
    assert (record.stat().st_ino, record.stat().st_mtime_ns) == before
    assert store.refs.names() == [ref("a:1"), ref("b:1")]


def _lose_object(store: Store) -> None:
    digest = store.layers.entries(DiffID(sha256(BASE)))[0].digest
    assert digest is not None
    store.layout.object(digest).unlink()


def _shorten_object(store: Store) -> None:
    digest = store.layers.entries(DiffID(sha256(BASE)))[0].digest
    assert digest is not None
    path = store.layout.object(digest)
    path.unlink()
    path.write_bytes(b"b")


def _spoil(name: str) -> Callable[[Store], None]:
    def spoil(store: Store) -> None:
        path = store.layout.layer(DiffID(sha256(BASE))) / name
        raw = path.read_bytes()
        path.write_bytes(raw[:40] + b"spoilt" + raw[46:])

    return spoil


@pytest.mark.parametrize(
    "damage",
    [_lose_object, _shorten_object, _spoil("entries"), _spoil("tarsplit")],
    ids=["object-lost", "object-short", "entries", "tarsplit"],
)
def test_loading_an_image_again_heals_its_layers(
    store: Store, tmp_path: Path, damage: Callable[[Store], None]
) -> None:
    layout = Layout()
    layout.index = [layout.image([BASE], **named("a:1"))]
    path = layout.write(tmp_path / "o")
    [loaded] = load(store, path)
    damage(store)
    with pytest.raises(DamagedError):
        (store.layers.entries(DiffID(sha256(BASE))), layer_tars(store, loaded.image_id))
    load(store, path)
    store.layers.entries(DiffID(sha256(BASE)))
    assert layer_tars(store, loaded.image_id) == [BASE]


def docker_damage(files: dict[str, bytes | tarfile.TarInfo], case: str) -> None:
    manifest = json.loads(files["manifest.json"])  # type: ignore[arg-type]
    config = manifest[0]["Config"]
    if case == "config-damaged":
        content = files[config]
        assert isinstance(content, bytes)
        files[config] = content.replace(b"amd64", b"arm64")
    elif case == "escape":
        manifest[0]["Config"] = "../../../../../etc/passwd"
    elif case == "symlink-out":
        files["2/layer.tar"] = link("../../../../../../etc/passwd")
    elif case == "symlink-loop":
        files["2/layer.tar"] = link("layer.tar")
    elif case == "layer-missing":
        del files["2/layer.tar"]
    elif case == "layer-damaged":
        files["2/layer.tar"] = BASE
    elif case == "no-list":
        manifest = {}
    elif case == "empty":
        manifest = []
    elif case == "two-claim-one-name":
        manifest = [manifest[0], manifest[0] | {"Config": "other.json", "Layers": ["1/layer.tar"]}]
        files["other.json"] = config_of([BASE])
    files["manifest.json"] = json.dumps(manifest).encode()


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("config-damaged", "is damaged: its digest is"),
        ("escape", "has no file '../../../../../etc/passwd'"),
        ("symlink-out", "has no file '2/layer.tar'"),
        ("symlink-loop", "has no file '2/layer.tar'"),
        ("layer-missing", "has no file '2/layer.tar'"),
        ("layer-damaged", f"has the digest {sha256(BASE)}, where {sha256(TOP)} was promised"),
        ("no-list", "is no JSON list"),
        ("empty", "has no image"),
        ("two-claim-one-name", "calls two images a:1"),
    ],
)
def test_a_docker_archive_that_is_not_whole_and_true_leaves_nothing_behind(
    store: Store, tmp_path: Path, case: str, says: str
) -> None:
    files = docker_files(LAYERS, tags=["a:1"], config=config_of([BASE, TOP]))
    docker_damage(files, case)
    path = tmp_path / "image.tar"
    path.write_bytes(tar_of(files))
    with pytest.raises(FormatError, match=says) as caught:
        load(store, path)
    assert str(path) in caught.value.brief
    assert contents_of(store) == []


def whole_archive() -> bytes:
    files = docker_files(LAYERS, tags=["a:1"], config=config_of([BASE, TOP]))
    return tar_of(files)


@pytest.mark.parametrize("outer", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("keep", [0.1, 0.4, 0.7])
def test_a_truncated_archive_is_refused(
    store: Store, tmp_path: Path, keep: float, outer: str
) -> None:
    content = packed(whole_archive(), outer)
    path = tmp_path / "image.tar"
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(FormatError, match=str(path)):
        load(store, path)
    assert contents_of(store) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "neither an OCI layout nor a docker archive"),
        (b"hello " * 1000, "checksum|number"),
        (BASE, "neither an OCI layout nor a docker archive"),
    ],
    ids=["empty", "text", "rootfs"],
)
def test_a_file_that_is_no_archive_of_images_is_refused(
    store: Store, tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FormatError, match=says):
        load(store, tmp_path / "x")


def test_a_directory_that_is_no_layout_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "manifest.json").write_text("[]")
    with pytest.raises(FormatError, match="neither an OCI layout nor a docker archive"):
        load(store, tmp_path / "d")
    (tmp_path / "d" / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    os.mkfifo(tmp_path / "d" / "index.json")
    with pytest.raises(FormatError, match="neither an OCI layout nor a docker archive"):
        load(store, tmp_path / "d")


def test_a_path_that_does_not_exist_is_not_found(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no file '.*/nothing'"):
        load(store, tmp_path / "nothing")
    with pytest.raises(NotFoundError, match=r"there is no file '.*/nothing'"):
        import_root(store, tmp_path / "nothing", ref("a"), platform=AMD64, created=CREATED)


def test_limits_hold_for_every_layer(store: Store, tmp_path: Path) -> None:
    layout = Layout()
    layout.index = [layout.image([BASE], **named("a:1"))]
    with pytest.raises(FormatError, match="has more than 1 entries"):
        load(store, layout.write(tmp_path / "o"), limits=Limits(entries=1))
    with pytest.raises(FormatError, match="larger than the limit of 9999 bytes"):
        load(store, layout.write(tmp_path / "o"), limits=Limits(total_bytes=9999))
    assert contents_of(store) == []


MEASURE = """
import sys
from pathlib import Path
from layerstore.archive import load, save
from layerstore.names import ImageRef
from layerstore.store.store import Store
store = Store.open(Path(sys.argv[1]))
[loaded] = load(store, Path(sys.argv[2]))
image = store.images.get(loaded.image_id)
for form, compression in (("oci", "zstd"), ("oci", "gzip"), ("docker", "none")):
    target = Path(sys.argv[2] + f".{form}.{compression}.tar")
    save(store, image, target, refs=[], form=form, compression=compression)
    load(store, target, name=ImageRef.parse("again"))
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 1024)
"""


def test_memory_stays_small_however_large_a_layer_is(tmp_path: Path) -> None:
    block = os.urandom(1 << 16) + b"text " * 50_000
    large = io.BytesIO()
    with tarfile.open(fileobj=large, mode="w") as archive:
        info = tarfile.TarInfo("large")
        info.size = len(block) * 600
        archive.addfile(info, io.BytesIO(block * 600))
    layer = large.getvalue()
    files = docker_files({"l": layer}, tags=["a:1"], config=config_of([layer]))
    path = tmp_path / "image.tar.gz"
    path.write_bytes(gzip.compress(tar_of(files), 1))
    del files, large
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "store"), str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 100 << 20


# -- import ----------------------------------------------------------------------------------

CREATED = "2024-05-06T07:08:09Z"


def imported(store: Store, path: Path, **options: object) -> Image:
    image_id = import_root(store, path, ref("root"), platform=AMD64, created=CREATED, **options)  # type: ignore[arg-type]
    assert store.refs.get(ref("root")) == image_id
    return store.images.get(image_id)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd", "xz"])
def test_a_root_tar_becomes_an_image_of_one_layer_bit_for_bit(
    store: Store, tmp_path: Path, compression: str
) -> None:
    content = lzma.compress(BASE) if compression == "xz" else packed(BASE, compression)
    (tmp_path / "root").write_bytes(content)
    image = imported(store, tmp_path / "root", run={"Cmd": ["sh"]})
    assert [tar_bytes(store, diff_id) for diff_id in image.diff_ids] == [BASE]
    assert json.loads(image.raw_config) == {
        "created": CREATED,
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [sha256(BASE)]},
        "history": [{"created": CREATED, "created_by": "layerstore import"}],
    }


def make_root(path: Path, names: list[str], mask: int) -> Path:
    old = os.umask(mask)
    try:
        path.mkdir()
        for name in names:
            (path / name).mkdir()
            (path / name / "file").write_text(name)
            os.link(path / name / "file", path / name / "link")
            (path / name / "symlink").symlink_to("file")
    finally:
        os.umask(old)
    for found in (path, *path.rglob("*")):
        if not found.is_symlink():
            found.chmod(0o755 if found.is_dir() else 0o640)
        os.utime(found, ns=(0, 1_600_000_000_123_456_789), follow_symlinks=False)
    return path


def test_a_directory_becomes_the_same_image_whatever_the_umask_and_the_order(
    store: Store, tmp_path: Path
) -> None:
    names = [f"d{number}" for number in range(50)]
    first = imported(store, make_root(tmp_path / "1", names, 0o022))
    old = os.umask(0o077)
    try:
        second = imported(store, make_root(tmp_path / "2", names[::-1], 0o077))
    finally:
        os.umask(old)
    assert first == second
    entries = {entry.path: entry for entry in store.layers.entries(first.diff_ids[0])}
    assert len(entries) == 1 + 50 * 4
    assert entries[b"d1/file"].mode == 0o640
    assert entries[b"d1/file"].mtime_ns == 1_600_000_000 * 10**9
    assert (entries[b"d1/link"].kind, entries[b"d1/link"].link) == (ord("1"), b"d1/file")
    assert entries[b"d1/symlink"].link == b"file"


def test_times_of_a_directory_after_the_latest_become_it(store: Store, tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", ["d"], 0o022)
    os.utime(root / "d" / "file", (0, 5))
    image = imported(store, root, latest=1000)
    entries = store.layers.entries(image.diff_ids[0])
    times = {entry.path: entry.mtime_ns // 10**9 for entry in entries}
    assert times == {b"": 1000, b"d": 1000, b"d/file": 5, b"d/link": 5, b"d/symlink": 1000}


@needs_root
def test_a_whiteout_device_in_a_directory_is_an_error_and_no_whiteout(
    store: Store, tmp_path: Path
) -> None:
    root = make_root(tmp_path / "root", ["d"], 0o022)
    os.mknod(root / "d" / "gone", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    with pytest.raises(FormatError, match="'/d/gone' is a device 0:0"):
        imported(store, root)
    assert contents_of(store) == []


@needs_root
def test_marks_of_some_overlay_in_a_directory_mean_nothing(store: Store, tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", ["d"], 0o022)
    (root / "d" / "empty").touch()
    for prefix in ("trusted.overlay.", "user.overlay."):
        os.setxattr(root / "d", f"{prefix}opaque", b"y")
        os.setxattr(root / "d", f"{prefix}redirect", b"/elsewhere")
        os.setxattr(root / "d" / "file", f"{prefix}metacopy", b"")
        os.setxattr(root / "d" / "empty", f"{prefix}whiteout", b"y")
    os.setxattr(root / "d" / "file", "user.mine", b"kept")
    image = imported(store, root)
    entries = {entry.path: entry for entry in store.layers.entries(image.diff_ids[0])}
    assert sorted(entries) == [b"", b"d", b"d/empty", b"d/file", b"d/link", b"d/symlink"]
    assert entries[b"d/file"].xattrs == ((b"user.mine", b"kept"),)
    assert entries[b"d/file"].size == 1
    assert entries[b"d"].xattrs == entries[b"d/empty"].xattrs == ()


def cut(keep: int, compression: str = "none") -> bytes:
    return packed(BASE, compression)[:keep]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the zero blocks that end a tar are missing"),
        (tar_of({}), "holds nothing"),
        (cut(1024), "the zero blocks that end a tar are missing"),
        (cut(514), "is truncated inside a file's content"),
        (cut(300), "is truncated inside a header"),
        (cut(100, "gzip"), "the gzip data is truncated"),
        (cut(100, "zstd"), "the zstd data is truncated"),
        (BASE[:5] + b"!" + BASE[6:], "checksum is wrong"),
        (b"no archive at all " * 100, "is no number|checksum is wrong"),
        (tar_of({"a/../../b": b""}), "leaves the root"),
        (tar_of({"x": link("nowhere", tarfile.LNKTYPE)}), "leads to '/nowhere'"),
        (tar_of({".layerstore": b""}), "/.layerstore is reserved"),
    ],
    ids=["empty", "no-entries", "between-entries", "in-content", "in-header", "gzip", "zstd",
         "damaged", "text", "hostile", "link", "reserved"],
)  # fmt: skip
def test_a_malformed_root_is_one_clear_error_and_leaves_nothing(
    store: Store, tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "root.tar"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=says) as caught:
        imported(store, path)
    assert str(path) in caught.value.brief or "reserved" in caught.value.brief
    assert contents_of(store) == []


def test_an_empty_directory_is_no_root(store: Store, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(FormatError, match="holds nothing"):
        imported(store, tmp_path / "root")


def test_importing_an_archive_of_images_warns_that_load_was_meant(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(whole_archive())
    events: list[Event] = []
    imported(store, path, sink=events.append)
    assert events == [
        Caution("looks like an archive of images: layerstore load takes those", str(path))
    ]
