"""The steps of a stage: one verb each, read by that verb's own schema."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from layerstore.speclang import fields as read
from layerstore.speclang.document import Document, Listing, Node, Scalar, Table, quote
from layerstore.speclang.fields import Fields, Reader, below
from layerstore.speclang.model import (
    KEEP,
    NORMAL,
    ROOT,
    AttrsStep,
    BindMount,
    CacheMount,
    Change,
    Command,
    CopyStep,
    ExtractStep,
    MkdirStep,
    Mode,
    Mount,
    Pairs,
    Position,
    RemoveStep,
    RunStep,
    SecretMount,
    Source,
    SshMount,
    Step,
    SymlinkStep,
    TmpfsMount,
    UseStep,
    WriteStep,
)

STEP_KEYS = ("name", "layer")
RUN_KEYS = ("env", "mounts", "network", "user", "workdir")
"""What may stand beside ``run`` besides."""
VERBS: dict[str, tuple[str, ...]] = {
    "run": (),
    "copy": ("src", "to", "from", "owner", "mode"),
    "write": ("to", "text", "owner", "mode"),
    "mkdir": ("path", "owner", "mode"),
    "symlink": ("path", "target"),
    "remove": (),
    "extract": ("src", "to"),
    "attrs": ("path", "owner", "mode", "xattrs", "mtime", "recursive"),
    "use": ("file", "vars"),
}
"""The verbs, and the keys inside of the mapping that each takes."""
MOUNTS = ("bind", "cache", "secret", "ssh", "tmpfs")

_NAME = read.matching(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", "a name", "use letters, digits and . _ -"
)


class Scope(NamedTuple):
    """What a step may refer to: the stages before its own, by name, and those that are not."""

    earlier: tuple[str, ...] = ()
    later: tuple[str, ...] = ()

    def stage(self, document: Document, node: Node, where: str) -> str:
        return read.parsed(
            document,
            node,
            where,
            what="an earlier stage",
            parse=lambda name: name if name in self.earlier else None,
            placeholder="",
            hint=self._stage_hint,
        )

    def _stage_hint(self, name: str) -> str:
        if name in self.later[:1]:
            return "a stage cannot refer to itself"
        if name in self.later:
            return "a stage can refer only to those above it; move that one up"
        return read.did_you_mean(name, self.earlier) or "there is no stage above this one"


def read_steps(document: Document, node: Node, where: str, scope: Scope) -> tuple[Step, ...]:
    steps: list[Step] = []
    last_seen: dict[str, int] = {}
    for index, item in enumerate(read.items_of(document, node, where, "steps")):
        step = _step(document, item, f"{where}[{index}]", scope)
        if step is None:
            continue
        if step.layer is not None:
            seen = last_seen.get(step.layer)
            if seen is not None and seen != len(steps) - 1:
                document.error(
                    item.span,
                    f"the layer {quote(step.layer)} has ended before this step",
                    f"{where}[{index}]",
                    "steps of one layer stand one after the other",
                )
            last_seen[step.layer] = len(steps)
        steps.append(step)
    return tuple(steps)


def _step(document: Document, node: Node, where: str, scope: Scope) -> Step | None:
    verb = read.kind_in(document, node, where, tuple(VERBS), STEP_KEYS + RUN_KEYS, "a step")
    if verb is None:
        return None
    beside = STEP_KEYS + (RUN_KEYS if verb == "run" else ())
    if _is_unindented(document, node, where, verb, beside):
        return None
    elsewhere = dict.fromkeys(RUN_KEYS, 'it has a meaning only beside "run"')
    elsewhere |= dict.fromkeys(VERBS[verb], f'put it inside "{verb}"')
    fields = Fields(document, node, where, (verb, *beside), elsewhere=elsewhere)
    position = document.position(node.span)
    value, inside = fields.node(verb), below(where, verb)
    step: Step
    if verb == "run":
        step = _run(fields, position)
    elif verb == "copy":
        step = _copy(document, value, inside, position, scope)
    else:
        step = _READERS[verb](document, value, inside, position)
    name = fields.get("name", read.one_line, None)
    return replace(step, name=name, layer=fields.get("layer", _NAME, None))


def _is_unindented(
    document: Document, node: Node, where: str, verb: str, beside: tuple[str, ...]
) -> bool:
    """Whether the verb's keys stand beside it for want of indentation; that is one mistake."""
    if not isinstance(node, Table):
        return False
    values = {key.text: value for key, value in node.pairs}
    astray = [key for key in values if key in VERBS[verb] and key not in beside]
    value = values[verb]
    if not astray or not isinstance(value, Scalar) or not value.is_empty:
        return False
    key = next(key for key, _ in node.pairs if key.text == verb)
    names = ", ".join(quote(name) for name in astray)
    message = f"{quote(verb)} is empty, and {names} beside it"
    document.error(key.span, message, where, f"indent what belongs to {quote(verb)} below it")
    return True


def _inside(document: Document, node: Node, where: str, verb: str) -> Fields:
    elsewhere = dict.fromkeys(STEP_KEYS, f'put it beside "{verb}"')
    return Fields(document, node, where, VERBS[verb], elsewhere=elsewhere)


# run


def _run(fields: Fields, position: Position) -> RunStep:
    return RunStep(
        position=position,
        command=fields.need("run", read.command, Command("")),
        env=fields.get("env", read.read_env, ()),
        mounts=fields.get("mounts", _mounts, ()),
        network=fields.get("network", read.choice("a network", ("none", "host")), "none"),
        user=fields.get("user", read.user, None),
        workdir=fields.get("workdir", read.image_path, None),
    )


def _mounts(document: Document, node: Node, where: str) -> tuple[Mount, ...]:
    mounts = read.list_of(_mount, "mounts")(document, node, where)
    seen: set[bytes] = set()
    for index, mount in enumerate(mounts):
        if mount is not None and mount.to and mount.to in seen and isinstance(node, Listing):
            message = "a second mount with the same target"
            document.error(node.items[index].span, message, f"{where}[{index}]", 'change its "to"')
        if mount is not None:
            seen.add(mount.to)
    return tuple(mount for mount in mounts if mount is not None)


def _mount(document: Document, node: Node, where: str) -> Mount | None:
    kind = read.kind_in(document, node, where, MOUNTS, ("to",), "a mount")
    if kind is None:
        return None
    fields = Fields(document, node, where, (kind, "to"))
    to = fields.need("to", read.image_path_below_root, b"")
    position = document.position(node.span)
    if kind == "bind":
        return BindMount(to, position, fields.need(kind, read.folder_path, b"."))
    if kind == "tmpfs":
        return TmpfsMount(to, position, fields.need(kind, read.size, 0))
    name = fields.need(kind, _NAME, "")
    if kind == "cache":
        return CacheMount(to, position, name)
    return SecretMount(to, position, name) if kind == "secret" else SshMount(to, position, name)


# copy and extract

_WILDCARD = re.compile(r"[*?]")


def _target(text: str) -> tuple[bytes, bool] | None:
    path = read.parse_image_path(text)
    return None if path is None else (path, text.endswith("/"))


_TARGET: Reader[tuple[bytes, bool]] = partial(
    read.parsed,
    what="an absolute path of the image",
    parse=_target,
    placeholder=(b"", True),
    hint=read.image_path_hint,
)


def _source(parse: Callable[[str], bytes | None], text: str) -> Source | None:
    path = parse(text)
    if path is None or _WILDCARD.search(text):
        return None
    return Source(path, contents=text.endswith("/") or path in (b"", b"."))


def _source_hint(otherwise: Callable[[str], str], text: str) -> str:
    if _WILDCARD.search(text):
        return "wildcards have no meaning; name the directory, and leave files out with ignore"
    return otherwise(text)


_FOLDER_SOURCE: Reader[Source] = partial(
    read.parsed,
    what="a path in the spec's folder",
    parse=partial(_source, read.parse_folder_path),
    placeholder=Source(b"."),
    hint=partial(_source_hint, read.folder_path_hint),
)
_STAGE_SOURCE: Reader[Source] = partial(
    read.parsed,
    what="an absolute path of the stage",
    parse=partial(_source, read.parse_image_path),
    placeholder=Source(b""),
    hint=partial(_source_hint, read.image_path_hint),
)


def _mode_over(base: tuple[Change, ...]) -> Reader[Mode]:
    """A reader of a mode whose symbolic changes come after those of the base."""

    def parse(text: str) -> Mode | None:
        mode = KEEP if text == "keep" else Mode.parse(text)
        return replace(mode, changes=base + mode.changes) if mode and mode.changes else mode

    return partial(read.parsed, what="a mode", parse=parse, placeholder=KEEP, hint=read.mode_hint)


# The umask under which a file of the folder was made must not matter, unless its mode is kept.
_FOLDER_MODE = _mode_over(NORMAL.changes)
_STAGE_MODE = _mode_over(())


def _copy(document: Document, node: Node, where: str, position: Position, scope: Scope) -> CopyStep:
    fields = _inside(document, node, where, "copy")
    is_of_stage = "from" in fields
    one = _STAGE_SOURCE if is_of_stage else _FOLDER_SOURCE
    sources = fields.need("src", read.one_or_more(one, "a path", "paths"), ())
    to, into = fields.need("to", _TARGET, (b"", True))
    if len(sources) > 1 and not into:
        document.error(
            fields.node("to").span,
            "several sources and one new name",
            below(where, "to"),
            'end "to" with / to put them into that directory',
        )
    return CopyStep(
        position=position,
        sources=sources,
        to=to,
        into=into or not to,
        stage=fields.get("from", scope.stage, None),
        owner=fields.get("owner", read.owner, None if is_of_stage else ROOT),
        mode=fields.get("mode", _STAGE_MODE, KEEP)
        if is_of_stage
        else fields.get("mode", _FOLDER_MODE, NORMAL),
    )


def _extract(document: Document, node: Node, where: str, position: Position) -> ExtractStep:
    fields = _inside(document, node, where, "extract")
    return ExtractStep(
        position=position,
        source=fields.need("src", read.folder_path, b"."),
        to=fields.need("to", read.image_path, b""),
    )


# write, mkdir, symlink, remove, attrs


def _file_path(text: str) -> bytes | None:
    return None if text.endswith("/") else read.parse_image_path(text) or None


_FILE: Reader[bytes] = partial(
    read.parsed,
    what="the absolute path of a file",
    parse=_file_path,
    placeholder=b"",
    hint=lambda text: (
        "name the file after the last /" if text.endswith("/") else read.image_path_hint(text)
    ),
)
_TARGET_OF_LINK = read.matching(r"[^\r\n]{1,4095}", "the target of a link", "write one path")
_PATHS = read.one_or_more(read.image_path_below_root, "a path", "paths")


def _write(document: Document, node: Node, where: str, position: Position) -> WriteStep:
    fields = _inside(document, node, where, "write")
    return WriteStep(
        position=position,
        to=fields.need("to", _FILE, b""),
        text=fields.need("text", read.any_text, ""),
        owner=fields.get("owner", read.owner, ROOT),
        mode=fields.get("mode", read.mode, NORMAL),
    )


def _mkdir(document: Document, node: Node, where: str, position: Position) -> MkdirStep:
    owner, mode = None, None
    if isinstance(node, Scalar) and not node.is_empty:
        path = read.image_path_below_root(document, node, where)
    else:
        fields = _inside(document, node, where, "mkdir")
        path = fields.need("path", read.image_path_below_root, b"")
        owner = fields.get("owner", read.owner, None)
        mode = fields.get("mode", read.mode, None)
    return MkdirStep(
        position=position,
        path=path,
        owner=owner,
        mode=mode,
    )


def _symlink(document: Document, node: Node, where: str, position: Position) -> SymlinkStep:
    fields = _inside(document, node, where, "symlink")
    return SymlinkStep(
        position=position,
        path=fields.need("path", _FILE, b""),
        target=fields.need("target", _TARGET_OF_LINK, "").encode(),
    )


def _remove(document: Document, node: Node, where: str, position: Position) -> RemoveStep:
    paths = _PATHS(document, node, where)
    return RemoveStep(position=position, paths=paths)


def _attrs(document: Document, node: Node, where: str, position: Position) -> AttrsStep:
    fields = _inside(document, node, where, "attrs")
    paths = fields.need("path", _PATHS, ())
    if not fields.is_broken and not any(key in fields for key in _ATTRIBUTES):
        message = f"nothing to change: none of {', '.join(_ATTRIBUTES)}"
        document.error(fields.span, message, where)
    return AttrsStep(
        position=position,
        paths=paths,
        owner=fields.get("owner", read.owner, None),
        mode=fields.get("mode", read.mode, None),
        xattrs=fields.get("xattrs", _xattrs, ()),
        mtime=fields.get("mtime", read.time, None),
        recursive=fields.get("recursive", read.truth, False),
    )


_ATTRIBUTES = ("owner", "mode", "xattrs", "mtime")
_XATTR_VALUE: Reader[bytes] = partial(
    read.parsed,
    what="the value of an xattr",
    parse=lambda text: _xattr_value(text),
    placeholder=b"",
    hint="write text, or 0x and pairs of hex digits",
)
_XATTRS = read.pairs_of(
    r"(user|trusted|security|system)\.[^\s]{1,240}",
    "the name of an xattr",
    _XATTR_VALUE,
    "begin it with user., security. or trusted.",
)


def _xattr_value(text: str) -> bytes | None:
    if not text.startswith("0x"):
        return text.encode()
    try:
        return bytes.fromhex(text[2:])
    except ValueError:
        return None


def _xattrs(document: Document, node: Node, where: str) -> tuple[tuple[bytes, bytes], ...]:
    """Sorted by name, as entries have them."""
    return tuple(sorted((name.encode(), value) for name, value in _XATTRS(document, node, where)))


# use

_VARIABLES = read.pairs_of(
    r"[A-Za-z_][A-Za-z0-9_]*", "the name of a variable", read.any_text, "use letters, digits and _"
)


def _use(document: Document, node: Node, where: str, position: Position) -> UseStep:
    file = b"."
    variables: Pairs = ()
    if isinstance(node, Scalar) and not node.is_empty:
        file = read.folder_path(document, node, where)
    else:
        fields = _inside(document, node, where, "use")
        file = fields.need("file", read.folder_path, b".")
        variables = fields.get("vars", _VARIABLES, ())
    return UseStep(position=position, file=file, variables=variables)


_READERS: dict[str, Callable[[Document, Node, str, Position], Step]] = {
    "write": _write,
    "mkdir": _mkdir,
    "symlink": _symlink,
    "remove": _remove,
    "extract": _extract,
    "attrs": _attrs,
    "use": _use,
}
