"""The judges of metadata images: the kernel's own mount, overlayfs above it, and erofs-utils."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from abilities import needs_root, needs_tool
from erofs_trees import Contents, awkward_tree, content_of, directory, file, links_of
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tree_strategies import trees

from layerstore.formats.entries import Kind
from layerstore.formats.erofs import FILE_TYPES, emit, object_path
from layerstore.formats.tree import Node, Tree
from layerstore.names import Digest

VIEW = Path(__file__).with_name("erofs_view.py")
HUGE = 5 << 40


def store(contents: Contents, objects: Path) -> None:
    for digest, content in contents.items():
        path = objects / object_path(digest)[1:].decode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# Any: the program's JSON.
def kernel_views(
    images: Iterable[bytes], tmp_path: Path, *, how: str = "file"
) -> list[dict[str, dict[bytes, Any]]]:
    """For each image the facts of every path: "bare" and "merged"."""
    (tmp_path / "objects").mkdir(exist_ok=True)
    paths = []
    for number, image in enumerate(images):
        paths.append(tmp_path / f"{number}.erofs")
        paths[-1].write_bytes(image)
    command: list[str | Path] = ["unshare", "-m", "--propagation", "private", sys.executable, VIEW]
    done = subprocess.run(
        [*command, tmp_path / "objects", tmp_path / "scratch", how, *paths],
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return [
        {
            kind: {bytes.fromhex(path): fact for path, fact in facts.items()}
            for kind, facts in json.loads(line).items()
        }
        for line in done.stdout.splitlines()
    ]


def expected_facts(node: Node, names: int, contents: Contents) -> dict[str, Any]:
    sha256 = None
    if node.kind is Kind.FILE:
        digest = node.digest
        content = contents.get(digest, b"") if digest is not None and node.size else b""
        sha256 = hashlib.sha256(content).hexdigest()
    size = len(node.link) if node.kind is Kind.SYMLINK else node.size
    return {
        "mode": FILE_TYPES[node.kind][1] | node.mode,
        "owner": [node.uid, node.gid],
        "mtime_ns": node.mtime_ns,
        "nlink": names,
        "rdev": list(node.rdev),
        "size": size,
        "xattrs": {name.hex(): value.hex() for name, value in node.xattrs},
        "link": node.link.hex() if node.kind is Kind.SYMLINK else None,
        "sha256": sha256,
    }


def assert_shows(view: dict[str, dict[bytes, Any]], tree: Tree, contents: Contents) -> None:
    """The kernel shows the tree: every path, every attribute, every content, every hard link."""
    bare, merged = view["bare"], view["merged"]
    nodes = {b"": tree.root, **dict(tree.walk())}
    assert merged.keys() == bare.keys() == nodes.keys()
    names = links_of(tree)
    groups: dict[int, list[bytes]] = {}
    for path, node in nodes.items():
        found = dict(merged[path])
        groups.setdefault(bare[path]["inode"], []).append(path)
        expected = expected_facts(node, len(names[node]), contents)
        del found["inode"]
        if node.kind is Kind.DIRECTORY:
            # Overlayfs gives every directory nlink 1 and the size of what is below.
            subdirectories = sum(c.kind is Kind.DIRECTORY for c in (node.children or {}).values())
            assert bare[path]["nlink"] == 2 + subdirectories, path
            expected["nlink"], expected["size"] = found["nlink"], found["size"]
        assert found == expected, path
    assert sorted(groups.values()) == sorted(sorted(paths) for paths in names.values())


@needs_root
@needs_tool("unshare")
@pytest.mark.parametrize(
    ("inline_limit", "how"),
    [
        pytest.param(64, "file", id="as written by default"),
        pytest.param(64, "loop", id="through a loop device"),
        pytest.param(0, "file", id="nothing inline"),
        pytest.param(4096, "file", id="small files inline"),
        pytest.param(1 << 21, "file", id="everything inline"),
    ],
)
def test_the_kernel_shows_every_path_as_the_tree_has_it(
    inline_limit: int, how: str, tmp_path: Path
) -> None:
    tree, contents = awkward_tree()
    missing = {d: c for d, c in contents.items() if len(c) > inline_limit}
    store(missing, tmp_path / "objects")
    image = emit(tree, inline=contents, inline_limit=inline_limit)
    (view,) = kernel_views([image], tmp_path, how=how)
    assert len(view["merged"]) > 7000
    assert_shows(view, tree, contents)


@needs_root
@needs_tool("unshare")
def test_sizes_up_to_8_tib_are_shown_and_read_from_their_objects(tmp_path: Path) -> None:
    tree, contents = Tree(), Contents()
    children = tree.root.children
    assert children is not None
    expected = {}
    for size in (HUGE, HUGE + 1, (8 << 40) - 4096, 8 << 40):
        digest = Digest.of(b"%d" % size)
        children[b"%d" % size] = Node(Kind.FILE, 0o600, size=size, digest=digest)
        path = tmp_path / "objects" / object_path(digest)[1:].decode()
        path.parent.mkdir(parents=True)
        with path.open("wb") as sparse:
            sparse.write(b"start".ljust(4096))
            sparse.seek(size - 4096)
            sparse.write(b"end".ljust(4096))
        both = b"start".ljust(4096) + b"end".ljust(4096)
        expected[b"%d" % size] = (size, hashlib.sha256(both).hexdigest())
    (view,) = kernel_views([emit(tree, inline=contents)], tmp_path)
    del view["merged"][b""]
    found = {name: (fact["size"], fact["sha256"]) for name, fact in view["merged"].items()}
    assert found == expected


@needs_root
@needs_tool("unshare")
def test_a_sparse_file_is_read_from_the_object_of_its_digest(tmp_path: Path) -> None:
    payload = b"the map and the data"
    tree, contents = Tree(), Contents()
    node = file(payload, contents)
    node.size, node.extents = 30, ((0, 10),)
    tree.root.children = {b"sparse": node}
    store({Digest.of(payload): b"0123456789".ljust(30, b"\0")}, tmp_path / "objects")
    (view,) = kernel_views([emit(tree, inline=contents)], tmp_path)
    shown = hashlib.sha256(b"0123456789".ljust(30, b"\0")).hexdigest()
    assert view["merged"][b"sparse"]["sha256"] == shown


@needs_root
@needs_tool("unshare")
@settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    drawn=st.lists(trees(for_kernel=True), min_size=1, max_size=5),
    inline_limit=st.sampled_from([0, 64, 5000]),
)
def test_the_kernel_shows_random_trees(
    drawn: list[tuple[Tree, Contents]], inline_limit: int, tmp_path: Path
) -> None:
    for _, contents in drawn:
        store(contents, tmp_path / "objects")
    images = [emit(tree, inline=contents, inline_limit=inline_limit) for tree, contents in drawn]
    for view, (tree, contents) in zip(kernel_views(images, tmp_path), drawn, strict=True):
        assert_shows(view, tree, contents)


@needs_tool("fsck.erofs")
@pytest.mark.parametrize("inline_limit", [0, 64, 4096, 1 << 21])
def test_fsck_erofs_finds_nothing_wrong(inline_limit: int, tmp_path: Path) -> None:
    tree, contents = awkward_tree()
    path = tmp_path / "image"
    path.write_bytes(emit(tree, inline=contents, inline_limit=inline_limit))
    done = subprocess.run(["fsck.erofs", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_root
@needs_tool("fsck.erofs")
def test_fsck_erofs_extracts_every_name_mode_owner_and_link(tmp_path: Path) -> None:
    tree, contents = awkward_tree()
    path, out = tmp_path / "image", tmp_path / "out"
    path.write_bytes(emit(tree, inline=contents, inline_limit=4096))
    options = [f"--extract={out}", "--preserve", "--overwrite"]
    done = subprocess.run(["fsck.erofs", *options, path], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    found = dict(_extracted(os.fsencode(out), b""))
    expected = {}
    for name, node in tree.walk():
        link = node.link if node.kind is Kind.SYMLINK else b""
        # Version 1.5 sets the owner last, which takes setuid and setgid away.
        lost = 0o6000 if node.kind is Kind.FILE else 0
        mode = FILE_TYPES[node.kind][1] | (node.mode & ~lost)
        expected[name] = (mode, node.uid, node.gid, link)
    assert found == expected


def _extracted(top: bytes, path: bytes) -> Iterator[tuple[bytes, tuple[int, int, int, bytes]]]:
    for entry in os.scandir(top + b"/" + path):
        status = entry.stat(follow_symlinks=False)
        name = path + b"/" + entry.name if path else entry.name
        link = os.readlink(entry.path) if stat.S_ISLNK(status.st_mode) else b""
        yield name, (status.st_mode, status.st_uid, status.st_gid, link)
        if entry.is_dir(follow_symlinks=False):
            yield from _extracted(top, name)


@needs_tool("dump.erofs")
def test_dump_erofs_reads_the_superblock_and_inodes(tmp_path: Path) -> None:
    tree, contents = Tree(), Contents()
    node = file(content_of(5000), contents, 0o640)
    node.uid, node.gid = 70000, 80000
    tree.root.children = {b"directory": directory(), b"name": node, b"again": node}
    path = tmp_path / "image"
    path.write_bytes(emit(tree))

    def dumped(*options: str) -> str:
        command = ["dump.erofs", *options, os.fspath(path)]
        environment = {**os.environ, "TZ": "UTC", "LC_ALL": "C"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return re.sub(r"[ \t]+", " ", done.stdout)

    superblock = dumped("-s")
    assert "Filesystem inode count: 3\n" in superblock
    assert "Filesystem root nid: 36\n" in superblock
    assert "Filesystem blocks: 1\n" in superblock
    inode = dumped("--path=/again")
    assert "Size: 5000" in inode
    assert "Uid: 70000 Gid: 80000 Access: 0640" in inode
    assert "Links: 2" in inode
    assert "2023-11-14 22:13:20.123456789" in inode
