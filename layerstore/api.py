"""The public Python API: one typed call for each command, and nothing that the CLI has alone.

::

    from pathlib import Path
    from layerstore.api import Layerstore

    store = Layerstore(Path("/var/lib/layerstore"))
    built = store.build(Path("spec.yaml"))
    code = store.run(RunOptions(image="hello")).exit_code

Every call raises a ``LayerstoreError`` with a message, a hint and an exit code, and prints nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from layerstore import archive, rootfs
from layerstore import build as building
from layerstore import commit as committing
from layerstore import run as running
from layerstore.archive import Loaded
from layerstore.archive_save import Form
from layerstore.build import BuildOptions, Built
from layerstore.commit import Change
from layerstore.errors import (
    ConflictError,
    DamagedError,
    HostError,
    LayerstoreError,
    NotFoundError,
    UsageError,
)
from layerstore.events import Sink, ignore
from layerstore.formats.changes import diff
from layerstore.formats.compress import Compression
from layerstore.formats.entries import Entry, Kind
from layerstore.formats.oci import Json, load_json
from layerstore.kernel import mounts
from layerstore.kernel.probe import Ability, HostReport, probe_host
from layerstore.names import ChainID, DiffID, ImageID, ImageRef, platform_of
from layerstore.plan import BuildPlan
from layerstore.run import ContainerStatus, RunOptions
from layerstore.runtime.supervise import Outcome
from layerstore.settings import Settings
from layerstore.spec import ImageSpec, parse, splice
from layerstore.store import fsck, gc, mounted, usage
from layerstore.store.fsck import Report as FsckReport
from layerstore.store.gc import GcPlan
from layerstore.store.images import Image
from layerstore.store.store import Store, make_ballast
from layerstore.store.usage import Usage


@dataclass(frozen=True, slots=True)
class ImageSummary:
    """A name and its image."""

    ref: ImageRef
    image_id: ImageID
    chain_id: ChainID
    created: str | None
    apparent: int
    """Bytes of all files that a container of it sees."""
    stored: int
    """Bytes of the distinct contents that its layers name."""


@dataclass(frozen=True, slots=True)
class HistoryStep:
    """A step of an image's history, oldest first."""

    created_by: str
    created: str | None
    diff_id: DiffID | None
    """None: it changed no file."""
    entries: int
    added: int
    """Bytes of content in its layer."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What ``rmi`` removes, and the bytes on disk that come back."""

    names: tuple[ImageRef, ...]
    images: tuple[ImageID, ...]
    freed: int


class Layerstore:
    """A store and everything that can be done with it."""

    def __init__(
        self, root: Path, *, settings: Settings | None = None, sink: Sink = ignore
    ) -> None:
        self.settings = settings or Settings(root=root)
        self.store = Store.open(root)
        self._sink = sink

    # -- making images -----------------------------------------------------------------------

    def build(
        self,
        spec: Path,
        *,
        tag: ImageRef | None = None,
        variables: Mapping[str, str] | None = None,
        stage: str | None = None,
        use_cache: bool = True,
    ) -> Built:
        """The image of a spec file. Raises SpecError with every mistake, or BuildError."""
        parsed = self.read_spec(spec, variables)
        built = building.build(
            self.store, parsed, spec.parent, self._build_options(tag, stage, use_cache), self._sink
        )
        image = self.store.images.get(built.image_id)
        for output in parsed.outputs:
            archive.save(
                self.store,
                image,
                spec.parent / os.fsdecode(output.path),
                refs=[built.ref] if built.ref is not None else [],
                form="oci" if output.form == "oci" else "docker",
            )
        return built

    def plan(
        self,
        spec: Path,
        *,
        tag: ImageRef | None = None,
        variables: Mapping[str, str] | None = None,
        stage: str | None = None,
        use_cache: bool = True,
    ) -> BuildPlan:
        """What ``build`` would do, and why."""
        options = self._build_options(tag, stage, use_cache)
        return building.plan(self.store, self.read_spec(spec, variables), spec.parent, options)

    def read_spec(self, spec: Path, variables: Mapping[str, str] | None = None) -> ImageSpec:
        """The spec with the files that it uses in their places."""
        if spec.exists() and not spec.is_file():
            raise UsageError(f"the spec {str(spec)!r} is no file", hint="name a YAML file")
        try:
            text = spec.read_bytes()
        except OSError as error:
            raise NotFoundError(
                f"cannot read the spec {str(spec)!r}: {error.strerror}",
                hint="name a spec file, such as examples/hello/spec.yaml",
            ) from None
        parsed = parse(text, filename=str(spec), overrides=variables)
        return splice(parsed, lambda step: (spec.parent / os.fsdecode(step.file)).read_bytes())

    def _build_options(
        self, tag: ImageRef | None, stage: str | None, use_cache: bool
    ) -> BuildOptions:
        return BuildOptions(
            tag, stage, use_cache, self.settings.driver, self.settings.source_date_epoch
        )

    def import_root(self, source: Path, ref: ImageRef) -> ImageID:
        """A root filesystem, a tar in any compression or a directory, as an image of one layer."""
        return archive.import_root(
            self.store,
            source,
            ref,
            platform=platform_of(os.uname().machine),
            created=building.timestamp(self.settings.source_date_epoch or 0),
            sink=self._sink,
        )

    def load(self, source: Path, name: ImageRef | None = None) -> list[Loaded]:
        """The images of an OCI layout or a docker archive."""
        return archive.load(self.store, source, name=name, sink=self._sink)

    def save(
        self,
        name: str,
        target: Path | BinaryIO,
        *,
        form: Form = "oci",
        compression: Compression | None = None,
    ) -> None:
        """The image as an OCI layout or a docker archive."""
        image = self.store.images.find(name)
        refs = self._names_for(name, image)
        archive.save(self.store, image, target, refs=refs, form=form, compression=compression)

    def _names_for(self, name: str, image: Image) -> list[ImageRef]:
        """The name that the user said, or all names of an image that was called by its id."""
        names = self.store.images.names_of(image.image_id)
        try:
            said = ImageRef.parse(name)
        except UsageError:
            return names
        return [said] if said in names else names

    # -- looking at images -------------------------------------------------------------------

    def images(self) -> list[ImageSummary]:
        """Every name, sorted. An image that is damaged is left out; fsck names it."""
        found = []
        sizes: dict[ImageID, tuple[int, int]] = {}
        for ref, image_id in self.store.refs.all().items():
            try:
                image = self.store.images.get(image_id)
                if image_id not in sizes:
                    sizes[image_id] = usage.sizes_of(self.store, image)
            except (NotFoundError, DamagedError):
                continue
            apparent, stored = sizes[image_id]
            found.append(
                ImageSummary(ref, image_id, image.chain_id, image.config.created, apparent, stored)
            )
        return found

    def inspect(self, name: str) -> Json:
        """An image or, if none has that name, a container."""
        try:
            image = self.store.images.find(name)
        except (NotFoundError, UsageError):
            try:
                return self._inspect_container(name)
            except NotFoundError:
                pass
            raise
        document = load_json(image.raw_config, where=f"image {image.image_id.short}")
        return {
            "image_id": image.image_id,
            "names": [str(ref) for ref in self.store.images.names_of(image.image_id)],
            "chain_id": image.chain_id,
            "diff_ids": list(image.diff_ids),
            "config": document,
        }

    def _inspect_container(self, name: str) -> Json:
        container = self.store.containers.get(self.store.containers.find(name))
        found = running.status(self.store, container)
        return {
            "container_id": container.container_id,
            "name": container.name,
            "image_id": container.image_id,
            "image": container.image_name,
            "diff_ids": list(container.diff_ids),
            "created": container.created,
            "argv": list(container.argv),
            "driver": container.driver,
            "state": state_json(found),
        }

    def history(self, name: str) -> list[HistoryStep]:
        """What made the image, oldest first, with what each step added."""
        image = self.store.images.find(name)
        layers = list(image.diff_ids)
        steps = []
        for item in image.config.history:
            diff_id = None if item.get("empty_layer") or not layers else layers.pop(0)
            steps.append(self._step(str(item.get("created_by", "")), item.get("created"), diff_id))
        steps += [self._step("", None, diff_id) for diff_id in layers]
        return steps

    def _step(self, created_by: str, created: str | None, diff_id: DiffID | None) -> HistoryStep:
        entries = self.store.layers.entries(diff_id) if diff_id is not None else []
        added = sum(entry.size for entry in entries if entry.kind is Kind.FILE)
        return HistoryStep(created_by, created, diff_id, len(entries), added)

    def layer_entries(self, diff_id: str) -> list[Entry]:
        """A layer's entries in its tar's order. The digest may be cut short."""
        return self.store.layers.entries(self._layer(diff_id))

    def layer_tar(self, diff_id: str) -> Iterator[bytes]:
        """A layer's tar, bit for bit."""
        return self.store.layers.tar(self._layer(diff_id))

    def _layer(self, text: str) -> DiffID:
        digits = text.removeprefix("sha256:")
        found = [diff_id for diff_id in self.store.layers.all() if diff_id.hex.startswith(digits)]
        if len(digits) < 4:
            raise UsageError(f"{text!r} is too short for a layer", hint="give at least 4 digits")
        if len(found) != 1:
            raise NotFoundError(
                f"{text!r} fits {len(found)} layers",
                hint="layerstore inspect IMAGE lists its layers; give as many digits as it takes",
            )
        return found[0]

    def image_diff(self, before: str, after: str) -> list[Change]:
        """What a container of ``after`` sees otherwise than one of ``before``."""
        trees = [
            self.store.layers.tree(self.store.images.find(n).diff_ids) for n in (before, after)
        ]
        return committing.changes_of(trees[0], diff(trees[0], trees[1]))

    # -- names -------------------------------------------------------------------------------

    def tag(self, name: str, ref: ImageRef) -> ImageID:
        """The image has one more name; an image that had it loses it."""
        image = self.store.images.find(name)
        with self.store.transaction() as transaction:
            transaction.lease([image.image_id, *image.diff_ids])
            self.store.images.get(image.image_id)  # it is still there, now that it is leased
            transaction.publish({ref: image.image_id})
        return image.image_id

    def remove_images(
        self, names: Sequence[str], *, dry_run: bool = False, force: bool = False
    ) -> Removal:
        """The names are gone; an image without any name left is gone too, and its space is free.

        Raises ConflictError for an image that a container uses, or that is called by its id while
        it has several names; ``force`` removes the names all the same.
        """
        gone = self._refs_to_remove(names, force=force)
        kept = {image_id for ref, image_id in self._readable_refs().items() if ref not in gone}
        images = {image_id for image_id in gone.values() if image_id is not None} - kept
        if not force:
            self._refuse_used(images)
        damaged = [ref for ref, image_id in gone.items() if image_id is None]
        if damaged and not dry_run:
            for ref in damaged:  # before planning, which must be able to read every name
                self.store.refs.delete(ref)
        plan = gc.plan_removal(self.store, images, refs=gone)
        if not dry_run:
            for ref, image_id in gone.items():
                if image_id is not None:
                    self.store.refs.delete(ref)
            gc.sweep(self.store, plan)
        return Removal(tuple(gone), plan.images, plan.freed)

    def _readable_refs(self) -> dict[ImageRef, ImageID]:
        found = {}
        for ref in self.store.refs.names():
            try:
                image_id = self.store.refs.get(ref)
            except DamagedError:
                continue
            if image_id is not None:
                found[ref] = image_id
        return found

    def _refs_to_remove(
        self, names: Sequence[str], *, force: bool
    ) -> dict[ImageRef, ImageID | None]:
        gone: dict[ImageRef, ImageID | None] = {}
        for name in names:
            try:
                ref = ImageRef.parse(name)
                image_id = self.store.refs.get(ref)
            except DamagedError:
                gone[ref] = None
                continue
            except UsageError:
                image_id = None
            if image_id is not None:
                gone[ref] = image_id
                continue
            image = self.store.images.find(name)
            refs = self.store.images.names_of(image.image_id)
            if len(refs) > 1 and not force:
                raise ConflictError(
                    f"the image {name} has {len(refs)} names: {', '.join(map(str, refs))}",
                    hint="name the one to remove, or use --force to remove them all",
                )
            gone.update(dict.fromkeys(refs, image.image_id))
        return gone

    def _refuse_used(self, images: set[ImageID]) -> None:
        for container in self.store.containers.all():
            if container.image_id in images:
                raise ConflictError(
                    f"the container {container.name} uses the image {container.image_name}",
                    hint=f"remove it first: layerstore rm {container.name}",
                )

    # -- mounting ----------------------------------------------------------------------------

    def mount(self, name: str, target: Path | None = None) -> Path:
        """The image's root, read-only, at a directory of the host; made if none is given."""
        if os.geteuid() != 0:
            raise HostError(
                "mounting on the host needs root",
                hint="run as root, or look inside with layerstore run IMAGE ls",
            )
        image = self.store.images.find(name)
        where = target.absolute() if target is not None else self._new_mount_point(image)
        if not where.is_dir():
            raise NotFoundError(f"there is no directory {where}", hint="create it first")
        if os.path.ismount(where):
            raise ConflictError(
                f"something is mounted at {where} already",
                hint=f"layerstore umount {where}, or choose another directory",
            )
        driver = rootfs.choose(self.store, self.settings.driver)
        record = mounted.record(self.store.layout, where, name, image.diff_ids)
        try:
            root = rootfs.overlay(self.store, image.diff_ids, driver=driver)
            mounts.mount_overlay(root.replace(read_only=True), where)
        except BaseException:
            mounted.forget(self.store.layout, record)
            if target is None:
                where.rmdir()
            raise
        return where

    def _new_mount_point(self, image: Image) -> Path:
        where = Path("/run/layerstore/mnt") / f"{image.image_id.short}-{os.getpid()}"
        where.mkdir(0o700, parents=True, exist_ok=True)
        return where

    def umount(self, target: Path) -> None:
        """Nothing of the store is mounted there any more. Raises NotFoundError if nothing was."""
        where = target.absolute()
        records = [r for r in mounted.all_mounted(self.store.layout) if r.target == where]
        if not records:
            raise NotFoundError(
                f"layerstore has mounted nothing at {where}",
                hint="layerstore mount IMAGE DIR mounts an image",
            )
        record = records[-1]
        if os.path.ismount(where):
            try:
                mounts.umount(where)
            except OSError as error:
                raise ConflictError(
                    f"{where} is in use: {error.strerror}",
                    hint="leave the directory, and end what uses it",
                ) from error
        mounted.forget(self.store.layout, record)
        if where.parent == Path("/run/layerstore/mnt"):
            where.rmdir()

    # -- containers --------------------------------------------------------------------------

    def run(
        self, options: RunOptions, *, stdin: int = 0, stdout: int = 1, stderr: int = 2
    ) -> Outcome:
        """Runs a new container to its end. The calling process must be single-threaded."""
        return running.run(self.store, options, stdin=stdin, stdout=stdout, stderr=stderr)

    def containers(self) -> list[ContainerStatus]:
        """Every container, the newest first."""
        found = [running.status(self.store, c) for c in self.store.containers.all()]
        return sorted(found, key=lambda item: item.container.created, reverse=True)

    def remove_container(self, name: str, *, force: bool = False) -> str:
        """The container and its writable layer are gone; its id."""
        return running.remove(self.store, name, force=force)

    def container_diff(self, name: str) -> list[Change]:
        """What a container changed."""
        return committing.changes(self.store, name)

    def commit(self, name: str, ref: ImageRef, *, pause: bool = True) -> ImageID:
        """An image of a container, which stands still meanwhile if it runs, unless not wanted."""
        epoch = self.settings.source_date_epoch
        return committing.commit(self.store, name, ref, epoch=epoch, pause=pause)

    # -- the store ---------------------------------------------------------------------------

    def usage(self) -> usage.Usage:
        """Where every byte on disk is."""
        return usage.measure(self.store)

    def collect(self, *, dry_run: bool = False) -> GcPlan:
        """What nothing needs is gone: build cache, layers and contents without an image."""
        plan = gc.plan(self.store)
        if not dry_run:
            gc.sweep(self.store, plan)
            make_ballast(self.store.layout)
        return plan

    def check(self, *, read_data: bool = False) -> fsck.Report:
        """What is wrong with the store."""
        return fsck.check(self.store, read_data=read_data)

    def repair(self, report: fsck.Report) -> tuple[fsck.Problem, ...]:
        """The damaged parts that could be are set aside; importing or building makes them anew."""
        return fsck.repair(self.store, report)

    def doctor(self) -> HostReport:
        """What this host can do, and what to do about what it can't."""
        report = probe_host(self.store.layout.root)
        why_not = rootfs.why_not_composed(self.store)
        driver = Ability(
            name="driver-composed",
            is_there=not why_not,
            why=why_not or "images are mounted as one, every content once",
            hint="nothing to do: the stacked driver is used" if why_not else "",
        )
        return report.replace(abilities=(*report.abilities, driver))


def state_json(found: ContainerStatus) -> Json:
    state = found.state
    return {
        "status": state.status,
        "pid": state.pid,
        "exit_code": state.exit_code,
        "oom_killed": state.oom_killed,
        "started": _moment(state.started_ns),
        "finished": _moment(state.finished_ns),
    }


def _moment(ns: int | None) -> str | None:
    return running.timestamp(ns // 1_000_000_000) if ns is not None else None


__all__ = [
    "BuildPlan", "Built", "Change", "ContainerStatus", "FsckReport", "GcPlan", "HistoryStep",
    "HostReport", "ImageSummary", "Json", "Layerstore", "LayerstoreError", "Loaded", "Outcome",
    "Removal", "RunOptions", "Usage", "probe_host",
]  # fmt: skip
