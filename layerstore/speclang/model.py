"""What a spec says, as frozen values: image, stages, bases, steps, config, tests, outputs.

Paths inside an image are bytes in the form of layer entries: no leading or trailing ``/``, the
root is the empty path. Paths of the spec's folder are relative bytes too; the folder itself is
``b"."``. What ends up in the OCI config keeps the text form that OCI has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from layerstore.names import Digest, ImageRef

Pairs = tuple[tuple[str, str], ...]
"""(name, value) in the order of the file; names are unique."""


class Position(NamedTuple):
    """Where something stands in a file; ``line`` and ``column`` count from 1."""

    filename: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.filename}:{self.line}"


# Modes and owners


class Change(NamedTuple):
    """One operation of a symbolic mode, as chmod(1) has them.

    ``affected`` are the bits that the letters before the operator stand for, ``operator`` is one
    of ``= + -``. ``copy`` names the class that the bits are copied from (``g=u``), else ``bits``
    apply, and with ``search`` (``X``) also the execute bits of what is a directory or executable.
    """

    affected: int
    operator: str
    bits: int
    search: bool
    copy: str


_SHIFTS = {"u": 6, "g": 3, "o": 0}
_CLASSES = {"u": 0o4700, "g": 0o2070, "o": 0o1007, "a": 0o7777}
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111, "s": 0o6000, "t": 0o1000, "X": 0}
_OCTAL = re.compile(r"0[0-7]{3,4}\Z")
_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[ugo]|[rwxXst]*))+)\Z")
_ACTION = re.compile(r"([-+=])([ugo]|[rwxXst]*)")


@dataclass(frozen=True, slots=True)
class Mode:
    """A mode as it is written; ``apply`` makes it true of a file.

    With ``exact`` it is those bits, with ``changes`` the mode that the file had is changed, with
    neither it is kept.
    """

    text: str
    exact: int | None = None
    changes: tuple[Change, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Mode | None:
        """None unless the text is ``0`` and 3 or 4 octal digits, or a symbolic mode of chmod(1)."""
        if _OCTAL.match(text):
            return cls(text, exact=int(text, 8))
        changes = cls.changes_of(text)
        return cls(text, changes=changes) if changes else None

    @staticmethod
    def changes_of(text: str) -> tuple[Change, ...]:
        """Empty unless the text is a symbolic mode."""
        changes: list[Change] = []
        for clause in text.split(","):
            match = _CLAUSE.match(clause)
            if match is None:
                return ()
            affected = 0
            for letter in match[1] or "a":
                affected |= _CLASSES[letter]
            for operator, what in _ACTION.findall(match[2]):
                copied = what if what in _SHIFTS else ""
                bits = 0
                for letter in "" if copied else what:
                    bits |= _BITS[letter]
                changes.append(Change(affected, operator, bits, "X" in what, copied))
        return tuple(changes)

    def apply(self, old_mode: int, is_dir: bool) -> int:
        """The permission bits that a file of ``old_mode`` gets; no umask plays a part."""
        if self.exact is not None:
            return self.exact
        mode = old_mode & 0o7777
        for change in self.changes:
            bits = change.bits
            if change.copy:
                bits = (mode >> _SHIFTS[change.copy] & 7) * 0o111
            elif change.search and (is_dir or mode & 0o111):
                bits |= 0o111
            # As chmod(1): a directory keeps setuid and setgid unless they are named.
            omitted = 0o6000 & ~bits if is_dir else 0
            bits &= change.affected & ~omitted
            if change.operator == "=":
                mode = mode & (~change.affected | omitted) | bits
            elif change.operator == "+":
                mode |= bits
            else:
                mode &= ~bits
        return mode


KEEP = Mode("keep")
"""The mode that the source has."""

NORMAL = Mode("normal", changes=Mode.changes_of("ug-s,go-x,a=rX,u+w"))
"""0755 for directories and for what its owner may execute, 0644 for the rest: git's model."""

MAX_ID = 0xFFFFFFFE
"""The largest uid or gid: 2^32 - 1 means "no change" to chown(2)."""

_ACCOUNT = r"[0-9]{1,10}|[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?"
_OWNER = re.compile(rf"({_ACCOUNT})(?::({_ACCOUNT}))?\Z")


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a file: numbers, or names to be looked up in the image.

    Without a group, that of a number is the same number (and is filled in here); that of a name,
    ``None``, is the primary group that the image's /etc/passwd gives the user.
    """

    user: int | str
    group: int | str | None

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """None unless the text is ``user`` or ``user:group``, each a number or a name."""
        match = _OWNER.match(text)
        if match is None:
            return None
        user, group = (int(part) if part and part.isdigit() else part for part in match.groups())
        if any(isinstance(part, int) and part > MAX_ID for part in (user, group)):
            return None
        if group is None and isinstance(user, int):
            group = user
        return cls(user, group)


ROOT = Owner(0, 0)


# Commands and mounts


@dataclass(frozen=True, slots=True)
class Command:
    """A script for ``/bin/sh -eu``, or the words of one program's call."""

    script: str | None
    words: tuple[str, ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        return self.words if self.script is None else ("/bin/sh", "-euc", self.script)

    def __str__(self) -> str:
        """One line for people."""
        if self.script is None:
            return _clip(" ".join(self.words))
        lines = [line.strip() for line in self.script.splitlines() if line.strip()]
        return _clip(lines[0] + (" …" if len(lines) > 1 else "") if lines else "")


@dataclass(frozen=True, slots=True)
class Mount:
    """Something that a run step sees at ``to`` and that never gets into a layer."""

    to: bytes
    position: Position = field(compare=False)


@dataclass(frozen=True, slots=True)
class BindMount(Mount):
    """A file or directory of the spec's folder, read-only; its content is part of the key."""

    source: bytes


@dataclass(frozen=True, slots=True)
class CacheMount(Mount):
    """A directory that outlives the build, shared by all steps that name it."""

    cache: str


@dataclass(frozen=True, slots=True)
class SecretMount(Mount):
    """A file whose content the caller gives; only its name is part of the key."""

    secret: str


@dataclass(frozen=True, slots=True)
class SshMount(Mount):
    """The socket of an ssh agent that the caller gives under this name."""

    agent: str


@dataclass(frozen=True, slots=True)
class TmpfsMount(Mount):
    """An empty directory in memory, of at most ``size`` bytes."""

    size: int


# Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What all steps have. Steps of one stage with the same ``layer`` make one layer together."""

    position: Position = field(compare=False)
    name: str | None = None
    layer: str | None = None

    @property
    def title(self) -> str:
        """One line for progress."""
        return self.name or _clip(self._title())

    def _title(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStep(Step):
    command: Command
    env: Pairs = ()
    mounts: tuple[Mount, ...] = ()
    network: str = "none"
    """``none`` or ``host``."""
    user: str | None = None
    """As ``run -u`` takes it; None: root."""
    workdir: bytes | None = None
    """None: the root directory."""

    def _title(self) -> str:
        return f"run {self.command}"


class Source(NamedTuple):
    """What to copy. With ``contents`` a directory stands for everything in it, else for itself."""

    path: bytes
    contents: bool = False

    def __str__(self) -> str:
        return _show(self.path) + ("/" if self.contents else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyStep(Step):
    """``sources`` are of the spec's folder, or of the result of ``stage`` if that is given.

    With ``into``, ``to`` is a directory in which things keep their names; without, it is the new
    name of the one source.
    """

    sources: tuple[Source, ...]
    to: bytes
    into: bool
    stage: str | None = None
    owner: Owner | None = ROOT
    """None, with ``stage`` only: as they are there."""
    mode: Mode = NORMAL
    """To be applied to the mode of each source."""

    def _title(self) -> str:
        origin = f"{self.stage}:" if self.stage else ""
        names = " ".join(origin + ("/" if self.stage else "") + str(s) for s in self.sources)
        return f"copy {names} → /{_show(self.to)}" + ("/" if self.into and self.to else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteStep(Step):
    """``mode`` is to be applied to 0644."""

    to: bytes
    text: str
    owner: Owner = ROOT
    mode: Mode = NORMAL

    def _title(self) -> str:
        return f"write /{_show(self.to)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MkdirStep(Step):
    """``path`` and its missing parents; what exists is changed only by a given owner or mode.

    ``mode`` is to be applied to 0755 where the directory is new.
    """

    path: bytes
    owner: Owner | None = None
    mode: Mode | None = None

    def _title(self) -> str:
        return f"mkdir /{_show(self.path)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SymlinkStep(Step):
    """``path`` is the link; ``target`` is its text, never resolved."""

    path: bytes
    target: bytes

    def _title(self) -> str:
        return f"symlink /{_show(self.path)} → {_show(self.target)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveStep(Step):
    paths: tuple[bytes, ...]

    def _title(self) -> str:
        return "remove " + " ".join("/" + _show(path) for path in self.paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractStep(Step):
    """The entries of the archive ``source``, of the spec's folder, under the directory ``to``."""

    source: bytes
    to: bytes

    def _title(self) -> str:
        return f"extract {_show(self.source)} → /{_show(self.to)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttrsStep(Step):
    """New attributes of files that exist; None and absent xattrs stay as they are."""

    paths: tuple[bytes, ...]
    owner: Owner | None = None
    mode: Mode | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    mtime: int | None = None
    """Seconds since 1970."""
    recursive: bool = False

    def _title(self) -> str:
        return "attrs " + " ".join("/" + _show(path) for path in self.paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class UseStep(Step):
    """Stands for the steps of another file, until ``spec.splice`` has put them in its place."""

    file: bytes
    variables: Pairs = ()

    def _title(self) -> str:
        return f"use {_show(self.file)}"


# Bases


@dataclass(frozen=True, slots=True)
class Base:
    """What a stage starts from."""


@dataclass(frozen=True, slots=True)
class ScratchBase(Base):
    """Nothing at all."""


@dataclass(frozen=True, slots=True)
class HostBase(Base):
    """A skeleton and pieces of this host: names such as ``python3``, or absolute paths."""

    pieces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RootfsBase(Base):
    """A root filesystem, a tar or a directory; ``digest`` is what the tar file must have."""

    path: bytes
    digest: Digest | None


@dataclass(frozen=True, slots=True)
class OciBase(Base):
    """An OCI layout that holds one image."""

    path: bytes


@dataclass(frozen=True, slots=True)
class ArchiveBase(Base):
    """A docker-archive or OCI archive that holds one image."""

    path: bytes
    digest: Digest | None


@dataclass(frozen=True, slots=True)
class DebianBase(Base):
    suite: str
    variant: str = "minbase"
    packages: tuple[str, ...] = ()
    mirror: str | None = None


@dataclass(frozen=True, slots=True)
class StageBase(Base):
    """An earlier stage of the same spec."""

    stage: str


@dataclass(frozen=True, slots=True)
class ImageBase(Base):
    """An image of the store."""

    ref: ImageRef


# Config, tests, outputs


@dataclass(frozen=True, slots=True)
class Label:
    """``value`` is text, or the command whose output (less its last newline) is the text."""

    name: str
    value: str | Command


@dataclass(frozen=True, slots=True)
class Healthcheck:
    """``command`` None disables an inherited check. Times are in seconds; None: the default."""

    command: Command | None
    interval: float | None = None
    timeout: float | None = None
    start_period: float | None = None
    retries: int | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """What a container of the image gets by default; None and absent names are inherited."""

    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: Pairs = ()
    user: str | None = None
    workdir: str | None = None
    labels: tuple[Label, ...] = ()
    expose: tuple[str, ...] = ()
    """``8080/tcp``: always with the protocol, as OCI has them."""
    volumes: tuple[str, ...] = ()
    stopsignal: str | None = None
    healthcheck: Healthcheck | None = None


@dataclass(frozen=True, slots=True)
class ImageTest:
    """Something that must be true of the finished stage."""

    position: Position = field(compare=False)


@dataclass(frozen=True, slots=True)
class RunTest(ImageTest):
    """The command exits with 0."""

    command: Command


@dataclass(frozen=True, slots=True)
class FileTest(ImageTest):
    """The path exists, and has exactly this mode if one is given."""

    path: bytes
    mode: int | None


@dataclass(frozen=True, slots=True)
class SizeTest(ImageTest):
    """The image's layers have at most ``limit`` bytes of content."""

    limit: int


@dataclass(frozen=True, slots=True)
class Output:
    """A place to save the result to: ``form`` is ``oci`` or ``docker``."""

    form: str
    path: bytes
    position: Position = field(compare=False)


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    base: Base
    base_position: Position = field(compare=False)
    steps: tuple[Step, ...]
    config: Config
    tests: tuple[ImageTest, ...]
    position: Position = field(compare=False)


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """A whole spec. The last stage is the image; a stage refers to earlier ones only."""

    filename: str
    name: ImageRef | None
    variables: Pairs
    ignore: tuple[str, ...]
    stages: tuple[Stage, ...]
    outputs: tuple[Output, ...]

    def stage(self, name: str) -> Stage | None:
        return next((stage for stage in self.stages if stage.name == name), None)

    def uses(self) -> Iterator[UseStep]:
        """The steps that still stand for another file."""
        for stage in self.stages:
            yield from (step for step in stage.steps if isinstance(step, UseStep))


@dataclass(frozen=True, slots=True)
class Fragment:
    """The file of a ``use`` step."""

    filename: str
    variables: Pairs
    steps: tuple[Step, ...]


def _show(path: bytes) -> str:
    return path.decode(errors="backslashreplace")


def _clip(text: str, width: int = 72) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
