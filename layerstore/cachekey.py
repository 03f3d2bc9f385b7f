"""What a build step's result depends on, as one key; and why two keys differ.

A recipe is a list of named parts. Every part is framed by its length before it is hashed, so that
no two recipes can run into each other, and the format number is in every key: it is raised when
a step's meaning changes. A step's parent is known by what it is (the chain of its layers), not by
how it was made: a step that runs again to the same bytes stops the cascade.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass

from layerstore.names import Digest

FORMAT = 1


class StepKey(Digest):
    """The digest of a recipe."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """The parts in a fixed order: (name, value), the values short enough to be kept and shown."""

    parts: tuple[tuple[str, str], ...]

    @property
    def key(self) -> StepKey:
        frames = [f"layerstore step {FORMAT}"]
        for name, value in self.parts:
            frames += (name, value)
        return StepKey(framed(frame.encode("utf-8", "surrogateescape") for frame in frames))


def framed(parts: Iterable[bytes]) -> Digest:
    """The digest of a list of byte strings: different lists, different digests."""
    return Digest.of(b"".join([b"%d:%b" % (len(part), part) for part in parts]))


def canonical(value: object, *, without: frozenset[str] = frozenset()) -> str:
    """A value of the spec as text: equal values, equal text. Fields ``without`` are left out."""
    if is_dataclass(value) and not isinstance(value, type):
        inner = ",".join(
            f"{field.name}={canonical(getattr(value, field.name), without=without)}"
            for field in fields(value)
            if field.name not in without
        )
        return f"{type(value).__name__}({inner})"
    if isinstance(value, tuple):
        return "(" + ",".join(canonical(item, without=without) for item in value) + ")"
    return repr(value)


def explain(now: Recipe, before: Recipe | None) -> str:
    """Why ``now`` is no hit where ``before`` was the last: the first part that differs."""
    if before is None:
        return "it was never built here"
    old = dict(before.parts)
    for name, value in now.parts:
        if name not in old:
            return f"{name} is new"
        if old[name] != value:
            return f"{name} changed"
    gone = [name for name, _ in before.parts if name not in dict(now.parts)]
    return f"{gone[0]} is gone" if gone else "its result was removed from the store"
