"""Images: OCI configs by digest, and what users call them."""

from __future__ import annotations

import os
from typing import NamedTuple

from layerstore.errors import DamagedError, NotFoundError, UsageError
from layerstore.formats.oci import ImageConfig, parse_config
from layerstore.names import ChainID, DiffID, ImageID, ImageRef, MalformedName
from layerstore.store.layout import Layout, is_digits
from layerstore.store.refs import Refs


class Image(NamedTuple):
    """An image of the store."""

    image_id: ImageID
    raw_config: bytes
    """The config as it is stored, byte for byte."""
    config: ImageConfig

    @property
    def diff_ids(self) -> tuple[DiffID, ...]:
        """Bottom layer first."""
        return self.config.diff_ids

    @property
    def chain_id(self) -> ChainID:
        return ChainID.of_stack(self.diff_ids)


class Images:
    """Reads images."""

    def __init__(self, layout: Layout, refs: Refs) -> None:
        self._layout = layout
        self._refs = refs

    def get(self, image_id: ImageID) -> Image:
        """Raises NotFoundError, or DamagedError if the config is not what its name says."""
        try:
            raw = self._layout.image(image_id).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"there is no image {image_id}") from None
        if ImageID.of(raw) != image_id:
            raise DamagedError(f"the config of image {image_id} is damaged",
                               hint="import the image again")  # fmt: skip
        return Image(image_id, raw, parse_config(raw, where=f"image {image_id.short}"))

    def all(self) -> list[ImageID]:
        found = os.listdir(self._layout.root / "images")
        return [ImageID(f"sha256:{name}") for name in sorted(found) if is_digits(name)]

    def find(self, name: str) -> Image:
        """The image that a user means: a name, a digest, or the first digits of an id.

        Raises NotFoundError with a hint, UsageError for digits that fit several images.
        """
        if name.startswith("sha256:") and len(name) == 71:
            return self.get(ImageID.parse(name))
        try:
            ref = ImageRef.parse(name)
        except MalformedName:
            ref = None
        if ref is not None and (image_id := self._refs.get(ref)) is not None:
            return self.get(image_id)
        digits = name.removeprefix("sha256:")
        if len(digits) >= 4 and set(digits) <= set("0123456789abcdef"):
            found = [image_id for image_id in self.all() if image_id.hex.startswith(digits)]
            if len(found) == 1:
                return self.get(found[0])
            if found:
                raise UsageError(f"{name!r} fits {len(found)} images", hint="give more digits")
        if ref is None:
            ImageRef.parse(name)  # raises, with a hint on the form
        raise NotFoundError(f"there is no image {name!r} in this store", hint=self._hint(name))

    def _hint(self, name: str) -> str:
        from difflib import get_close_matches

        known = [str(ref) for ref in self._refs.names()]
        near = get_close_matches(name, [*known, *(ref.rpartition(":")[0] for ref in known)], 1)
        if near:
            return f"did you mean {near[0]}? layerstore images lists what is here"
        return "layerstore images lists what is here; build, import or load makes images"

    def names_of(self, image_id: ImageID) -> list[ImageRef]:
        return sorted(ref for ref, named in self._refs.all().items() if named == image_id)
