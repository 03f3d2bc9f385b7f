"""From a spec to an image: follows the plan step by step, in one transaction.

Every step's changes become entries by the difference of two trees, whatever the step was. Steps
that share a layer are kept one by one in the cache, and once more together as the image's layer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from layerstore import plan as planning
from layerstore import rootfs
from layerstore.bases import BaseImage, Workshop, resolve
from layerstore.buildrun import Container, run_step
from layerstore.cachekey import Recipe
from layerstore.errors import BuildError
from layerstore.events import Caution, Event, Note, Sink, StepFinished, StepStarted, ignore
from layerstore.filesteps import Materials, edit
from layerstore.formats.changes import diff
from layerstore.formats.entries import Entry, Kind
from layerstore.formats.oci import Json, emit_config
from layerstore.formats.streams import CHUNK, Limits, decompressed
from layerstore.formats.tree import Tree, apply
from layerstore.imageconfig import merged, tested
from layerstore.names import ChainID, DiffID, Digest, ImageID, ImageRef, platform_of
from layerstore.plan import BuildPlan, Inputs, StepPlan
from layerstore.scancache import ScanCache, stamp_of
from layerstore.snapshot import Times
from layerstore.sources import Context, ContextFile, now_ns
from layerstore.spec import (
    BindMount,
    CopyStep,
    ExtractStep,
    ImageSpec,
    Mode,
    RunStep,
    Stage,
    StageBase,
    Step,
)
from layerstore.store.atomic import Transaction, replace_file
from layerstore.store.cache import Cache, Record
from layerstore.store.layers import stage_entries, stage_tar
from layerstore.store.store import Store


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build, apart from the spec."""

    tag: ImageRef | None = None
    """Instead of the spec's ``name``."""
    stage: str | None = None
    """The stage to end with, instead of the last."""
    use_cache: bool = True
    driver: str = rootfs.AUTO
    epoch: int | None = None
    """SOURCE_DATE_EPOCH: what is made gets this time, what is later is clamped to it."""


@dataclass(frozen=True, slots=True)
class Built:
    """What a build gave."""

    image_id: ImageID
    ref: ImageRef | None
    steps: tuple[StepPlan, ...]
    seconds: float


@dataclass(slots=True)
class _Progress:
    """A stage on its way: the image's layers, and the steps' layers that the tree stands on."""

    image_layers: list[DiffID]
    step_layers: list[DiffID]
    history: list[Json]
    config: Json
    tree: Tree | None = None
    """None: not loaded yet."""

    @property
    def chain(self) -> ChainID:
        return ChainID.of_stack(self.step_layers)


def build(
    store: Store, spec: ImageSpec, folder: Path, options: BuildOptions, sink: Sink = ignore
) -> Built:
    """The spec's image, durable and named. Raises BuildError with the step's position.

    A failed build changes no name; the steps that succeeded stay in the cache.
    """
    began = time.monotonic()
    scan = _scan_of(store, folder)
    context = Context(folder, spec.ignore, scan if options.use_cache else None)
    try:
        with store.transaction() as transaction:
            builder = _Builder(store, transaction, spec, context, options, sink)
            stage, config = builder.stages()
            image_id = transaction.stage_image(config)
            transaction.publish()
            builder.check(stage, config)
            ref = options.tag or spec.name
            transaction.publish({ref: image_id} if ref is not None else None)
            builder.flush_cache()
    finally:
        context.close()
        scan.save(lambda path, content: replace_file(store.layout, path, content))
    return Built(image_id, ref, tuple(builder.done), time.monotonic() - began)


def plan(store: Store, spec: ImageSpec, folder: Path, options: BuildOptions) -> BuildPlan:
    """What ``build`` would do. Bases that are missing are made and cached; nothing is named."""
    context = Context(folder, spec.ignore, _scan_of(store, folder))
    try:
        with store.transaction() as transaction:
            builder = _Builder(store, transaction, spec, context, options, ignore)
            return builder.dry_run()
    finally:
        context.close()


def _scan_of(store: Store, folder: Path) -> ScanCache:
    return ScanCache(store.layout.folder("derived"), folder, now_ns())


class _Builder:
    def __init__(
        self,
        store: Store,
        transaction: Transaction,
        spec: ImageSpec,
        context: Context,
        options: BuildOptions,
        sink: Sink,
    ) -> None:
        self._store = store
        self._transaction = transaction
        self._spec = spec
        self._context = context
        self._options = options
        self._sink = sink
        self._cache = Cache(store.layout)
        self._epoch = options.epoch or 0
        self._platform = platform_of(os.uname().machine)
        self._stages: dict[str, _Progress] = {}
        self._pending: list[tuple[Recipe, Record]] = []
        self._digests: dict[bytes, Digest] = {}
        self.done: list[StepPlan] = []

    # -- stages ----------------------------------------------------------------------------

    def stages(self) -> tuple[Stage, bytes]:
        """The last stage and the config of its image; all its layers are staged."""
        wanted = planning.needed_stages(self._spec, self._options.stage)
        for stage in wanted:
            self._stages[stage.name] = self._stage(stage)
        return wanted[-1], self._config(wanted[-1])

    def dry_run(self) -> BuildPlan:
        steps: list[StepPlan] = []
        settled: set[str] = set()
        """Stages whose result is known without running anything."""
        for stage in planning.needed_stages(self._spec, self._options.stage):
            progress = self._start(stage)
            self._stages[stage.name] = progress
            known = not isinstance(stage.base, StageBase) or stage.base.stage in settled
            for index, step in enumerate(stage.steps):
                origin = step.stage if isinstance(step, CopyStep) else None
                if not known or (origin is not None and origin not in settled):
                    known = False
                    steps.append(
                        StepPlan(stage.name, index, step.title, planning.MAY_RUN, "", None)
                    )
                    continue
                decided = self._decide(stage, index, step, progress)
                steps.append(decided)
                known = decided.record is not None
                if decided.record is not None and decided.record.diff_id is not None:
                    progress.step_layers.append(decided.record.diff_id)
            if known:
                settled.add(stage.name)
        return BuildPlan(tuple(steps))

    def _start(self, stage: Stage) -> _Progress:
        if isinstance(stage.base, StageBase):
            below = self._stages[stage.base.stage]
            return _Progress(
                list(below.image_layers),
                list(below.step_layers),
                list(below.history),
                merged(below.config, self._spec_stage(stage.base.stage).config, {}),
                below.tree,
            )
        try:
            base = resolve(stage.base, self._workshop())
        except BuildError as error:
            raise BuildError(
                f"{stage.base_position}: {error.brief}", hint=error.hint, details=error.details
            ) from error
        return self._from_base(base)

    def _from_base(self, base: BaseImage) -> _Progress:
        layers = list(base.diff_ids)
        return _Progress(layers, list(layers), list(base.history), base.config)

    def _spec_stage(self, name: str) -> Stage:
        found = self._spec.stage(name)
        if found is None:
            raise BuildError(f"there is no stage {name!r}")
        return found

    def _workshop(self) -> Workshop:
        return Workshop(
            self._store, self._transaction, self._cache, self._context, self._platform,
            self._epoch, self._options.use_cache, self._sink,
        )  # fmt: skip

    def _stage(self, stage: Stage) -> _Progress:
        progress = self._start(stage)
        index = 0
        for group in planning.groups(stage.steps):
            before = list(progress.step_layers)
            tree_before = progress.tree
            added: list[DiffID] = []
            for step in group:
                if (diff_id := self._step(stage, index, step, progress)) is not None:
                    added.append(diff_id)
                index += 1
            self._close_group(group, progress, before, tree_before, added)
        return progress

    def _close_group(
        self,
        group: tuple[Step, ...],
        progress: _Progress,
        before: list[DiffID],
        tree_before: Tree | None,
        added: list[DiffID],
    ) -> None:
        """What the group's steps changed together is one layer of the image."""
        layer: DiffID | None = added[-1] if added else None
        if len(added) > 1:
            layer = self._squash(progress, before, tree_before)
        if layer is not None:
            progress.image_layers.append(layer)
        entry: Json = {
            "created": timestamp(self._epoch),
            "created_by": "; ".join(step.title for step in group),
        }
        if layer is None:
            entry["empty_layer"] = True
        progress.history.append(entry)

    def _squash(
        self, progress: _Progress, before: list[DiffID], tree_before: Tree | None
    ) -> DiffID | None:
        recipe = Recipe(
            (("verb", "squash"), ("from", ChainID.of_stack(before)), ("to", progress.chain))
        )
        record = self._cache.get(recipe.key) if self._options.use_cache else None
        if record is not None and record.diff_id is not None:
            self._transaction.lease([record.diff_id])
            if not self._store.layers.is_whole(record.diff_id):
                record = None
        if record is None:
            base = tree_before if tree_before is not None else self._tree_of(before)
            entries = diff(base, self._tree(progress))
            record = self._keep(recipe, entries, 0.0)
        return record.diff_id

    # -- steps -----------------------------------------------------------------------------

    def _decide(self, stage: Stage, index: int, step: Step, progress: _Progress) -> StepPlan:
        recipe = planning.recipe_of(
            step,
            parent=progress.chain,
            inputs=self._inputs_of(step),
            environment=progress.config.get("Env") or (),
            platform=self._platform,
            epoch=self._options.epoch,
        )
        name = str(self._options.tag or self._spec.name or self._spec.filename)
        place = planning.place_of(name, stage.name, index)
        decided = planning.decide(
            stage.name, index, step, recipe, self._cache, place=place,
            use_cache=self._options.use_cache,
        )  # fmt: skip
        if decided.record is not None and decided.record.diff_id is not None:
            self._transaction.lease([decided.record.diff_id])
            if not self._store.layers.is_whole(decided.record.diff_id):
                # Collected just now, or damaged: running the step again heals it.
                return StepPlan(
                    stage.name, index, step.title, planning.RUN, "its result is damaged", recipe
                )
        return decided

    def _step(self, stage: Stage, index: int, step: Step, progress: _Progress) -> DiffID | None:
        decided = self._decide(stage, index, step, progress)
        total = len(stage.steps)
        self._tell(
            StepStarted(stage.name, index, total, step.title, decided.action, decided.reason)
        )
        began = time.monotonic()
        record = decided.record
        if record is not None:
            if record.diff_id is not None and progress.tree is not None:
                progress.tree = apply(progress.tree, self._store.layers.entries(record.diff_id))
        else:
            before = self._tree(progress)
            progress.tree = self._execute(stage, index, step, before, progress)
            entries = diff(before, progress.tree)
            if decided.recipe is None:
                raise TypeError("a step that runs has a recipe")
            record = self._keep(decided.recipe, entries, time.monotonic() - began)
        if record.diff_id is not None:
            progress.step_layers.append(record.diff_id)
        self.done.append(decided)
        if decided.recipe is not None:
            name = str(self._options.tag or self._spec.name or self._spec.filename)
            place = planning.place_of(name, stage.name, index)
            self._cache.put_last(place, decided.recipe.parts)
        self._tell(
            StepFinished(stage.name, index, time.monotonic() - began, record.entries, record.added)
        )
        return record.diff_id

    def _keep(self, recipe: Recipe, entries: list[Entry], seconds: float) -> Record:
        """The step's layer is staged; its cache record is written once the layer is durable."""
        diff_id = stage_entries(self._transaction, entries).diff_id if entries else None
        added = sum(entry.size for entry in entries if entry.kind is Kind.FILE)
        record = Record(diff_id, len(entries), added, seconds)
        self._pending.append((recipe, record))
        return record

    def flush_cache(self) -> None:
        """Records of layers that are durable by now."""
        for recipe, record in self._pending:
            self._cache.put(recipe.key, record)
        self._pending.clear()

    def _publish(self) -> None:
        self._transaction.publish()
        self.flush_cache()

    def _tell(self, event: Event) -> None:
        self._sink(event)

    # -- trees -----------------------------------------------------------------------------

    def _tree(self, progress: _Progress) -> Tree:
        if progress.tree is None:
            progress.tree = self._tree_of(progress.step_layers)
        return progress.tree

    def _tree_of(self, layers: list[DiffID]) -> Tree:
        self._publish()
        return self._store.layers.tree(layers)

    # -- inputs ----------------------------------------------------------------------------

    def _inputs_of(self, step: Step) -> Inputs:
        try:
            return self._inputs(step)
        except BuildError as error:
            raise BuildError(
                f"{step.position}: {step.title}: {error.brief}", hint=error.hint
            ) from error

    def _inputs(self, step: Step) -> Inputs:
        parts: list[tuple[str, str]] = []
        match step:
            case CopyStep(stage=None):
                for source in step.sources:
                    files = self._context.select(source)
                    digest = self._context.digest(files, _mode_of(step.mode))
                    parts.append((f"the content of {source}", digest))
            case CopyStep():
                origin = self._stages[str(step.stage)]
                parts.append((f"the stage {step.stage}", origin.chain))
            case ExtractStep():
                parts.append((f"the archive {os.fsdecode(step.source)}", self._file(step.source)))
            case RunStep():
                for mount in step.mounts:
                    if isinstance(mount, BindMount):
                        shown = os.fsdecode(mount.source)
                        parts.append((f"the content of {shown}", self._mounted(mount)))
        return Inputs(tuple(parts))

    def _file(self, path: bytes) -> Digest:
        file = self._context.look(path)
        if file.kind is not Kind.FILE:
            raise BuildError(f"{os.fsdecode(path)!r} is no regular file")
        return self._context.known_digest(file)

    def _mounted(self, mount: BindMount) -> Digest:
        """Of all that the step will see: what is ignored too, and where a symlink leads."""
        files = self._context.below(self._context.resolve(mount.source))
        return self._context.digest(files, lambda file: file.mode)

    # -- execution -------------------------------------------------------------------------

    def _execute(
        self, stage: Stage, index: int, step: Step, before: Tree, progress: _Progress
    ) -> Tree:
        if not isinstance(step, RunStep):
            return edit(step, before, self._materials())
        self._publish()
        container = self._container(stage, index, progress)
        times = Times(made_at=self._epoch, latest=self._options.epoch)
        bound = self._inputs(step)
        after = run_step(container, step, before, times)
        if self._inputs(step) != bound:
            raise BuildError(f"{step.position}: a file that the step mounts changed meanwhile")
        return after

    def _materials(self) -> Materials:
        return Materials(
            context=self._context,
            stages=_Lazy({name: self._lazily(name) for name in self._stages}),
            stage_file=self._stage_file,
            stage_bytes=self._transaction.stage,
            read_object=self._read_object,
            unpack=self._unpack,
            made_at=self._epoch,
        )

    def _lazily(self, name: str) -> Callable[[], Tree]:
        return lambda: self._tree(self._stages[name])

    def _read_object(self, digest: Digest) -> bytes:
        fd = self._transaction.open_object(digest)
        with os.fdopen(fd, "rb") as file:
            return file.read()

    def _stage_file(self, file: ContextFile) -> Digest | None:
        """The file as the step's key has it. Raises BuildError if it is another by now."""
        fd = self._context.open(file.path)
        try:
            if stamp_of(os.fstat(fd)) != file.stamp:
                raise _changed(file.path)
            digest: Digest | None = None
            if 0 < file.size <= CHUNK:
                digest = self._transaction.stage(os.read(fd, file.size + 1))
            elif file.size:
                with self._transaction.writer() as writer:
                    while chunk := os.read(fd, CHUNK):
                        writer.write(chunk)
                    digest = writer.finish()
        finally:
            os.close(fd)
        if (digest or Digest.of(b"")) != self._context.digests.get(file.path):
            raise _changed(file.path)
        return digest

    def _unpack(self, path: bytes) -> list[Entry]:
        """The archive's entries. Its layer record is a by-product that nothing names."""
        shown = os.fsdecode(path)
        limits = Limits()
        with os.fdopen(self._context.open(path), "rb") as file:
            entries = stage_tar(
                self._transaction,
                decompressed(file, limits=limits, where=shown),
                where=shown,
                limits=limits,
                warn=lambda text: self._sink(Caution(text, shown)),
            ).entries
        if self._context.content_digest(self._context.look(path)) != self._context.digests.get(
            path
        ):
            raise _changed(path)
        return entries

    # -- the result ------------------------------------------------------------------------

    def _config(self, stage: Stage) -> bytes:
        progress = self._stages[stage.name]
        labels: dict[str, str] = {}
        for label in stage.config.labels:
            if isinstance(label.value, str):
                labels[label.name] = label.value
            else:
                self._publish()
                container = self._container(stage, len(stage.steps), progress)
                labels[label.name] = container.output_of(label.value)
        return emit_config(
            platform=self._platform,
            diff_ids=progress.image_layers,
            run=merged(progress.config, stage.config, labels),
            created=timestamp(self._epoch),
            history=progress.history,
        )

    def _container(self, stage: Stage, index: int, progress: _Progress) -> Container:
        return Container(
            store=self._store,
            transaction=self._transaction,
            context=self._context,
            diff_ids=tuple(progress.step_layers),
            tree=self._tree(progress),
            driver=rootfs.choose(self._store, self._options.driver),
            base_env=tuple(progress.config.get("Env") or ()),
            sink=self._sink,
            stage=stage.name,
            index=index,
        )

    def check(self, stage: Stage, config: bytes) -> None:
        """The stage's tests pass. Raises BuildError at the first that fails."""
        if stage.tests:
            progress = self._stages[stage.name]
            container = self._container(stage, len(stage.steps), progress)
            tested(stage, container.tree, progress.image_layers, self._store, container)
            self._tell(Note(f"{len(stage.tests)} tests of the stage {stage.name} pass"))


class _Lazy(dict[str, Tree]):
    """Trees of stages, loaded when a step asks for one."""

    def __init__(self, loaders: dict[str, Callable[[], Tree]]) -> None:
        super().__init__()
        self._loaders = loaders

    def __missing__(self, name: str) -> Tree:
        return self._loaders[name]()


def _changed(path: bytes) -> BuildError:
    return BuildError(
        f"{os.fsdecode(path)!r} changed during the build", hint="build again when it is written"
    )


def _mode_of(mode: Mode) -> Callable[[ContextFile], int]:
    return lambda file: (
        0 if file.kind is Kind.SYMLINK else mode.apply(file.mode, file.kind is Kind.DIRECTORY)
    )


def timestamp(seconds: int) -> str:
    """RFC 3339."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
