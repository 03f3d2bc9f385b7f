"""What a build would do and why: pure decisions, made by the same code that a build follows.

A step is cached when its recipe is known and its layer is there. Once a step has to run, what
follows cannot be known before: its parent is known by what it turns out to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol

from layerstore.cachekey import Recipe, canonical, explain, framed
from layerstore.names import ChainID, Digest, Platform
from layerstore.spec import CopyStep, ImageSpec, RunStep, Stage, StageBase, Step
from layerstore.store.cache import Record

RUN = "run"
CACHED = "cached"
MAY_RUN = "run if an earlier step changes something"

_NOT_KEYED = frozenset({"position", "name", "layer"})


class CacheView(Protocol):
    """The build cache, read only."""

    def get(self, key: Digest) -> Record | None: ...

    def last_parts(self, place: Digest) -> tuple[tuple[str, str], ...] | None: ...


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step's fate. ``record`` is its known result if it is cached."""

    stage: str
    index: int
    title: str
    action: str
    reason: str
    recipe: Recipe | None
    record: Record | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """Every step of every stage that the image needs, in order."""

    steps: tuple[StepPlan, ...]

    @property
    def runs(self) -> int:
        """Steps that will or may run."""
        return sum(step.action != CACHED for step in self.steps)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a step reads besides its parent: (name, digest) pairs, in the order of the spec."""

    parts: tuple[tuple[str, str], ...] = ()


def needed_stages(spec: ImageSpec, last: str | None = None) -> tuple[Stage, ...]:
    """The stages that the last one, or ``last``, needs, in the order of the spec."""
    wanted = spec.stages[-1].name if last is None else last
    names = {wanted}
    for stage in reversed(spec.stages):
        if stage.name in names:
            names |= _uses(stage)
    return tuple(stage for stage in spec.stages if stage.name in names)


def _uses(stage: Stage) -> set[str]:
    used = {step.stage for step in stage.steps if isinstance(step, CopyStep) and step.stage}
    if isinstance(stage.base, StageBase):
        used.add(stage.base.stage)
    return used


def groups(steps: Sequence[Step]) -> list[tuple[Step, ...]]:
    """The steps of each layer: neighbours that name the same one, every other step alone."""
    found: list[list[Step]] = []
    for step in steps:
        if found and step.layer is not None and found[-1][-1].layer == step.layer:
            found[-1].append(step)
        else:
            found.append([step])
    return [tuple(group) for group in found]


def recipe_of(
    step: Step,
    *,
    parent: ChainID,
    inputs: Inputs,
    environment: Sequence[str],
    platform: Platform,
    epoch: int | None,
) -> Recipe:
    """All that decides a step's result."""
    shown = tuple(
        (f"{item.name}", canonical(getattr(step, item.name), without=_NOT_KEYED))
        for item in fields(step)
        if item.name not in _NOT_KEYED
    )
    parts = [("verb", type(step).__name__), ("the parent", parent), ("time", str(epoch)), *shown]
    if isinstance(step, RunStep):
        parts += [("platform", str(platform)), ("the base's environment", "\n".join(environment))]
    return Recipe((*parts, *inputs.parts))


def place_of(spec_name: str, stage: str, index: int) -> Digest:
    """Where a recipe stands, so that a miss can be compared with the last one there."""
    return framed([b"place", spec_name.encode(), stage.encode(), b"%d" % index])


def decide(
    stage: str,
    index: int,
    step: Step,
    recipe: Recipe,
    cache: CacheView,
    *,
    place: Digest,
    use_cache: bool = True,
) -> StepPlan:
    """Whether one step has to run, now that its recipe is known."""
    if not use_cache:
        return StepPlan(stage, index, step.title, RUN, "the cache is not used", recipe)
    record = cache.get(recipe.key)
    if record is not None:
        return StepPlan(stage, index, step.title, CACHED, "nothing changed", recipe, record)
    last = cache.last_parts(place)
    reason = explain(recipe, Recipe(last) if last is not None else None)
    return StepPlan(stage, index, step.title, RUN, reason, recipe)
