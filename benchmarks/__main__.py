"""Measures layerstore and its peers side by side, and prints one table.

As root everything happens in a mount namespace of its own, so that no mount outlives it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

from benchmarks import building, changing, composing, harness, importing, keeping, launching, peers
from benchmarks.harness import Row, Scenario, Unavailable
from benchmarks.places import SCRATCH, World, check

BENCHMARKS: dict[str, Callable[[World], Generator[Scenario, None, None]]] = {
    "launch": launching.launch,
    "import": importing.imports,
    "changes": changing.changes,
    "compose": composing.compose,
    "build": building.build,
    "storesize": keeping.storesize,
    "upkeep": keeping.upkeep,
}


_APART = "LAYERSTORE_BENCHMARKS_APART"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="*", help="benchmarks to run; all of them by default")
    parser.add_argument("--list", action="store_true", help="list the benchmarks, run none")
    parser.add_argument("--rounds", type=int, metavar="N", help="at most N rounds of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    given = parser.parse_args(words)
    if given.list:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:10} {(benchmark.__doc__ or '').strip()}")
        return 0
    if unknown := set(given.name) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; see --list")
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds needs a number of at least 1")
    if os.geteuid() == 0 and _APART not in os.environ:
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m"]
        os.environ[_APART] = "1"
        os.execvp("unshare", [*command, "benchmarks", *(sys.argv[1:] if words is None else words)])
    return _run(given.name or list(BENCHMARKS), given.rounds, given.json)


def _run(names: list[str], rounds: int | None, target: Path | None) -> int:
    began = time.monotonic()
    rows: list[Row] = []
    peers.hide_hybrid_cgroups()
    with World() as world:
        facts = _facts(world)
        for name in names:
            rows += _rows(name, world, rounds)
    facts.append(f"{time.monotonic() - began:.0f} seconds in all; inputs stay in {world.cache}")
    print("\n".join(f"- {fact}" for fact in facts), end="\n\n")
    print(harness.table(rows), end="")
    if target is not None:
        found = {"facts": facts, "rows": [harness.as_json(row) for row in rows]}
        target.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _rows(name: str, world: World, rounds: int | None) -> list[Row]:
    rows: list[Row] = []
    with closing(BENCHMARKS[name](world)) as scenarios:
        try:
            for scenario in scenarios:
                measured = harness.run(scenario, rounds=rounds, sleep=time.sleep)
                found = harness.rows_of(name, scenario, measured)
                rows += found
                for row in found:
                    _progress(row)
        except Unavailable as error:
            rows.append(Row(name, "", "layerstore", "s", None, None, 0, None, note=str(error)))
            _progress(rows[-1])
    return rows


def _progress(row: Row) -> None:
    value = row.note if row.median is None else harness.shown(row.median, row.unit)
    print(f"{row.benchmark}: {row.case}: {row.who}: {value} {row.verdict}", file=sys.stderr)


def _facts(world: World) -> list[str]:
    load = os.getloadavg()[0]
    scratch = check(["findmnt", "-n", "-o", "FSTYPE", "-T", str(SCRATCH)])
    installed = check([str(world.installed() / "python"), "-c", "import sys; print(sys.version)"])
    return [
        time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        f"Linux {platform.release()}, {platform.machine()}, {os.cpu_count()} CPUs, load {load:.1f}"
        " at the start",
        f"stores on fresh ext4 file systems, each a file on a loop device, the files on {scratch}",
        f"Python {installed.split()[0]}; layerstore is installed there, not editable",
        *peers.versions(),
    ]


if __name__ == "__main__":
    sys.exit(main())
