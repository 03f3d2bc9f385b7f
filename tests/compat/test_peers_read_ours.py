"""What ``save`` writes, other tools read, and they show the tree that the layers say."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from abilities import needs_root, needs_tool
from archives import config_of, docker_files, link, sha256, tar_of
from facts import (
    Facts,
    differences,
    in_whole_seconds,
    of_directory,
    of_image,
    of_tar,
)

from layerstore.archive import load, save
from layerstore.archive_save import Form
from layerstore.formats.compress import Compression
from layerstore.names import ImageRef
from layerstore.store.store import Store

if TYPE_CHECKING:
    from peers import Rich, Tool

pytest_plugins = ("peers",)

REFS = [ImageRef.parse("compat/rich:1")]

# docker and podman set times before 1970 to 1970: reference case 81.
CLAMPED = {b"numbers/before-1970": {"mtime_ns": (-86_400 * 10**9, 0)}}


def show_of_docker(docker: Tool, image: str) -> Facts:
    """What ``docker export`` gives, without what ``docker create`` adds to every container."""
    container = docker("create", image, "command")
    with docker.popen("export", container) as exporter:
        assert exporter.stdout is not None
        facts = of_tar(exporter.stdout)  # type: ignore[arg-type]
        exporter.stdout.read()
    docker("rm", container)
    added = (b".dockerenv", b"dev", b"etc", b"proc", b"sys")
    return {path: fact for path, fact in facts.items() if path.split(b"/")[0] not in added}


@contextmanager
def mounted_by_podman(podman: Tool, image: str) -> Iterator[bytes]:
    yield podman("image", "mount", image).encode()
    podman("image", "unmount", image)


# -- skopeo ----------------------------------------------------------------------------------

READABLE: list[tuple[Form, str, str]] = [
    ("oci", "layout", "oci:{}:1"),
    ("oci", "layout.tar", "oci-archive:{}:1"),
    ("docker", "image.tar", "docker-archive:{}:compat/rich:1"),
    ("docker", "image.tar", "oci-archive:{}:1"),
]

COMPRESSIONS: dict[Form, list[Compression]] = {
    "oci": ["none", "gzip", "zstd"],
    "docker": ["none", "gzip"],
}


@needs_tool("skopeo")
@pytest.mark.parametrize(
    ("form", "target", "source", "compression"),
    [(*case, compression) for case in READABLE for compression in COMPRESSIONS[case[0]]],
)
def test_skopeo_copies_every_blob_and_knows_the_image(
    rich: Rich,
    skopeo: Tool,
    tmp_path: Path,
    form: Form,
    target: str,
    source: str,
    compression: Compression,
) -> None:
    path = tmp_path / target
    top = save(rich.store, rich.image, path, refs=REFS, form=form, compression=compression)
    name = source.format(path)
    shown = skopeo.json("inspect", name)
    assert (shown["Os"], shown["Architecture"]) == ("linux", "amd64")
    assert (shown["Created"], shown["Env"]) == ("2020-01-01T00:00:00Z", ["A=b"])
    assert skopeo("inspect", "--raw", "--config", name).encode() == rich.image.raw_config
    copied = tmp_path / "copied"
    skopeo("copy", name, f"dir:{copied}")
    manifest = json.loads((copied / "manifest.json").read_bytes())
    assert manifest["config"]["digest"] == rich.image.image_id
    for item in (manifest["config"], *manifest["layers"]):
        content = (copied / item["digest"][7:]).read_bytes()
        assert (sha256(content), len(content)) == (item["digest"], item["size"])
    if not name.startswith("docker-archive"):
        assert sha256((copied / "manifest.json").read_bytes()) == top.digest


# -- the tree, by each tool that unpacks one -------------------------------------------------


@needs_root
@needs_tool("umoci")
def test_umoci_unpacks_exactly_the_tree(rich: Rich, umoci: Tool, tmp_path: Path) -> None:
    save(rich.store, rich.image, tmp_path / "o", refs=REFS, form="oci", compression="gzip")
    umoci("unpack", "--image", f"{tmp_path / 'o'}:1", tmp_path / "bundle")
    found = of_directory(bytes(tmp_path / "bundle" / "rootfs"))
    assert differences(rich.facts, found) == {}


PODMAN_READS: list[tuple[Form, Compression]] = [
    ("docker", "none"), ("docker", "gzip"), ("oci", "zstd"),
]  # fmt: skip


@needs_root
@needs_tool("podman")
@pytest.mark.parametrize(("form", "compression"), PODMAN_READS)
def test_podman_mounts_the_tree_but_for_times_before_1970(
    rich: Rich, podman: Tool, tmp_path: Path, form: Form, compression: Compression
) -> None:
    path = tmp_path / "image.tar"
    save(rich.store, rich.image, path, refs=REFS, form=form, compression=compression)
    podman("load", "--input", path)
    assert podman("image", "inspect", "--format", "{{.Id}}", "docker.io/compat/rich:1") == (
        rich.image.image_id.hex
    )
    with mounted_by_podman(podman, "docker.io/compat/rich:1") as root:
        found = of_directory(root)
    podman("rmi", "--force", rich.image.image_id.hex)
    assert differences(rich.facts, found) == CLAMPED


@needs_root
@needs_tool("docker", "dockerd")
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_docker_exports_the_tree_but_for_times_before_1970_and_its_own_omissions(
    rich: Rich, docker: Tool, tmp_path: Path, compression: Compression
) -> None:
    path = tmp_path / "image.tar"
    save(rich.store, rich.image, path, refs=REFS, form="docker", compression=compression)
    docker("load", "--input", path)
    assert docker("image", "inspect", "--format", "{{.Id}}", "compat/rich:1") == (
        rich.image.image_id
    )
    found = show_of_docker(docker, "compat/rich:1")
    docker("rmi", "--force", rich.image.image_id)
    expected = in_whole_seconds(rich.facts)
    # Exports leave out all xattrs but capabilities: reference cases 31 and 36.
    omitted = {
        path: {"xattrs": (expected[path].xattrs, ())}
        for path in (b"xattrs", b"xattrs/acl", b"xattrs/user")
    }
    assert differences(expected, found) == CLAMPED | omitted


# -- what some tools cannot do with an image of ours -----------------------------------------


@needs_root
@needs_tool("docker", "dockerd")
def test_docker_shows_a_sparse_file_and_cannot_save_its_layer_again(
    rich: Rich, docker: Tool, tmp_path: Path
) -> None:
    save(rich.store, rich.image, tmp_path / "in.tar", refs=REFS, form="docker")
    docker("load", "--input", tmp_path / "in.tar")
    # tar-split, which docker regenerates layers with, has no sparse members. The same holds for
    # podman and buildah, and for pushes.
    said = docker.error("save", "--output", tmp_path / "out.tar", "compat/rich:1")
    docker("rmi", "--force", rich.image.image_id)
    assert f"could not verify layer data for: {rich.image.diff_ids[0]}" in said


@needs_root
@needs_tool("podman")
def test_podman_shows_a_sparse_file_and_cannot_save_its_layer_again(
    rich: Rich, podman: Tool, tmp_path: Path
) -> None:
    save(rich.store, rich.image, tmp_path / "in.tar", refs=REFS, form="docker")
    podman("load", "--input", tmp_path / "in.tar")
    said = podman.error("save", "--format", "oci-archive", "--output", tmp_path / "out.tar",
                        rich.image.image_id.hex)  # fmt: skip
    podman("rmi", "--force", rich.image.image_id.hex)
    assert f"Digest did not match, expected {rich.image.diff_ids[0]}" in said


# -- where tools disagree about a layer that is not ours -------------------------------------


Members = dict[str, bytes | tarfile.TarInfo]


def _layers(case: str) -> tuple[bytes, bytes]:
    """Two tars: a base, and a layer that tools read in different ways."""

    def directory() -> tarfile.TarInfo:
        info = tarfile.TarInfo()
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        return info

    base: Members = {"d": directory(), "d/f1": b"1", "d/sub": directory(), "d/sub/x": b"2",
            "usr": directory(), "usr/lib": directory(), "usr/lib/so": b"3",
            "lib": link("usr/lib")}  # fmt: skip
    tops: dict[str, Members] = {
        "replaced": {".wh.d": b"", "d": directory(), "d/new": b"4"},
        "symlink": {"lib/new": b"4"},
        "opaque-last": {"d": directory(), "d/new": b"4", "d/.wh..wh..opq": b""},
    }
    return tar_of(base), tar_of(tops[case])


NOW_UNDER_D = {
    # Reference case 56: a whiteout acts on lower layers only, whatever its place.
    ("replaced", "ours"): [b"d", b"d/new"],
    ("replaced", "umoci"): [b"d", b"d/new"],
    ("replaced", "podman"): [b"d", b"d/f1", b"d/new", b"d/sub", b"d/sub/x"],
    ("replaced", "docker"): [b"d", b"d/f1", b"d/new", b"d/sub", b"d/sub/x"],
    # Reference case 62: all agree.
    ("opaque-last", "ours"): [b"d", b"d/new"],
    ("opaque-last", "umoci"): [b"d", b"d/new"],
    ("opaque-last", "podman"): [b"d", b"d/new"],
    ("opaque-last", "docker"): [b"d", b"d/new"],
    # Reference case 70: through the symlink, or instead of it.
    ("symlink", "ours"): [b"lib", b"usr/lib", b"usr/lib/new", b"usr/lib/so"],
    ("symlink", "umoci"): [b"lib", b"usr/lib", b"usr/lib/new", b"usr/lib/so"],
    ("symlink", "podman"): [b"lib", b"lib/new", b"usr/lib", b"usr/lib/so"],
    ("symlink", "docker"): [b"lib", b"lib/new", b"usr/lib", b"usr/lib/so"],
}


@needs_root
@pytest.mark.parametrize(
    "tool",
    [
        "ours",
        pytest.param("umoci", marks=needs_tool("umoci")),
        pytest.param("podman", marks=needs_tool("podman")),
        pytest.param("docker", marks=needs_tool("docker", "dockerd")),
    ],
)
@pytest.mark.parametrize("case", ["replaced", "opaque-last", "symlink"])
def test_a_foreign_layer_is_passed_on_as_it_is_and_each_tool_reads_it_its_own_way(
    request: pytest.FixtureRequest, tmp_path: Path, case: str, tool: str
) -> None:
    layers = _layers(case)
    files = docker_files(
        {"0": layers[0], "1": layers[1]}, tags=["case:1"], config=config_of(layers)
    )
    (tmp_path / "in.tar").write_bytes(tar_of(files))
    store = Store.open(tmp_path / "store")
    [loaded] = load(store, tmp_path / "in.tar")
    image = store.images.get(loaded.image_id)
    out = tmp_path / ("layout" if tool == "umoci" else "out.tar")
    save(store, image, out, refs=loaded.refs, form="oci" if tool == "umoci" else "docker",
         compression="none")  # fmt: skip
    if tool == "ours":
        facts = of_image(store, image.diff_ids)
    elif tool == "umoci":
        request.getfixturevalue("umoci")("unpack", "--image", f"{out}:1", tmp_path / "bundle")
        facts = of_directory(bytes(tmp_path / "bundle" / "rootfs"))
    elif tool == "podman":
        podman: Tool = request.getfixturevalue("podman")
        podman("load", "--input", out)
        with mounted_by_podman(podman, image.image_id.hex) as root:
            facts = of_directory(root)
    else:
        docker: Tool = request.getfixturevalue("docker")
        docker("load", "--input", out)
        facts = show_of_docker(docker, "case:1")
    starts = (b"lib", b"usr/lib") if case == "symlink" else (b"d",)
    assert [path for path in sorted(facts) if path.startswith(starts)] == NOW_UNDER_D[case, tool]
