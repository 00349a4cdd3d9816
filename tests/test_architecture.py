"""The floors of the house: imports run downwards, nothing is circular, and nothing is too large.

docs/architecture.md describes the floors. Imports inside functions and under TYPE_CHECKING count as well.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "flipscale"

FLOORS = (
    ("errors",),
    ("files", "processes"),
    ("documents", "staging", "terminal"),
    ("jsonl", "formatting", "addresses"),
    ("slurm", "third_party", "child_process", "scratch"),
    ("order_digest",),
    ("config",),
    ("budget",),
    ("progress",),
    ("distributed",),
    ("models",),
    ("losses",),
    ("data",),
    ("runs",),
    ("sharding",),
    ("interop",),
    ("planning",),
    ("evaluation",),
    ("transfer",),
    ("orchestration",),
    ("training",),
    ("rehearsal",),
    ("reporting",),
    ("cli",),
    ("api",),
    ("__main__",),
)
"""Modules and packages of flipscale, from the ground up; those of one floor do not import each other."""

ROOMS: Mapping[str, tuple[str, ...]] = {
    "data": ("quarantine", "images", "shards", "order", "text", "samples", "synthetic", "checks"),
    "orchestration": ("cluster", "status", "checks", "segments"),
    "reporting": ("page", "run", "comparison"),
}
"""The folders within a package, from the ground up."""


MOST_IMPORTS = 12
MOST_LINES = 300
MOST_LINES_OF_A_FUNCTION = 50
MOST_PARAMETERS = 7
MANY_PARAMETERS = {"flipscale.losses.sigmoid.forward"}
"""Signatures that another library prescribes: torch.autograd.Function hands over every input by itself."""


@cache
def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    found: dict[str, Path] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


@cache
def imports() -> dict[str, frozenset[str]]:
    """Return what each module imports from the package, wherever in the file it does so."""
    return {name: frozenset(_imports(name, path)) - {name} for name, path in modules().items()}


def _imports(name: str, path: Path) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                module = f"{base}.{alias.name}"
                if module in modules():
                    yield module
                elif base in modules():
                    yield base


def parts(name: str) -> tuple[str, ...]:
    """Return the dotted name below the package; the package itself holds only its version."""
    return tuple(name.split(".")[1:])


def floor(name: str) -> int:
    """Return the number of the floor on which a module is, from the ground up."""
    (number,) = [number for number, rooms in enumerate(FLOORS) if parts(name)[0] in rooms]
    return number


def room(name: str) -> int | None:
    """Return the number of the folder within its package, or None if the package has no order of its own."""
    order = ROOMS.get(parts(name)[0])
    return order.index(parts(name)[1]) if order and len(parts(name)) > 1 else None


def below_the_package(name: str) -> frozenset[str]:
    return frozenset(other for other in imports()[name] if parts(other))


def test_every_module_has_a_floor():
    present = {parts(name)[0] for name in modules() if parts(name)}
    known = {name for rooms in FLOORS for name in rooms}
    assert present - known == set()


def test_imports_run_downwards():
    upward: list[str] = []
    for name in filter(parts, modules()):
        for other in below_the_package(name):
            same_package = parts(name)[0] == parts(other)[0]
            if not same_package and floor(other) >= floor(name):
                upward.append(f"{name} imports {other}")
            own, its = room(name), room(other)
            if same_package and own is not None and its is not None and its > own:
                upward.append(f"{name} imports {other}")
    assert upward == []


@pytest.mark.parametrize("of", ["files", "folders"])
def test_no_imports_are_circular(of: str):
    graph: dict[str, set[str]] = {}
    for name in filter(parts, modules()):
        for other in below_the_package(name):
            a, b = (name, other) if of == "files" else (_folder(name), _folder(other))
            if a != b:
                graph.setdefault(a, set()).add(b)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def _folder(name: str) -> str:
    """Return the folder of a module; modules at the root stand for themselves."""
    path = modules()[name]
    return str(path.parent.relative_to(ROOT)) if path.parent != PACKAGE else name


def test_private_names_are_used_in_their_module_and_nowhere_else():
    stray: list[str] = []
    for name, path in modules().items():
        text = path.read_text()
        tree = ast.parse(text)
        for node in tree.body:
            private = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and re.match("_[^_]", node.name)
            if private and len(re.findall(rf"\b{node.name}\b", text)) == 1:
                stray.append(f"{name} defines {node.name} and does not use it")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                stray += [f"{name} imports {node.module}.{other}" for other in private]
    assert stray == []


def test_no_module_is_a_crossroads():
    many = {name: len(below_the_package(name)) for name in modules()}
    assert {name: count for name, count in many.items() if count > MOST_IMPORTS} == {}


def test_files_are_short():
    lines = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_functions_are_short():
    long: dict[str, int] = {}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                count = _lines_of_body(node)
                if count > MOST_LINES_OF_A_FUNCTION:
                    long[f"{name}.{node.name}"] = count
    assert long == {}


def _lines_of_body(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines from the first statement to the last; a docstring is not counted."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_signatures_are_short():
    long: set[str] = set()
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = len([argument for argument in named if argument.arg not in ("self", "cls")])
                if count > MOST_PARAMETERS:
                    long.add(f"{name}.{node.name}")
    assert long <= MANY_PARAMETERS
