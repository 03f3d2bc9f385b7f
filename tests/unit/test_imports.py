"""The architecture, as imports: every arrow points downward, and there is no cycle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "layerstore"
GROUND = {"names", "errors", "events", "settings"}

# Who may import what, by folder; a module of a folder may import its neighbours.
SHELVES: dict[str, set[str]] = {
    "formats": GROUND,
    "kernel": {"errors"},
    "store": GROUND | {"formats", "kernel"},
    "runtime": GROUND | {"kernel"},
    "registry": GROUND | {"formats", "store"},
    "report": GROUND | {"api", "kernel", "formats"},
}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports_of(path: Path) -> set[str]:
    """Every module of ours that a file imports, at any depth of indentation."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base
                      for alias in node.names}  # fmt: skip
    return {name for name in found if name in MODULES and name != "layerstore"}


GRAPH = {name: imports_of(path) for name, path in MODULES.items()}


def shelf(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("folder", sorted(SHELVES))
def test_a_shelf_imports_only_what_lies_below_it(folder: str) -> None:
    allowed = SHELVES[folder] | {folder}
    upward = {
        f"{name} imports {target}"
        for name, targets in GRAPH.items()
        if shelf(name) == folder
        for target in targets
        if shelf(target) not in allowed
    }
    assert upward == set()


def test_the_ground_floor_imports_nothing_of_ours() -> None:
    above = {f"{name} imports {target}" for name in GRAPH if shelf(name) in GROUND
             for target in GRAPH[name] if shelf(target) not in GROUND}  # fmt: skip
    assert above == set()


def test_there_is_no_import_cycle_lazy_imports_included() -> None:
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in sorted(GRAPH[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in GRAPH:
        visit(name, ())


def test_nobody_but_the_command_line_prints_exits_or_reads_the_environment() -> None:
    offenders = []
    for name, path in MODULES.items():
        if shelf(name) in ("cli", "report"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in ("print", "exit", "input"):
                offenders.append(f"{name}:{called.lineno} calls {called.id}")
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                pair = (node.value.id, node.attr)
                if pair in (("os", "environ"), ("os", "getenv"), ("sys", "exit")):
                    offenders.append(f"{name}:{node.lineno} uses {'.'.join(pair)}")
    assert offenders == []


def test_ctypes_stays_in_the_kernel_folder() -> None:
    users = {
        name
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and any(module.split(".")[0] in ("ctypes", "_ctypes")
                for module in ([node.module or ""] if isinstance(node, ast.ImportFrom)
                               else [alias.name for alias in node.names]))
    }  # fmt: skip
    assert users == {"layerstore.kernel.libc"}


def test_packages_export_nothing() -> None:
    filled = [
        name
        for name, path in MODULES.items()
        if path.name == "__init__.py" and name != "layerstore" and path.read_text().strip()
    ]
    assert filled == []  # fmt: skip
