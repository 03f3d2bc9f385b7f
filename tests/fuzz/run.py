"""Fuzzes one target with atheris (libFuzzer): ``python tests/fuzz/run.py tar -max_total_time=600``.

Everything after the target's name goes to libFuzzer. The corpus grows in ``--corpus DIR``, or in
a directory that is gone afterwards. A finding is written to ``crash-…`` in the working directory.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped] # it has no stubs

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["layerstore", "yaml"]):
    import fuzz_targets as targets


def mutated_tar(raw: bytes, max_size: int, seed: int) -> bytes:
    """A mutant whose headers mostly have a right checksum: else none would be read any further."""
    mutant = bytearray(atheris.Mutate(raw, max_size))
    if seed % 8:
        targets.mend_checksums(mutant)
    return bytes(mutant)


def main(target: str, arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch)
        if arguments[:1] == ["--corpus"]:
            corpus = Path(arguments[1])
            corpus.mkdir(parents=True, exist_ok=True)
            arguments = arguments[2:]
        # A file, as a finding is, is tried alone.
        if not any(Path(argument).is_file() for argument in arguments):
            arguments = [*arguments, str(corpus)]
            for number, seed in enumerate(targets.seeds(target)):
                (corpus / f"seed-{number}").write_bytes(seed)
        options = [sys.argv[0], "-max_len=16384", "-timeout=20", *arguments]
        mutator = {"custom_mutator": mutated_tar} if target == "tar" else {}
        atheris.Setup(options, lambda raw: targets.run(target, raw), **mutator)
        atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in targets.TARGETS:
        main(sys.argv[1], sys.argv[2:])
    else:
        sys.exit(f"usage: run.py {'|'.join(targets.TARGETS)} [--corpus DIR] [libFuzzer options]")
