"""Values of the API as JSON documents, and progress events as lines of JSON.

Sizes are integer bytes, times RFC 3339, digests ``sha256:…``. A path or text that is not UTF-8 is
there with its bytes escaped, and beside it, with ``_b64`` at the end of its name, exactly.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from layerstore.errors import LayerstoreError
from layerstore.events import Event
from layerstore.report.text import timestamp

if TYPE_CHECKING:
    from layerstore.api import (
        BuildPlan,
        Change,
        GcPlan,
        HistoryStep,
        HostReport,
        ImageSummary,
        Removal,
    )
    from layerstore.formats.entries import Entry

Json = dict[str, Any]  # Any: JSON

_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")


def event_line(event: Event) -> str:
    """``{"event": "step_started", …}``, and the event's fields."""
    kind = _CAPITAL.sub("_", type(event).__name__.rstrip("_")).lower()
    document: Json = {"event": kind}
    for field in fields(event):
        value = getattr(event, field.name)
        document.update(
            _text(field.name, value) if isinstance(value, bytes) else {field.name: value}
        )
    return json.dumps(document)


def error_line(error: LayerstoreError) -> str:
    """The last line of a command that failed."""
    document = {
        "event": "error",
        "brief": error.brief,
        "details": error.details,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
    return json.dumps(document)


def _text(key: str, raw: bytes) -> Json:
    try:
        return {key: raw.decode()}
    except UnicodeDecodeError:
        return {
            key: raw.decode("utf-8", "backslashreplace"),
            f"{key}_b64": b64encode(raw).decode(),
        }


def image(summary: ImageSummary) -> Json:
    return {
        "name": str(summary.ref),
        "image_id": summary.image_id,
        "chain_id": summary.chain_id,
        "created": summary.created,
        "apparent": summary.apparent,
        "stored": summary.stored,
    }


def history_step(step: HistoryStep) -> Json:
    return {
        "created_by": step.created_by,
        "created": step.created,
        "diff_id": step.diff_id,
        "entries": step.entries,
        "added": step.added,
    }


def entry(found: Entry) -> Json:
    """An entry of a layer, without what it does not have."""
    document = _text("path", b"/" + found.path) | {
        "kind": found.kind.name.lower(),
        "mode": f"{found.mode:04o}",
        "uid": found.uid,
        "gid": found.gid,
        "mtime": timestamp(found.mtime_ns),
        "size": found.size,
    }
    if found.digest is not None:
        document["digest"] = found.digest
    if found.link:
        prefix = b"/" if found.kind.name == "HARDLINK" else b""
        document |= _text("link", prefix + found.link)
    if found.rdev != (0, 0):
        document["rdev"] = list(found.rdev)
    if found.xattrs:
        document["xattrs"] = [
            {**_text("name", name), "value_b64": b64encode(value).decode()}
            for name, value in found.xattrs
        ]
    return document


def change(found: Change) -> Json:
    return {"kind": found.kind, **_text("path", found.path)}


def build_plan(plan: BuildPlan) -> Json:
    return {
        "steps": [
            {
                "stage": step.stage,
                "index": step.index,
                "title": step.title,
                "action": step.action,
                "reason": step.reason,
                "key": step.recipe.key if step.recipe is not None else None,
            }
            for step in plan.steps
        ],
        "runs": plan.runs,
    }


def removal(found: Removal) -> Json:
    return {
        "names": [str(ref) for ref in found.names],
        "images": list(found.images),
        "freed": found.freed,
    }


def gc_plan(plan: GcPlan) -> Json:
    return {
        "images": list(plan.images),
        "layers": list(plan.layers),
        "objects": len(plan.objects),
        "trees": len(plan.trees),
        "cache": len(plan.cache),
        "freed": plan.freed,
    }


def host(report: HostReport) -> Json:
    return {
        "kernel": report.kernel,
        "uid": report.uid,
        "directory": str(report.directory),
        "cgroup_layout": report.cgroup_layout,
        "controllers": list(report.controllers),
        "abilities": [
            {"name": a.name, "is_there": a.is_there, "why": a.why, "hint": a.hint}
            for a in report.abilities
        ],
    }
