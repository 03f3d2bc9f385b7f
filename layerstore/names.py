"""The names of things: digests, ids, references, platforms. Never a bare ``str``.

The digest types are ``str`` subclasses so that a million of them stay cheap to hash, sort and
print, while mypy refuses to take one for another.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from typing import NamedTuple, Self

from layerstore.errors import UsageError

_HEX = frozenset("0123456789abcdef")


class MalformedName(UsageError):
    """A name, digest or reference is malformed."""


class Digest(str):
    """``sha256:`` and 64 hex digits: the digest of some bytes as they are stored."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises MalformedName for anything but ``sha256:<64 lowercase hex>``."""
        if len(text) != 71 or not text.startswith("sha256:") or not _HEX.issuperset(text[7:]):
            raise MalformedName(
                f"{text!r} is not a sha256 digest",
                hint="write it as sha256: followed by 64 lowercase hex digits",
            )
        return cls(text)

    @classmethod
    def of(cls, payload: bytes | bytearray | memoryview) -> Self:
        return cls("sha256:" + hashlib.sha256(payload).hexdigest())

    @classmethod
    def from_raw(cls, raw: bytes) -> Self:
        """From the 32 bytes of the hash."""
        return cls("sha256:" + raw.hex())

    @property
    def hex(self) -> str:
        return self[7:]

    @property
    def raw(self) -> bytes:
        return bytes.fromhex(self[7:])

    @property
    def short(self) -> str:
        """The first 12 hex digits, for people."""
        return self[7:19]


class DiffID(Digest):
    """The digest of a layer's uncompressed tar (OCI image-spec, config.md)."""

    __slots__ = ()


class ChainID(Digest):
    """The identity of a stack of layers (OCI image-spec, config.md, "Layer ChainID")."""

    __slots__ = ()

    @classmethod
    def of_stack(cls, diff_ids_bottom_up: tuple[DiffID, ...] | list[DiffID]) -> ChainID:
        """ChainID of no layers at all is the digest of the empty string (the spec has none)."""
        if not diff_ids_bottom_up:
            return cls.of(b"")
        chain = cls(diff_ids_bottom_up[0])
        for diff_id in diff_ids_bottom_up[1:]:
            chain = cls.of(f"{chain} {diff_id}".encode())
        return chain


class ImageID(Digest):
    """The digest of an image's OCI config JSON."""

    __slots__ = ()


# distribution-spec, "Pulling manifests": the grammar of names and tags.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")


@cache
def _grammar() -> re.Pattern[str]:
    """Compiled when a name first needs it: 2 ms that a run of a plain name is spared."""
    return re.compile(
        rf"(?P<name>(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*)"
        r"(?::(?P<tag>[\w][\w.-]{0,127}))?\Z",
        re.ASCII,
    )


class ImageRef(NamedTuple):
    """``name[:tag]``: what a user calls an image. The tag is ``latest`` unless given."""

    name: str
    tag: str = "latest"

    @classmethod
    def parse(cls, text: str) -> ImageRef:
        if _PLAIN.issuperset(text) and 0 < len(text) <= 240:
            return cls(text)
        match = _grammar().match(text)
        if match is None or len(text) > 240:
            lower = text.lower()
            hint = (
                f"write it in lower case: {lower}"
                if lower != text and _grammar().match(lower)
                else "use name[:tag], of lower-case letters, digits and . _ - between them"
            )
            raise MalformedName(f"{text!r} is not an image name", hint=hint)
        return cls(match["name"], match["tag"] or "latest")

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}"


class Platform(NamedTuple):
    """Operating system and architecture in Go's words, as OCI has them."""

    os: str
    architecture: str
    variant: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


_GO_ARCHITECTURES = {
    "x86_64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armv7l": ("arm", "v7"),
    "i686": ("386", None),
    "ppc64le": ("ppc64le", None),
    "riscv64": ("riscv64", None),
    "s390x": ("s390x", None),
}


def platform_of(machine: str) -> Platform:
    """The platform of a Linux host, by the machine name that ``uname -m`` prints."""
    architecture, variant = _GO_ARCHITECTURES.get(machine, (machine, None))
    return Platform("linux", architecture, variant)
