"""Random stacks and random work in real overlay mounts: what is shown is what is said.

The number of examples is Hypothesis' own; ``--hypothesis-profile=long`` hunts for longer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from abilities import needs_overlay
from hypothesis import given, reject
from hypothesis import strategies as st
from layer_strategies import Operation, layers, operations, work
from layer_world import (
    DRIVERS,
    MADE_SINCE_NS,
    NEW,
    View,
    World,
    captured_times,
    differences,
    in_namespace,
    view_of_mount,
    view_of_tree,
    world_in_scratch,
)
from tarkit import Member

from layerstore.formats.changes import diff
from layerstore.formats.entries import Entry, Kind
from layerstore.formats.tree import Tree, TreeError, apply
from layerstore.formats.whiteout import read_name
from layerstore.kernel import mounts
from layerstore.names import DiffID
from layerstore.snapshot import Times, capture

pytestmark = needs_overlay

_TIMES = Times(made_since_ns=MADE_SINCE_NS, made_at=NEW)
_stacks = st.lists(layers(), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def worlds() -> Iterator[list[World]]:
    with ExitStack() as stack:
        yield [stack.enter_context(world_in_scratch(driver)) for driver in DRIVERS]


def _import(world: World, stack: list[tuple[Member, ...]]) -> tuple[tuple[DiffID, ...], Tree]:
    diff_ids = tuple(world.import_tar(members) for members in stack)
    try:
        return diff_ids, world.store.layers.tree(diff_ids)
    except TreeError:
        reject()


def _work_and_capture(
    world: World, stack: tuple[DiffID, ...], parent: Tree, todo: list[Operation], redirect: bool
) -> tuple[View, list[Entry], bool]:
    options = {"metacopy": redirect, "redirect": redirect}
    with world.container() as container:

        def run() -> tuple[View, bool]:
            before = os.umask(0o022)
            try:
                with container.mounted(stack, **options) as merged:
                    copied = work(merged, todo)
                    return view_of_mount(merged), copied
            finally:
                os.umask(before)

        shown, copied = in_namespace(run)
        with world.store.transaction() as transaction:
            tree = capture(
                container.upper, parent, transaction, xattr_prefix=world.driver.xattr_prefix,
                times=_TIMES,
            )  # fmt: skip
            transaction.publish()
    expected = captured_times(shown, view_of_tree(parent, world.store))
    assert differences(expected, view_of_tree(tree, world.store)) == []
    return expected, diff(parent, tree), copied


@given(stack=_stacks, todo=operations, redirect=st.booleans())
def test_a_layer_says_what_the_container_showed(
    worlds: list[World], stack: list[tuple[Member, ...]], todo: list[Operation], redirect: bool
) -> None:
    said: list[tuple[bool, list[Entry]]] = []
    for world in worlds:
        diff_ids, parent = _import(world, stack)
        expected, entries, copied = _work_and_capture(world, diff_ids, parent, todo, redirect)
        again = _work_and_capture(world, diff_ids, parent, todo, redirect)
        assert again[1] == entries
        said.append((copied, entries))
        assert differences(expected, view_of_tree(apply(parent, entries), world.store)) == []
        if entries:
            layer = world.import_entries(entries)
            shown = in_namespace(lambda w=world, s=(*diff_ids, layer): _look(w, s))  # type: ignore[misc]
            assert differences(expected, shown) == []
            raw = b"".join(world.store.layers.tar(layer))
            assert DiffID.of(raw) == layer
            if not _has_overlay_xattrs(entries):
                assert world.import_tar(raw) == layer
                assert world.store.layers.entries(layer) == entries
    if not any(copied for copied, _ in said):
        assert all(entries == said[0][1] for _, entries in said)


def _has_overlay_xattrs(entries: list[Entry]) -> bool:
    return any(name.startswith(b"trusted.") for entry in entries for name, _ in entry.xattrs)


def _look(world: World, stack: tuple[DiffID, ...]) -> View:
    with world.mounted(stack) as merged:
        return view_of_mount(merged)


@given(stack=st.lists(layers(), min_size=1, max_size=6))
def test_every_driver_shows_what_the_tree_says(
    worlds: list[World], stack: list[tuple[Member, ...]]
) -> None:
    for world in worlds:
        diff_ids, tree = _import(world, stack)
        shown = in_namespace(lambda w=world, d=diff_ids: _look(w, d))  # type: ignore[misc]
        assert differences(view_of_tree(tree, world.store), shown) == []


@given(stack=st.lists(layers(explicit=True), min_size=1, max_size=6))
def test_the_tree_is_what_the_kernel_makes_of_the_layers(
    worlds: list[World], stack: list[tuple[Member, ...]]
) -> None:
    world = worlds[0]
    _, tree = _import(world, stack)
    with world.container() as container:

        def run() -> View:
            lowers: list[Path] = []
            for number, members in enumerate(stack):
                lower = container.folder / f"lower-{number}"
                lower.mkdir(mode=0o755)
                os.utime(lower, ns=(0, 0))
                _write_out(lower, members)
                lowers.insert(0, lower)
            # Two at least, so that it is an overlay.
            (container.folder / "empty").mkdir()
            lowers.append(container.folder / "empty")
            spec = mounts.OverlayMount(lowerdirs_top_down=tuple(lowers), index=False)
            mounts.mount_overlay(spec, container.merged, attributes=mounts.NODEV)
            try:
                return view_of_mount(container.merged)
            finally:
                mounts.umount(container.merged)

        shown = in_namespace(run)
    expected = view_of_tree(tree, world.store)
    assert differences(expected, shown) == []


def _write_out(lower: Path, members: tuple[Member, ...]) -> None:
    top = os.fsencode(lower)
    markers = {marker for member in members if (marker := read_name(member.name)) is not None}
    own = {m.name.strip(b"/"): m for m in members if read_name(m.name) is None}
    for name, member in sorted(own.items(), key=lambda item: (item[1].typeflag == b"1", item[0])):
        _make(top, name, member)
    opaque = {marker.path for marker in markers if marker.kind is Kind.OPAQUE}
    for marker in markers:
        if marker.kind is Kind.WHITEOUT:
            if marker.path not in own:
                head = marker.path.rpartition(b"/")[0]
                os.mknod(os.path.join(top, marker.path), 0o020000, 0)
                # Or a whiteout that hides nothing shows as a ghost (kernel commit b79e05aaa166).
                os.setxattr(os.path.join(top, head), "trusted.overlay.origin", b"")
            elif own[marker.path].typeflag == b"5":
                opaque.add(marker.path)
    for path in opaque:
        os.setxattr(os.path.join(top, path), "trusted.overlay.opaque", b"y")
    for name, member in sorted(own.items(), reverse=True):
        if member.typeflag == b"5":
            at = os.path.join(top, name)
            os.chmod(at, member.mode)
            os.utime(at, ns=(0, member.mtime * 10**9))
    os.utime(top, ns=(0, 0))


def _make(top: bytes, name: bytes, member: Member) -> None:
    at = os.path.join(top, name)
    match member.typeflag:
        case b"5":
            os.mkdir(at)
        case b"0":
            fd = os.open(at, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(fd, member.content)
            os.close(fd)
        case b"2":
            os.symlink(member.link, at)
        case b"1":
            os.link(os.path.join(top, member.link), at, follow_symlinks=False)
            return
        case b"3":
            os.mknod(at, 0o020600, os.makedev(*member.device))
        case b"6":
            os.mkfifo(at)
    os.lchown(at, member.uid, member.gid)
    if member.typeflag != b"2":
        os.chmod(at, member.mode)
    for xattr, value in member.xattrs.items():
        if member.typeflag in (b"0", b"5"):
            os.setxattr(at, xattr, value)
    os.utime(at, ns=(0, member.mtime * 10**9), follow_symlinks=False)
