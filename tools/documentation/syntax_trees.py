"""What the syntax tree of a module says about a function and about a name."""

from __future__ import annotations

import ast
from collections.abc import Iterator


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function without those of functions in it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from own_nodes(child)


def assignments(scope: ast.AST, name: str, *, everywhere: bool = True) -> Iterator[ast.expr]:
    """Yield the values that are assigned to a name; not `everywhere`: at the top of the scope only."""
    nodes = own_nodes(scope) if everywhere else iter(ast.iter_child_nodes(scope))
    for node in nodes:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and target.id == name:
                assert isinstance(node, (ast.Assign, ast.AnnAssign))
                assert node.value is not None
                yield node.value
        if isinstance(node, ast.NamedExpr) and node.target.id == name:
            yield node.value
