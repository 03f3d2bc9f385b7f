"""Measurements side by side: rounds in turn, medians, ratios and verdicts. No clock, no disk.

A scenario has contenders, and the first of them is ours. In every round each of them measures once,
and each round starts with another one, so that whatever drifts on the machine drifts for all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

OURS = "layerstore"


class Unavailable(Exception):
    """A contender cannot take part; the message says why."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Who is measured. One call is one round and gives a value for each case."""

    name: str
    measure: Callable[[], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Target:
    """Our median is at most ``limit``, or with ``versus`` that many times that peer's median."""

    case: str
    limit: float
    versus: str | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is measured together, ours first."""

    contenders: Sequence[Contender]
    targets: Sequence[Target] = ()
    rounds: int = 5
    """As many as a full run needs; fewer may be asked for, never more."""
    warmups: int = 0
    """Rounds before those, of which nothing is kept."""
    gap: float = 0.0
    """Seconds of idleness before each measurement."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Of a case: ``s`` if not given, ``B`` for bytes."""
    before_round: Callable[[int], None] = lambda number: None


@dataclass(frozen=True, slots=True)
class Measured:
    """What the contenders of a scenario measured: by case, then by contender."""

    samples: Mapping[str, Mapping[str, Sequence[float]]]
    missing: Mapping[str, str]
    """Why a contender has no samples."""


def run(scenario: Scenario, *, rounds: int | None, sleep: Callable[[float], None]) -> Measured:
    """All samples. A contender that is unavailable once is left out from then on."""
    samples: dict[str, dict[str, list[float]]] = {}
    missing: dict[str, str] = {}
    wanted = scenario.rounds if rounds is None else min(rounds, scenario.rounds)
    for number in range(scenario.warmups + wanted):
        scenario.before_round(number)
        for contender in turned(scenario.contenders, number):
            if contender.name in missing:
                continue
            if scenario.gap:
                sleep(scenario.gap)
            try:
                values = contender.measure()
            except Unavailable as error:
                missing[contender.name] = str(error)
                continue
            if number >= scenario.warmups:
                for case, value in values.items():
                    samples.setdefault(case, {}).setdefault(contender.name, []).append(value)
    return Measured(samples, missing)


def turned(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """The order of a round: everyone is first once, then again."""
    start = number % len(contenders)
    return [*contenders[start:], *contenders[:start]]


@dataclass(frozen=True, slots=True)
class Row:
    """One contender in one case."""

    benchmark: str
    case: str
    who: str
    unit: str
    median: float | None
    minimum: float | None
    rounds: int
    ratio: float | None
    """Our median by this peer's; None in our own row."""
    limit: float | None = None
    """A target that is judged in this row: of the ratio, or in our own row of the median."""
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.limit is None:
            return ""
        value = self.median if self.who == OURS else self.ratio
        if value is None:
            return "not judged"
        return "met" if value <= self.limit else "MISSED"


# Any: JSON.
def as_json(row: Row) -> dict[str, Any]:
    return asdict(row) | {"verdict": row.verdict}


def rows_of(benchmark: str, scenario: Scenario, measured: Measured) -> list[Row]:
    """A row for each case and contender, in the order in which they are given."""
    names = [contender.name for contender in scenario.contenders]
    limits = {(target.case, target.versus or names[0]): target.limit for target in scenario.targets}
    rows = []
    for case, by_name in measured.samples.items():
        ours = by_name.get(names[0])
        for name in names:
            samples = by_name.get(name)
            why_not = measured.missing.get(name, "")
            if not samples and not (why_not and (case, name) in limits) and name != names[0]:
                continue
            median = statistics.median(samples) if samples else None
            ratio = None
            if name != names[0] and ours and median:
                ratio = statistics.median(ours) / median
            rows.append(
                Row(
                    benchmark,
                    case,
                    name,
                    scenario.units.get(case, "s"),
                    median,
                    min(samples) if samples else None,
                    len(samples or ()),
                    ratio,
                    limits.get((case, name)),
                    "" if samples else why_not,
                )
            )
    if not measured.samples:
        rows = [
            Row(benchmark, "", name, "s", None, None, 0, None, note=why)
            for name, why in measured.missing.items()
        ]
    return rows


# -- the table -----------------------------------------------------------------------------------

_HEAD = ("benchmark", "case", "who", "median", "min", "n", "ours ÷ it", "target", "")


def table(rows: Sequence[Row]) -> str:
    """A Markdown table that is also easy to read as it stands."""
    cells = [_HEAD, *(_cells(row) for row in _without_repeats(rows))]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD))]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def _without_repeats(rows: Sequence[Row]) -> list[tuple[Row, bool, bool]]:
    """With each row, whether its benchmark and its case are the first of their kind."""
    found = []
    before: Row | None = None
    for row in rows:
        new = before is None or before.benchmark != row.benchmark
        found.append((row, new, new or before is None or before.case != row.case))
        before = row
    return found


def _cells(item: tuple[Row, bool, bool]) -> tuple[str, ...]:
    row, is_new, is_other = item
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    if row.limit is None:
        target = ""
    elif row.who == OURS:
        target = f"≤ {shown(row.limit, row.unit)}"
    else:
        target = f"≤ {row.limit:g} ×"
    return (
        row.benchmark if is_new else "",
        row.case if is_other else "",
        row.who,
        row.note if row.median is None else shown(row.median, row.unit),
        "" if row.minimum is None else shown(row.minimum, row.unit),
        str(row.rounds or ""),
        ratio,
        target,
        row.verdict,
    )


def shown(value: float, unit: str) -> str:
    """Three digits that count, in a unit that a human would take."""
    steps = (
        ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
        if unit == "s"
        else ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
    )
    for size, name in steps:
        if abs(value) >= size * 0.9995:
            return f"{_three_digits(value / size)} {name}"
    return f"{_three_digits(value / steps[-1][0])} {steps[-1][1]}"


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
