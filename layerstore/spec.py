"""YAML bytes → ImageSpec. Pure: nothing is read but the bytes; every mistake has its position.

The whole door of the spec: the values that it is made of are found here too. ``speclang`` holds
them (``model``), the text with its positions (``document``), readers for single values (``fields``)
and the schema of the steps (``steps``); this module the schema of everything else.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath

from layerstore.speclang import fields as read
from layerstore.speclang.document import (
    Diagnostic,
    Document,
    Listing,
    Node,
    Scalar,
    Span,
    SpecError,
    Table,
    is_clean,
    kind_of,
    load,
    quote,
)
from layerstore.speclang.fields import Fields, Reader, below
from layerstore.speclang.model import (
    KEEP,
    NORMAL,
    ROOT,
    ArchiveBase,
    AttrsStep,
    Base,
    BindMount,
    CacheMount,
    Change,
    Command,
    Config,
    CopyStep,
    DebianBase,
    ExtractStep,
    FileTest,
    Fragment,
    Healthcheck,
    HostBase,
    ImageBase,
    ImageSpec,
    ImageTest,
    Label,
    MkdirStep,
    Mode,
    Mount,
    OciBase,
    Output,
    Owner,
    Pairs,
    Position,
    RemoveStep,
    RootfsBase,
    RunStep,
    RunTest,
    ScratchBase,
    SecretMount,
    SizeTest,
    Source,
    SshMount,
    Stage,
    StageBase,
    Step,
    SymlinkStep,
    TmpfsMount,
    UseStep,
    WriteStep,
)
from layerstore.speclang.steps import Scope, read_steps

__all__ = [
    "KEEP", "NORMAL", "ROOT", "ArchiveBase", "AttrsStep", "Base", "BindMount", "CacheMount",
    "Change", "Command", "Config", "CopyStep", "DebianBase", "Diagnostic", "ExtractStep",
    "FileTest", "Fragment", "Healthcheck", "HostBase", "ImageBase", "ImageSpec", "ImageTest",
    "Label", "MkdirStep", "Mode", "Mount", "OciBase", "Output", "Owner", "Pairs", "Position",
    "RemoveStep", "RootfsBase", "RunStep", "RunTest", "ScratchBase", "SecretMount", "SizeTest",
    "Source", "SpecError", "SshMount", "Stage", "StageBase", "Step", "SymlinkStep", "TmpfsMount",
    "UseStep", "WriteStep", "parse", "parse_fragment", "splice",
]  # fmt: skip

VERSION = "1"

STAGE_KEYS = ("from", "steps", "config", "tests")
TOP_KEYS = ("layerstore", "name", "vars", "ignore", "stages", *STAGE_KEYS, "outputs")
FRAGMENT_KEYS = ("layerstore", "vars", "steps")
BASES: dict[str, tuple[str, ...]] = {
    "host": (),
    "rootfs": ("sha256",),
    "oci": (),
    "archive": ("sha256",),
    "debian": (),
    "stage": (),
    "image": (),
}
"""The kinds of base that are mappings, and what may stand beside each."""
DEBIAN_KEYS = ("suite", "variant", "packages", "mirror")
DEBIAN_VARIANTS = ("minbase", "essential", "apt", "buildd", "important", "standard")
CONFIG_KEYS = (
    "entrypoint", "cmd", "env", "user", "workdir", "labels", "expose", "volumes", "stopsignal",
    "healthcheck",
)  # fmt: skip
HEALTHCHECK_KEYS = ("run", "interval", "timeout", "start_period", "retries")
TESTS: dict[str, tuple[str, ...]] = {"run": (), "file": ("mode",), "size": ()}
OUTPUTS = ("oci", "docker")

SINGLE_STAGE = "image"
"""The name of the stage of a spec that has no ``stages``."""

MAX_STEPS = 10_000
"""Steps of a stage with every ``use`` spliced: a chain of files may double at each link."""


def parse(text: bytes, *, filename: str, overrides: Mapping[str, str] | None = None) -> ImageSpec:
    """What the file says. ``overrides`` are the values of ``--set``; ``filename`` is for messages.

    Raises SpecError with every mistake of the file.
    """
    document, top = load(text, filename=filename)
    fields = _top(document, top, TOP_KEYS)
    _declare(document, fields, overrides or {}, "--set")
    spec = ImageSpec(
        filename=filename,
        name=fields.get("name", read.image_ref, None),
        variables=_variables(document),
        ignore=fields.get("ignore", _IGNORE, ()),
        stages=_stages(document, top, fields),
        outputs=fields.get("outputs", read.list_of(_output, "outputs"), ()),
    )
    document.check()
    return spec


def parse_fragment(
    text: bytes, *, filename: str, step: UseStep, stages: tuple[str, ...] = ()
) -> Fragment:
    """What the file of a ``use`` step says; ``stages`` are the names before the step's stage.

    Raises SpecError with every mistake of the file.
    """
    document, top = load(text, filename=filename)
    fields = _top(document, top, FRAGMENT_KEYS)
    _declare(document, fields, dict(step.variables), f"the use step at {step.position}")
    steps = fields.need("steps", partial(read_steps, scope=Scope(stages)), ())
    document.check()
    return Fragment(filename, _variables(document), steps)


def splice(spec: ImageSpec, read_file: Callable[[UseStep], bytes]) -> ImageSpec:
    """The spec with the steps of its fragments in the place of every ``use`` step.

    ``read_file`` gives the bytes of ``step.file``, a path of the spec's folder. A spliced step
    that names no layer gets that of the ``use`` step. Raises SpecError.
    """
    folder = PurePosixPath(spec.filename).parent
    stages: list[Stage] = []
    for stage in spec.stages:
        names = tuple(earlier.name for earlier in stages)
        steps: list[Step] = []
        _splice(steps, stage.steps, (), folder, names, read_file)
        stages.append(replace(stage, steps=tuple(steps)))
    return replace(spec, stages=tuple(stages))


def _splice(
    into: list[Step],
    steps: tuple[Step, ...],
    chain: tuple[bytes, ...],
    folder: PurePosixPath,
    stages: tuple[str, ...],
    read_file: Callable[[UseStep], bytes],
) -> None:
    for step in steps:
        if not isinstance(step, UseStep):
            into.append(step)
            if len(into) > MAX_STEPS:
                raise _error_at(step.position, f"more than {MAX_STEPS} steps in one stage")
            continue
        if step.file in chain:
            name = quote(step.file.decode(errors="backslashreplace"))
            raise _error_at(step.position, f"{name} uses itself")
        filename = str(folder / step.file.decode(errors="backslashreplace"))
        fragment = parse_fragment(read_file(step), filename=filename, step=step, stages=stages)
        inner = tuple(
            replace(found, layer=step.layer) if found.layer is None else found
            for found in fragment.steps
        )
        _splice(into, inner, (*chain, step.file), folder, stages, read_file)


def _error_at(position: Position, message: str) -> SpecError:
    return SpecError(position.filename, [Diagnostic(position.line, position.column, message)])


# The top: version and variables


def _top(document: Document, top: Node, known: tuple[str, ...]) -> Fields:
    """The top's fields. Raises SpecError at once when the version is none that this one reads."""
    if not isinstance(top, Table):
        message = f"expected a mapping at the top, got {kind_of(top)}"
        document.error(top.span, message, hint='start it with "layerstore: 1"')
        document.check()
    version = next(
        (value for key, value in getattr(top, "pairs", ()) if key.text == "layerstore"), None
    )
    if isinstance(version, Scalar) and version.text != VERSION:
        message = f"spec version {quote(version.text)} is not one that this layerstore reads"
        document.diagnostics.clear()
        document.error(version.span, message, hint='write "layerstore: 1"')
        document.check()
    fields = Fields(document, top, "", known)
    if "layerstore" not in fields:
        if not fields.is_meant("layerstore"):
            hint = f'begin the file with "layerstore: {VERSION}"'
            document.error(top.span, 'missing key "layerstore"', hint=hint)
    elif not isinstance(version, Scalar):
        document.error(fields.node("layerstore").span, "expected the spec's version", "layerstore")
    elif isinstance(top, Table) and top.pairs[0][0].text != "layerstore":
        document.error(
            fields.key("layerstore"), 'the key "layerstore" is not the first', hint="move it up"
        )
    return fields


def _declare(document: Document, fields: Fields, overrides: Mapping[str, str], giver: str) -> None:
    """Fill the document's variables; ``giver`` says in messages who overrides."""
    pairs: list[tuple[Scalar, Node]] = []
    if "vars" in fields:
        node = fields.node("vars")
        if isinstance(node, Table):
            pairs = list(document.pairs(node, "vars"))
        else:
            document.error(node.span, f"expected a mapping, got {kind_of(node)}", "vars")
    for key, value in pairs:
        document.variables[key.text] = _variable(document, key, value, overrides, giver)
    for name, given in overrides.items():
        if name not in document.variables:
            hint = read.did_you_mean(name, tuple(document.variables)) or "declare it in vars"
            document.error_outside(f"{giver}: {quote(name)} is not declared in vars", hint)
        elif not is_clean(given):
            document.error_outside(f"{giver}: the value of {quote(name)} is not UTF-8 text")


def _variable(
    document: Document, key: Scalar, value: Node, overrides: Mapping[str, str], giver: str
) -> str | None:
    """The variable's value; None after a mistake."""
    shown = quote(key.text)
    if not read.VARIABLE_NAME.match(key.text):
        hint = "use letters, digits and _"
        document.error(key.span, f"{shown} is not the name of a variable", "vars", hint)
    if key.text in overrides:
        return overrides[key.text]
    if isinstance(value, Scalar) and value.is_empty:
        hint = f"give it one in vars, or with {giver}"
        document.error(key.span, f"the variable {shown} has no value", "vars", hint)
        return None
    before = len(document.diagnostics)
    text = read.any_text(document, value, below("vars", key.text))
    return text if len(document.diagnostics) == before else None


def _variables(document: Document) -> Pairs:
    return tuple((name, value or "") for name, value in document.variables.items())


_IGNORE = read.list_of(
    read.matching(r"[^\r\n]*[^\r\n\s!/][^\r\n]*", "a pattern", 'write one as in .gitignore: "*.o"'),
    "patterns",
    may_be_empty=True,
)


# Stages and bases

_STAGE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")


def _stages(document: Document, top: Node, fields: Fields) -> tuple[Stage, ...]:
    if "stages" not in fields:
        return (_stage(document, fields, SINGLE_STAGE, "", Scope(), top.span),)
    for beside in STAGE_KEYS:
        if beside in fields:
            hint = "move it into one of the stages"
            document.error(fields.key(beside), f'"{beside}" beside "stages"', hint=hint)
    node = fields.node("stages")
    if not isinstance(node, Table):
        document.error(node.span, f"expected a mapping, got {kind_of(node)}", "stages")
        return ()
    if not node.pairs:
        document.error(node.span, "there is no stage", "stages", "the last stage is the image")
    pairs = list(document.pairs(node, "stages"))
    names = tuple(key.text for key, _ in pairs)
    stages: list[Stage] = []
    for index, (key, value) in enumerate(pairs):
        if not _STAGE_NAME.match(key.text):
            hint = "use lower-case letters, digits and . _ -"
            document.error(key.span, f"{quote(key.text)} is not a name", "stages", hint)
        where = below("stages", key.text)
        scope = Scope(names[:index], names[index:])
        inner = Fields(document, value, where, STAGE_KEYS)
        stages.append(_stage(document, inner, key.text, where, scope, key.span))
    return tuple(stages)


def _stage(
    document: Document, fields: Fields, name: str, where: str, scope: Scope, span: Span
) -> Stage:
    start = fields.node("from").span if "from" in fields else span
    return Stage(
        name=name,
        base=fields.need("from", partial(_base, scope=scope), ScratchBase()),
        base_position=document.position(start),
        steps=fields.get("steps", partial(read_steps, scope=scope), ()),
        config=fields.get("config", _config, Config()),
        tests=fields.get("tests", _tests, ()),
        position=document.position(span),
    )


_PIECE = read.matching(
    r"[A-Za-z0-9][A-Za-z0-9._+-]*|/[^\r\n]*[^\r\n/]",
    "a piece of the host",
    "give a name such as python3, or an absolute path of this host",
)
_SUITE = read.matching(r"[a-z][a-z0-9.-]*", "a Debian suite", "write its name, such as bookworm")
_PACKAGES = read.list_of(
    read.matching(
        r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9-]+)?", "a package name", "write it as apt-get install does"
    ),
    "packages",
)
_MIRROR = read.matching(
    r"(https?|file|copy)://?[^\s]+", "the address of a mirror", "begin it with http:// or https://"
)


def _base(document: Document, node: Node, where: str, *, scope: Scope) -> Base:
    if isinstance(node, Scalar) and node.text == "scratch":
        return ScratchBase()
    if isinstance(node, Scalar) and not node.is_empty:
        message = f'expected "scratch" or a mapping, got {quote(node.text)}'
        hint = f"a base of that kind is written {{{node.text}: …}}"
        if node.text not in BASES:
            hint = f"an image of the store is written {{image: {node.text}}}"
        document.error(node.span, message, where, hint)
        return ScratchBase()
    if isinstance(node, Table) and [word.text for word, _ in node.pairs] == ["scratch"]:
        document.error(node.span, '"scratch" as a mapping', where, "write from: scratch")
        return ScratchBase()
    kind = read.kind_in(document, node, where, tuple(BASES), ("sha256",), "a base")
    if kind is None:
        return ScratchBase()
    elsewhere = {"sha256": 'it has a meaning only beside "rootfs" or "archive"'}
    fields = Fields(document, node, where, (kind, *BASES[kind]), elsewhere=elsewhere)
    match kind:
        case "host":
            return HostBase(fields.need(kind, read.list_of(_PIECE, "pieces"), ()))
        case "rootfs":
            path = fields.need(kind, read.folder_path, b".")
            return RootfsBase(path, fields.get("sha256", read.sha256, None))
        case "archive":
            path = fields.need(kind, read.folder_path, b".")
            return ArchiveBase(path, fields.get("sha256", read.sha256, None))
        case "oci":
            return OciBase(fields.need(kind, read.folder_path, b"."))
        case "debian":
            return fields.need(kind, _debian, DebianBase(""))
        case "stage":
            return StageBase(fields.need(kind, scope.stage, ""))
        case _:
            ref = fields.need(kind, read.image_ref, None)
            return ScratchBase() if ref is None else ImageBase(ref)


def _debian(document: Document, node: Node, where: str) -> DebianBase:
    if isinstance(node, Scalar) and not node.is_empty:
        return DebianBase(_SUITE(document, node, where))
    fields = Fields(document, node, where, DEBIAN_KEYS)
    return DebianBase(
        suite=fields.need("suite", _SUITE, ""),
        variant=fields.get("variant", read.choice("a variant", DEBIAN_VARIANTS), "minbase"),
        packages=fields.get("packages", _PACKAGES, ()),
        mirror=fields.get("mirror", _MIRROR, None),
    )


# Config

_PORT = re.compile(r"([0-9]{1,5})(?:/(tcp|udp|sctp))?\Z")
_SIGNALS = frozenset(known.name for known in signal.Signals)
_REALTIME = re.compile(r"SIGRTM(IN\+|AX-)[0-9]{1,2}\Z")


def _parse_port(text: str) -> str | None:
    match = _PORT.match(text)
    if match is None or not 0 < int(match[1]) < 65536:
        return None
    return f"{int(match[1])}/{match[2] or 'tcp'}"


def _parse_signal(text: str) -> str | None:
    if text.isascii() and text.isdigit():
        return str(int(text)) if 0 < int(text[:3]) <= 64 and len(text) < 3 else None
    name = text if text.startswith("SIG") else "SIG" + text
    return name if name in _SIGNALS or _REALTIME.match(name) else None


def _absolute(document: Document, node: Node, where: str) -> str:
    """A path as OCI has it: absolute, in text."""
    return "/" + read.image_path(document, node, where).decode()


_EXPOSE: Reader[tuple[str, ...]] = read.list_of(
    partial(
        read.parsed, what="a port", parse=_parse_port, placeholder="",
        hint="write a number up to 65535, with /udp or /sctp if it is not tcp",
    ),
    "ports",
)  # fmt: skip
_STOPSIGNAL: Reader[str] = partial(
    read.parsed, what="a signal", parse=_parse_signal, placeholder="",
    hint="write its name such as SIGTERM, or its number",
)  # fmt: skip


def _config(document: Document, node: Node, where: str) -> Config:
    fields = Fields(document, node, where, CONFIG_KEYS)
    return Config(
        entrypoint=fields.get("entrypoint", read.words_or_none, None),
        cmd=fields.get("cmd", read.words_or_none, None),
        env=fields.get("env", read.read_env, ()),
        user=fields.get("user", read.user, None),
        workdir=fields.get("workdir", _absolute, None),
        labels=tuple(Label(*pair) for pair in fields.get("labels", _LABELS, ())),
        expose=fields.get("expose", _EXPOSE, ()),
        volumes=fields.get("volumes", read.list_of(_absolute, "paths"), ()),
        stopsignal=fields.get("stopsignal", _STOPSIGNAL, None),
        healthcheck=fields.get("healthcheck", _healthcheck, None),
    )


def _label(document: Document, node: Node, where: str) -> str | Command:
    if isinstance(node, Table):
        fields = Fields(document, node, where, ("run",))
        return fields.need("run", read.command, "")
    if isinstance(node, Listing):
        document.error(node.span, "expected text or {run: …}, got a list", where)
        return ""
    return read.any_text(document, node, where)


_LABELS = read.pairs_of(r"[^\s]+", "the name of a label", _label, "leave out spaces")


def _healthcheck(document: Document, node: Node, where: str) -> Healthcheck:
    if isinstance(node, Scalar) and node.text == "none":
        return Healthcheck(None)
    if isinstance(node, Scalar):
        got = "nothing" if node.is_empty else quote(node.text)
        message = f'expected "none" or a mapping, got {got}'
        document.error(node.span, message, where, "a check is written {run: …}")
        return Healthcheck(None)
    fields = Fields(document, node, where, HEALTHCHECK_KEYS)
    return Healthcheck(
        command=fields.need("run", read.command, None),
        interval=fields.get("interval", read.duration, None),
        timeout=fields.get("timeout", read.duration, None),
        start_period=fields.get("start_period", read.duration, None),
        retries=fields.get("retries", read.count(1, 1000), None),
    )


# Tests and outputs


def _parse_limit(text: str) -> int | None:
    return read.parse_size(text[2:].lstrip(" ")) if text.startswith("<=") else None


_LIMIT: Reader[int] = partial(
    read.parsed, what="a limit", parse=_parse_limit, placeholder=0,
    hint='write it as "<= 80MiB"',
)  # fmt: skip


def _tests(document: Document, node: Node, where: str) -> tuple[ImageTest, ...]:
    found = read.list_of(_test, "tests")(document, node, where)
    return tuple(test for test in found if test is not None)


def _test(document: Document, node: Node, where: str) -> ImageTest | None:
    kind = read.kind_in(document, node, where, tuple(TESTS), ("mode",), "a test")
    if kind is None:
        return None
    elsewhere = {"mode": 'it has a meaning only beside "file"'}
    fields = Fields(document, node, where, (kind, *TESTS[kind]), elsewhere=elsewhere)
    position = document.position(node.span)
    if kind == "run":
        return RunTest(position, fields.need(kind, read.command, Command("")))
    if kind == "file":
        path = fields.need(kind, read.image_path, b"")
        return FileTest(position, path, fields.get("mode", read.exact_mode, None))
    return SizeTest(position, fields.need(kind, _LIMIT, 0))


def _output(document: Document, node: Node, where: str) -> Output:
    form = read.kind_in(document, node, where, OUTPUTS, (), "an output")
    position = document.position(node.span)
    if form is None:
        return Output("", b"", position)
    fields = Fields(document, node, where, (form,))
    return Output(form, fields.need(form, read.folder_path, b"."), position)
