"""What a container sees of ``/`` itself, which is the upper directory's own."""

from __future__ import annotations

import os

import pytest
from abilities import needs_overlay
from erofs_trees import ACL
from layer_world import View, World, differences, in_namespace, view_of_mount, view_of_tree

from layerstore.formats.entries import Entry, Kind

pytestmark = needs_overlay


@pytest.mark.parametrize(
    "xattrs",
    [
        pytest.param(
            ((b"system.posix_acl_default", ACL), (b"user.root", b"r")), id="ordinary xattrs"
        ),
        pytest.param(
            (
                (b"trusted.overlay.opaque", b"y"),
                (b"trusted.overlay.redirect", b"/etc"),
                (b"user.overlay.opaque", b"y"),
            ),
            id="overlayfs' own names",
        ),
    ],
)
def test_a_container_sees_the_root_that_its_image_says(
    world: World, xattrs: tuple[tuple[bytes, bytes], ...]
) -> None:
    root = Entry(b"", Kind.DIRECTORY, 0o1751, 7, 8, 1_500_000_000_000_000_001, xattrs=xattrs)
    below = Entry(b"d", Kind.DIRECTORY, 0o750, 7, 8, 5, xattrs=xattrs)
    file = Entry(b"f", Kind.FILE, 0o674, 7, 8, 5, xattrs=((b"trusted.overlay.metacopy", b"x" * 9),))
    layer = world.import_entries([root, below, file])
    upon = world.import_entries([Entry(b"g", Kind.FILE, 0o600)])
    tree = world.store.layers.tree((layer, upon))
    with world.container() as container:

        def run() -> tuple[View, View]:
            with container.mounted((layer, upon)) as merged:
                shown = view_of_mount(merged)
                os.listdir(merged)
            with world.mounted((layer, upon)) as merged:
                return shown, view_of_mount(merged)

        for shown in in_namespace(run):
            assert differences(view_of_tree(tree, world.store), shown) == []
