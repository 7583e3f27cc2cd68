"""The modules of the package: no cycle of imports, and no module that reaches into
the private members of another.

What a user loses if these fail: an import that fails or not by the order in which modules are asked for, and
a package in which one change is felt in every file.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "python" / "flashoptim_cpp"
MODULES = {path.stem: ast.parse(path.read_text(), str(path)) for path in sorted(SOURCES.glob("*.py"))}


def imports(module: ast.Module) -> Iterator[tuple[str, list[str]]]:
    """The package's modules that one imports, and the names from each: at its head, in
    functions, for types alone."""
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            origin = (node.module or "").removeprefix("flashoptim_cpp").lstrip(".")
            if node.level == 0 and not (node.module or "").startswith("flashoptim_cpp"):
                continue
            if origin:
                yield origin, names
            else:
                yield from ((name, []) for name in names if name in MODULES)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("flashoptim_cpp"):
                    yield alias.name.partition(".")[2] or "__init__", []


def private_names(module: ast.Module) -> set[str]:
    """Underscore names that a module defines: functions, classes, variables, members."""
    names = set()
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_imports_have_no_cycle() -> None:
    graph = {name: {origin for origin, _ in imports(module)} for name, module in MODULES.items()}
    assert all(graph[name] for name in graph if name not in ("_operators", "memory", "sharding")), (
        "nothing found"
    )
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the modules


def test_no_module_uses_private_members_of_another() -> None:
    private = {name: private_names(module) for name, module in MODULES.items()}
    found = []
    for name, module in MODULES.items():
        found += [
            f"{name} imports {origin}.{member}"
            for origin, members in imports(module)
            for member in members
            if member.startswith("_") and member not in MODULES
        ]
        others = set().union(*(private[other] for other in private if other != name)) - private[name]
        found += [
            f"{name}:{node.lineno} uses .{node.attr}"
            for node in ast.walk(module)
            if isinstance(node, ast.Attribute) and node.attr in others
        ]
    assert not found, "\n".join(found)
