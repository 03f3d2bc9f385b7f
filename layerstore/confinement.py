"""The filter of system calls that a container gets, compiled once for each profile and host."""

from __future__ import annotations

import os
from pathlib import Path

from layerstore.errors import HostError, NotFoundError
from layerstore.kernel import seccomp
from layerstore.names import Digest
from layerstore.store.atomic import replace_file
from layerstore.store.layout import Layout

UNCONFINED = "unconfined"
_DEFAULT = Path(__file__).parent / "data" / "seccomp.json"
_DIGEST_BYTES = 32


def seccomp_program(layout: Layout, profile: str | None, capabilities: frozenset[str]) -> bytes:
    """The cBPF program of a profile: a file's path, None for ours, ``unconfined`` for none at all.

    Raises NotFoundError or FormatError for a profile that cannot be read.
    """
    if profile == UNCONFINED:
        return b""
    try:
        raw = (_DEFAULT if profile is None else Path(profile)).read_bytes()
    except OSError as error:
        raise NotFoundError(
            f"cannot read the seccomp profile {profile!r}: {error.strerror}",
            hint="name a JSON file in docker's format, or unconfined",
        ) from None
    machine = os.uname().machine
    kept = layout.folder("derived") / f"seccomp-{seccomp.cache_key(raw, capabilities, machine)}"
    try:
        found = kept.read_bytes()
    except FileNotFoundError:
        found = b""
    program, digest = found[:-_DIGEST_BYTES], found[-_DIGEST_BYTES:]
    if program and Digest.of(program).raw == digest:
        return program
    from layerstore.formats import seccomp_profile  # 10 ms that only a new profile costs

    parsed = seccomp_profile.parse(raw)
    program = seccomp.compile_filter(parsed, capabilities=capabilities, machine=machine)
    if not program:
        raise HostError("the seccomp profile compiles to nothing", hint="use unconfined for that")
    replace_file(layout, kept, program + Digest.of(program).raw)
    return program
