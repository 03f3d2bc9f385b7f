"""Archives that Python's tarfile writes are read as it was told to write them."""

from __future__ import annotations

import io
import tarfile

from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore.formats.entries import NANOSECOND, Kind
from layerstore.formats.untar import TarReader

_TYPES = {
    Kind.FILE: tarfile.REGTYPE, Kind.HARDLINK: tarfile.LNKTYPE, Kind.SYMLINK: tarfile.SYMTYPE,
    Kind.CHAR: tarfile.CHRTYPE, Kind.BLOCK: tarfile.BLKTYPE, Kind.DIRECTORY: tarfile.DIRTYPE,
    Kind.FIFO: tarfile.FIFOTYPE,
}  # fmt: skip

_letters = st.characters(exclude_characters="\0/", categories=("L", "N", "P", "S", "Z", "Cc"))
_component = (
    st.text(_letters, min_size=1, max_size=60)
    .filter(lambda name: name not in (".", "..") and not name.startswith(".wh."))
    .map(lambda name: name.encode()[:255].decode(errors="ignore"))
)
_paths = st.lists(_component, min_size=1, max_size=6).map("/".join)
_xattrs = st.dictionaries(
    st.text("abc.", min_size=1, max_size=8).map("user.".__add__),
    st.text(_letters, min_size=1, max_size=30),
)


@st.composite
def members(draw: st.DrawFn) -> tuple[tarfile.TarInfo, Kind, bytes, dict[str, str]]:
    kind = draw(st.sampled_from(list(_TYPES)))
    info = tarfile.TarInfo(draw(_paths))
    info.type = _TYPES[kind]
    info.mode = draw(st.integers(0, 0o7777))
    info.uid, info.gid = draw(st.integers(0, 2**32 - 2)), draw(st.integers(0, 2**32 - 2))
    info.mtime = draw(st.integers(-(2**33), 2**40))
    content, xattrs = b"", {}
    if kind is Kind.FILE:
        content = draw(st.binary(max_size=1100))
        info.size = len(content)
        xattrs = draw(_xattrs)
        info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in xattrs.items()}
    elif kind in (Kind.SYMLINK, Kind.HARDLINK):
        info.linkname = draw(_paths)
    elif kind in (Kind.CHAR, Kind.BLOCK):
        info.devmajor, info.devminor = draw(st.integers(1, 4095)), draw(st.integers(0, 2**20 - 1))
    return info, kind, content, xattrs


@settings(deadline=None, max_examples=150)
@given(
    wanted=st.lists(members(), max_size=8),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_the_reader_says_what_tarfile_was_told(
    wanted: list[tuple[tarfile.TarInfo, Kind, bytes, dict[str, str]]], form: int
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8") as archive:
        for info, _, content, _ in wanted:
            archive.addfile(info, io.BytesIO(content))
    raw = out.getvalue()
    reader = TarReader(iter([raw]), where="the archive")
    pieces = []
    for member, (info, kind, content, xattrs) in zip(reader, wanted, strict=True):
        entry = member.entry
        found = b"".join(reader.content())
        pieces += [member.raw, found]
        assert entry.kind is kind
        assert entry.path == info.name.encode()
        assert found == content
        assert (entry.size, entry.mode, entry.uid, entry.gid, entry.mtime_ns) == (
            len(content), info.mode, info.uid, info.gid, info.mtime * NANOSECOND,
        )  # fmt: skip
        assert entry.link == info.linkname.encode()
        if kind in (Kind.CHAR, Kind.BLOCK):
            assert entry.rdev == (info.devmajor, info.devminor)
        if form == tarfile.PAX_FORMAT:
            assert entry.xattrs == tuple(
                sorted((key.encode(), value.encode()) for key, value in xattrs.items())
            )
    assert b"".join([*pieces, *reader.trailer()]) == raw
