"""Values of the API as text for people: 80 columns where the names allow it, no colours.

What is aligned is never clipped: a name that does not fit makes the table wider.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from layerstore.report.text import age, clipped, escaped, shown, size, table

if TYPE_CHECKING:
    from layerstore.api import (
        BuildPlan,
        Change,
        FsckReport,
        GcPlan,
        HistoryStep,
        HostReport,
        ImageSummary,
        Removal,
        Usage,
    )
    from layerstore.formats.entries import Entry

_TYPES = {
    "FILE": "-", "HARDLINK": "h", "SYMLINK": "l", "CHAR": "c", "BLOCK": "b", "DIRECTORY": "d",
    "FIFO": "p", "OPAQUE": "O", "WHITEOUT": "W",
}  # fmt: skip


def images(found: Sequence[ImageSummary], now: float) -> str:
    return table(
        ("NAME", "IMAGE ID", "CREATED", "APPARENT", "STORED"),
        [
            (str(item.ref), item.image_id.short, age(item.created, now), size(item.apparent),
             size(item.stored))
            for item in found
        ],
        right="lllrr",
    )  # fmt: skip


def history(steps: Sequence[HistoryStep], now: float, *, room: int | None = None) -> str:
    """``room``: columns for what created a layer; None is as many as it takes."""
    return table(
        ("LAYER", "CREATED", "ENTRIES", "ADDED", "CREATED BY"),
        [
            (
                step.diff_id.short if step.diff_id is not None else "-",
                age(step.created, now),
                str(step.entries),
                size(step.added),
                clipped(escaped(step.created_by), room) or "-",
            )
            for step in steps
        ],
        right="llrr",
    )


def entry(found: Entry) -> str:
    """A line as of ``tar tv``; ``W``: whiteout, ``O``: opaque directory, ``h``: hard link."""
    kind = _TYPES[found.kind.name]
    if kind in "WO":
        return f"{kind}{'':9} {'':>11} {'':>10} /{shown(found.path)}"
    extent = f"{found.rdev[0]},{found.rdev[1]}" if any(found.rdev) else str(found.size)
    arrow = {"l": " -> ", "h": " = /"}.get(kind, "")
    owner = f"{found.uid}:{found.gid}"
    name = f"/{shown(found.path)}{arrow}{shown(found.link) if arrow else ''}"
    return f"{kind}{permissions(found.mode)} {owner:>11} {extent:>10} {name}"


def permissions(mode: int) -> str:
    """``rwsr-x--T`` of mode bits."""
    letters = ""
    for shift, special, executable, not_executable in (
        (6, 0o4000, "s", "S"), (3, 0o2000, "s", "S"), (0, 0o1000, "t", "T"),
    ):  # fmt: skip
        bits = mode >> shift & 7
        letters += ("r" if bits & 4 else "-") + ("w" if bits & 2 else "-")
        if mode & special:
            letters += executable if bits & 1 else not_executable
        else:
            letters += "x" if bits & 1 else "-"
    return letters


def change(found: Change) -> str:
    return f"{found.kind} {shown(found.path)}"


def build_plan(plan: BuildPlan) -> str:
    """Every step, what becomes of it, and why."""
    stages = list(dict.fromkeys(step.stage for step in plan.steps))
    rows = []
    for step in plan.steps:
        total = sum(other.stage == step.stage for other in plan.steps)
        where = f"{step.index + 1}/{total}"
        name = f"[{escaped(step.stage)} {where}]" if len(stages) > 1 else f"[{where}]"
        action, _, condition = step.action.partition(" if ")
        why = f"if {condition}" if condition else step.reason
        rows.append((name, action, step.title, why))
    runs = f"{plan.runs} of {_count(len(plan.steps), 'step')} to run"
    return table(("STEP", "ACTION", "WHAT", "WHY"), rows) + "\n" + runs if rows else runs


def removal(found: Removal, *, dry_run: bool) -> str:
    would = "would be " if dry_run else ""
    lines = [f"{would}untagged: {ref}" for ref in found.names]
    lines += [f"{would}deleted: {image_id}" for image_id in found.images]
    return "\n".join([*lines, f"{would}freed: {size(found.freed)}"])


def gc_plan(plan: GcPlan, *, dry_run: bool) -> str:
    counts = {
        "image": len(plan.images), "layer": len(plan.layers), "object": len(plan.objects),
        "mountable tree": len(plan.trees), "cache record": len(plan.cache),
    }  # fmt: skip
    gone = ", ".join(_count(count, name) for name, count in counts.items() if count)
    if not gone:
        return "nothing to remove"
    return f"{'would remove' if dry_run else 'removed'} {gone}: {size(plan.freed)}"


def host(report: HostReport) -> str:
    """Every ability, why one is missing, and what to do about it."""
    who = "root" if report.uid == 0 else f"uid {report.uid}"
    controllers = ", ".join(report.controllers) or "none"
    lines = [
        f"Linux {report.kernel}, {who}, cgroups {report.cgroup_layout} ({controllers})",
        f"store in {escaped(str(report.directory))}",
        "",
    ]
    room = max(len(ability.name) for ability in report.abilities)
    for ability in report.abilities:
        mark = "ok" if ability.is_there else "no"
        why = f"  {escaped(ability.why)}" if ability.why else ""
        lines.append(f"{mark:4}{ability.name:{room}}{why}".rstrip())
        if ability.hint:
            lines.append(f"{'':4}{'':{room}}  -> {escaped(ability.hint)}")
    return "\n".join(lines)


def usage(found: Usage, root: Path, now: float) -> str:
    """Where every byte of the store is."""
    named = (1 << len(found.images)) - 1
    together = sum(row.stored for row in found.rows if row.mask & named)
    apart = sum(image.stored for image in found.images)
    saved = f"   saved {100 * (1 - together / apart):.1f} %" if apart else ""
    lines = [
        f"STORE {escaped(str(root))}   on disk {size(found.physical)}   free {size(found.free)}",
        f"{_count(len(found.images), 'image')}   {_count(len(found.containers), 'container')}"
        f"   if stored apart {size(apart)}{saved}",
    ]
    if found.images:
        lines += ["", _image_rows(found, now)]
    if found.containers:
        lines += ["", _container_rows(found, now)]
    classes = [
        f"{name} {size(amount.physical)}"
        for name, amount in found.classes.items()
        if amount.physical or name == "orphans"
    ]
    lines += ["", *_wrapped("by class:", [*classes, f"inodes {found.inodes}"])]
    lines += [f"unreadable: {escaped(text)}" for text in found.unreadable]
    if found.open_transactions:
        lines.append(f"{_count(found.open_transactions, 'transaction')} ran meanwhile")
    lines.append(f"adds up to du: {'yes' if found.adds_up else 'no'}")
    return "\n".join(lines)


def _wrapped(head: str, items: Sequence[str]) -> list[str]:
    """Lines of at most 80 columns, the later ones indented below the first."""
    lines = [head]
    for item in items:
        if len(lines[-1]) + 3 + len(item) > 80:
            lines.append(" " * len(head))
        lines[-1] += f"   {item}"
    return lines


def _image_rows(found: Usage, now: float) -> str:
    rows = [
        (
            ", ".join(map(str, image.names)),
            size(image.apparent),
            size(image.stored),
            size(image.exclusive),
            size(image.shared),
            size(image.freed),
            age(image.created, now),
        )
        for image in found.images
    ]
    head = ("IMAGE", "APPARENT", "STORED", "EXCLUSIVE", "SHARED", "IF REMOVED", "CREATED")
    return table(head, rows, right="lrrrrr")


def _container_rows(found: Usage, now: float) -> str:
    rows = [
        (item.name or item.container_id, item.image_name or "damaged", size(item.upper),
         size(item.physical), age(item.created, now))
        for item in found.containers
    ]  # fmt: skip
    return table(("CONTAINER", "IMAGE", "CHANGES", "ON DISK", "CREATED"), rows, right="llrr")


def check(report: FsckReport, set_aside: Collection[object] = ()) -> str:
    """What is wrong, whom it concerns, and what to do; ``set_aside`` of it has been."""
    lines = []
    for problem in report.problems:
        lines.append(f"{problem.kind}: {escaped(problem.subject)}: {escaped(problem.detail)}")
        if problem.affects:
            lines.append(f"  affects {escaped(', '.join(problem.affects))}")
        if problem in set_aside:
            lines.append("  set aside in quarantine/")
        lines.append(f"  hint: {escaped(problem.hint)}")
    what = ", ".join(
        (_count(report.images, "image"), _count(report.layers, "layer"),
         _count(report.objects, "object"))
    )  # fmt: skip
    how = "" if report.read_data else ", names and sizes alone (--read-data reads contents)"
    found = _count(len(report.problems), "problem") if report.problems else "sound"
    return "\n".join([*lines, f"checked {what}{how}: {found}"])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
