"""Names of images. A ref is one small file, replaced by rename: the commit point of everything."""

from __future__ import annotations

import os
from contextlib import suppress

from layerstore.errors import DamagedError, NotFoundError
from layerstore.kernel.fs import fsync_path
from layerstore.names import ImageID, ImageRef, MalformedName
from layerstore.store.layout import Layout, quote_name, unquote_name


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
        """Every name, sorted. A file that no name would give is none of ours: fsck reports it."""
        found = os.listdir(self._layout.folder("refs"))
        return sorted(ImageRef.parse(unquote_name(name)) for name in found if is_ref(name))

    def all(self) -> dict[ImageRef, ImageID]:
        """Every name and its image. Damaged names are left out: fsck reports those."""
        found = {}
        for ref in self.names():
            with suppress(DamagedError):
                image_id = self.get(ref)
                if image_id is not None:
                    found[ref] = image_id
        return found

    def delete(self, ref: ImageRef) -> None:
        """The name is gone, durably. Raises NotFoundError."""
        try:
            self._layout.ref(ref).unlink()
        except FileNotFoundError:
            raise NotFoundError(f"there is no image named {ref}") from None
        fsync_path(self._layout.folder("refs"))


def is_ref(component: str) -> bool:
    """Whether a file in ``refs/`` has the name that some ref gives."""
    try:
        return quote_name(str(ImageRef.parse(unquote_name(component)))) == component
    except MalformedName:
        return False
