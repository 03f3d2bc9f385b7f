"""What the fuzzer calls: each target takes any bytes, and only a declared error may leave it.

``TARGETS`` names them; ``seeds`` gives what to start from. Errors of layerstore are what a target
is for, so they are swallowed; anything else, a wrong answer included, is a finding.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path

import hostile
import zstandard

from layerstore.errors import FormatError, LayerstoreError
from layerstore.formats import entries, oci, tar
from layerstore.formats.entries import Entry, Kind
from layerstore.formats.streams import Limits, decompressed
from layerstore.formats.tree import Tree, apply
from layerstore.formats.untar import TarReader
from layerstore.names import Digest
from layerstore.spec import SpecError, parse

LIMITS = Limits(entries=2000, total_bytes=8 << 20, file_bytes=1 << 30, metadata_bytes=4 << 20)
_DIGEST = Digest.of(b"")


def read_tar(raw: bytes) -> None:
    """The reader gives every byte back, and its entries survive a canonical tar of them."""
    try:
        found, again = _members(raw)
    except FormatError as error:
        if "the archive" not in error.brief:
            raise AssertionError("an error that does not name the archive") from error
        return
    if again != raw:
        raise AssertionError("the archive's bytes are not what the reader gave")
    if entries.parse(entries.emit(found), where="") != found:
        raise AssertionError("the entries file does not say what was read")
    _check_names(found)
    _check_canonical(found)
    try:
        tree = apply(Tree(), found)
    except FormatError:
        return
    for path, node in tree.walk():
        if (
            any(part in (b"", b".", b"..") for part in path.split(b"/"))
            or node.kind is Kind.HARDLINK
        ):
            raise AssertionError(f"the tree holds {path!r}, {node}")


def _members(raw: bytes) -> tuple[list[Entry], bytes]:
    reader = TarReader(iter([raw]), where="the archive", limits=LIMITS)
    found, pieces = [], []
    for member in reader:
        pieces.append(member.raw)
        pieces += reader.content()
        is_file = member.entry.kind is Kind.FILE and member.entry.size
        found.append(member.entry._replace(digest=_DIGEST) if is_file else member.entry)
    pieces += reader.trailer()
    return found, b"".join(pieces)


def _check_names(found: list[Entry]) -> None:
    for entry in found:
        names = [entry.path] + ([entry.link] if entry.kind is Kind.HARDLINK else [])
        for name in names:
            parts = name.split(b"/") if name else []
            if (
                any(part in (b"", b".", b"..") or len(part) > 255 for part in parts)
                or b"\0" in name
            ):
                raise AssertionError(f"{name!r} is no name inside the root")


def _check_canonical(found: list[Entry]) -> None:
    """A layer of ours can always be read again, and says the same."""
    written = []
    for piece in tar.pieces(found):
        if piece.length > 1 << 20:
            return
        written.append(piece.raw or bytes(piece.length))
    read, _ = _members(b"".join(written))
    ours = [entry._replace(digest=None) for entry in read]
    if ours != [entry._replace(digest=None, link=_link(entry)) for entry in found]:
        raise AssertionError("the canonical tar reads otherwise")


def _link(entry: Entry) -> bytes:
    return entry.link if entry.kind in (Kind.SYMLINK, Kind.HARDLINK) else b""


def read_compressed(raw: bytes) -> None:
    """A stream ends or is refused; no chunk is larger than a chunk may be."""
    try:
        for chunk in decompressed(io.BytesIO(raw), limits=LIMITS, where="the stream"):
            if not 0 < len(chunk) <= 1 << 20:
                raise AssertionError(f"a chunk of {len(chunk)} bytes")
    except FormatError as error:
        if "the stream" not in error.brief:
            raise AssertionError("an error that does not name the stream") from error


_READERS: tuple[Callable[..., object], ...] = (
    oci.parse_config, oci.parse_manifest, oci.parse_index, oci.parse_archive_manifest,
    oci.check_layout,
)  # fmt: skip


def read_oci(raw: bytes) -> None:
    """What a reader accepts can be written again."""
    for reader in _READERS:
        try:
            found = reader(raw, where="the document")
        except FormatError as error:
            if "the document" not in error.brief:
                raise AssertionError("an error that does not name the document") from error
            continue
        if isinstance(found, oci.ImageConfig):
            oci.emit_json(oci.run_config_json(found.run))
            str(found.platform).encode()
        elif isinstance(found, oci.Manifest):
            oci.emit_manifest(found)
        elif isinstance(found, tuple) and all(isinstance(item, oci.Descriptor) for item in found):
            oci.emit_index(found)
        elif isinstance(found, tuple):
            oci.emit_archive_manifest(found)


def read_spec(raw: bytes) -> None:
    """A spec or its mistakes, which can be printed."""
    try:
        parse(raw, filename="spec.yaml")
    except SpecError as error:
        if not error.diagnostics:
            raise AssertionError("a refusal without a reason") from error
        for found in error.diagnostics:
            found.render("spec.yaml").encode()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "tar": read_tar,
    "compressed": read_compressed,
    "oci": read_oci,
    "spec": read_spec,
}


def run(target: str, raw: bytes) -> None:
    """One execution. Raises whatever no caller is told of."""
    try:
        TARGETS[target](raw)
    except LayerstoreError as error:
        raise AssertionError(f"{type(error).__name__} is not declared here: {error}") from error


def mend_checksums(raw: bytearray) -> None:
    """Every header that a reader would come to has a right checksum, as far as sizes are octal."""
    at = 0
    while at + hostile.BLOCK <= len(raw):
        block = raw[at : at + hostile.BLOCK]
        if any(block):
            block[148:156] = b" " * 8
            raw[at + 148 : at + 156] = b"%06o\0 " % sum(block)
        digits = bytes(block[124:136]).strip(b" \0")
        size = int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else 0
        at += hostile.BLOCK + (size + hostile.BLOCK - 1) // hostile.BLOCK * hostile.BLOCK


def seeds(target: str) -> Iterator[bytes]:
    """Small inputs that reach far."""
    if target == "tar":
        yield from (raw for _, raw in hostile.tars() if len(raw) <= 8192)
    elif target == "compressed":
        raw = hostile.file(b"f", b"hello" * 50) + hostile.END
        yield from (raw, gzip.compress(raw, mtime=0), lzma.compress(raw))
        yield zstandard.ZstdCompressor(write_checksum=True).compress(raw)
        yield gzip.compress(b"", mtime=0) * 3 + gzip.compress(raw[:99], mtime=0)
        yield lzma.compress(raw) + bytes(4) + lzma.compress(b"")
        yield b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstandard.ZstdCompressor().compress(raw)
    elif target == "oci":
        yield from (json.dumps(document).encode() for document in _documents())
    else:
        root = Path(__file__).parents[1]
        for path in sorted((root / "tests/golden/spec").glob("*.yaml")):
            yield path.read_bytes()
        for path in sorted((root / "specs").rglob("*.yaml")):
            yield path.read_bytes()


def _documents() -> Iterator[object]:
    digest = "sha256:" + "a" * 64
    blob = {"mediaType": oci.LAYER_TYPE, "digest": digest, "size": 3, "annotations": {"a": "b"}}
    run_config: dict[str, object] = {
        "User": "a:b", "Env": ["A=b"], "Cmd": ["x"], "Entrypoint": None, "Labels": {"a": "b"},
        "Volumes": {"/v": {}}, "ExposedPorts": {"80/tcp": {}}, "WorkingDir": "/", "StopSignal": "9",
    }  # fmt: skip
    yield {
        "os": "linux", "architecture": "arm", "variant": "v7", "config": run_config, "created": "x",
        "rootfs": {"type": "layers", "diff_ids": [digest]}, "history": [{"created_by": "x"}],
    }  # fmt: skip
    yield {"schemaVersion": 2, "config": blob, "layers": [blob, blob]}
    platform = {"os": "linux", "architecture": "amd64", "variant": "\ud800"}
    yield {"schemaVersion": 2, "manifests": [blob | {"platform": platform}]}
    yield [{"Config": "a.json", "RepoTags": ["a:b"], "Layers": ["b/layer.tar"]}]
    yield {"imageLayoutVersion": "1.0.0"}
