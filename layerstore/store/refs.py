"""Names of images. A ref is one small file, replaced by rename: the commit point of everything."""

from __future__ import annotations

import os

from layerstore.errors import DamagedError, NotFoundError
from layerstore.kernel.fs import fsync_path
from layerstore.names import ImageID, ImageRef, MalformedName
from layerstore.store.layout import Layout, unquote_name


class Refs:
    """Reads and removes refs; ``Transaction.publish`` writes them."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def get(self, ref: ImageRef) -> ImageID | None:
        """The image that ``ref`` names. Raises DamagedError if the ref cannot be read."""
        try:
            text = self._layout.ref(ref).read_text("ascii", "replace")
        except FileNotFoundError:
            return None
        try:
            return ImageID.parse(text.rstrip("\n"))
        except MalformedName:
            raise DamagedError(
                f"the name {ref} is damaged: it says {text[:80]!r}",
                hint=f"remove it with layerstore rmi {ref}, and import the image again",
            ) from None

    def names(self) -> list[ImageRef]:
        """Every name, sorted."""
        found = os.listdir(self._layout.folder("refs"))
        return sorted(ImageRef.parse(unquote_name(component)) for component in found)

    def all(self) -> dict[ImageRef, ImageID]:
        """Every name and its image. Raises DamagedError if any cannot be read.

        A collector must stop then: it cannot know what the name kept alive.
        """
        pairs = ((ref, self.get(ref)) for ref in self.names())
        return {ref: image_id for ref, image_id in pairs if image_id is not None}

    def delete(self, ref: ImageRef) -> None:
        """The name is gone, durably. Raises NotFoundError."""
        try:
            self._layout.ref(ref).unlink()
        except FileNotFoundError:
            raise NotFoundError(f"there is no image named {ref}") from None
        fsync_path(self._layout.folder("refs"))
