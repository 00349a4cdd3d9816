"""Find every sentence with which the program ends a command, in the syntax trees of the package.

A sentence is the text of a `UserError`, `RunError` or `StoppedEarly` (or of a class derived from them), of
a `Failure` in the ledger, of a wrong value in a job or site file, or what `main` and the batch script print
before they leave. What the program fills in becomes a word in capitals: `there is no index in DIRECTORY`.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import islice, product
from pathlib import Path

from documentation.message_words import placeholder
from documentation.syntax_trees import assignments, own_nodes

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "flipscale"

_ERRORS = {"UserError": "2", "RunError": "1", "StoppedEarly": "75", "Failure": "1"}
"""The classes whose text ends a command, and the exit code."""
_OF_VALUES = ("ValueError", "MarkedYAMLError")
"""In the modules of job and site files, pydantic or the loader makes a UserError of these."""
_SENTENCES = {
    "storage_problem": "1",
    "remedy": "2",
    "explain_refusal": "2",
    "describe_problem": "2",
    "_describe_unknown_key": "2",
}
"""Functions that return the whole sentence of an error that another function raises, and its exit code."""
_TABLES = {"config.problems": "KEY: ", "interop.file_kinds": "PATH is "}
"""Modules with a table of the ends of sentences, and how these sentences begin."""
_SCRIPTS = ("batch_script", "script_end")
"""Modules with the shell of the batch script."""
_MOST_VARIANTS = 8
_WORD = re.compile(r"[A-Za-z]{2,}")


@dataclass(frozen=True, order=True)
class Template:
    """One sentence, and the place in the code that makes it."""

    module: str
    """The module below the package, with dots."""
    line: int
    text: str
    code: str = "2"
    """The exit code of the command."""


@dataclass(frozen=True)
class Found:
    """All sentences, and the calls whose text comes from another error."""

    templates: tuple[Template, ...]
    passed_on: tuple[tuple[str, str], ...] = ()
    """Module and source text of each error that only hands on the words of another one."""


@dataclass
class _Scope:
    """What the names in an expression stand for, as far as the source says it."""

    module: ast.Module
    function: ast.AST | None = None
    bound: Mapping[str, list[str]] = field(default_factory=dict[str, list[str]])
    depth: int = 0

    def assigned(self, name: str) -> list[ast.expr]:
        """Return the values that are assigned to a name in the function, or else in the module."""
        inner = [] if self.function is None else list(assignments(self.function, name))
        return inner or list(assignments(self.module, name, everywhere=False)) or _imported(self.module, name)


def _imported(module: ast.Module, name: str) -> list[ast.expr]:
    """Return the value of a constant that a module imports from another one of the package."""
    for node in module.body:
        if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
            path = (ROOT / Path(*(node.module or "").split("."))).with_suffix(".py")
            if path.is_relative_to(PACKAGE) and path.is_file():
                return list(assignments(_tree(path), name, everywhere=False))
    return []


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def collect() -> Found:
    """Return every sentence of the package, in the order of modules and lines."""
    paths = sorted(PACKAGE.rglob("*.py"))
    codes = _error_codes(paths)
    templates: set[Template] = set()
    passed_on: list[tuple[str, str]] = []

    for path in paths:
        module = _name_of(path)
        for call, scope, code in _calls(_tree(path), module, codes):
            texts = [text for text in _variants(call, scope) if len(_WORD.findall(_constant_part(text))) >= 2]
            templates |= {Template(module, call.lineno, text, code) for text in texts}
            if not texts:
                passed_on.append((module, ast.unparse(call)))
        if module in _TABLES:
            templates |= set(_of_table(_tree(path), module))
        if module.rpartition(".")[2] in _SCRIPTS:
            templates |= set(_of_script(_tree(path), module))

    return Found(tuple(sorted(templates)), tuple(passed_on))


def _error_codes(paths: list[Path]) -> dict[str, str]:
    """Return the exit code of each class whose text ends a command, with those derived from them."""
    codes = dict(_ERRORS)
    classes = [node for path in paths for node in ast.walk(_tree(path)) if isinstance(node, ast.ClassDef)]
    while found := {
        node.name: codes[base.id]
        for node in classes
        for base in node.bases
        if isinstance(base, ast.Name) and base.id in codes and node.name not in codes
    }:
        codes |= found
    return codes


def _calls(tree: ast.Module, module: str, codes: Mapping[str, str]) -> Iterator[tuple[ast.expr, _Scope, str]]:
    """Yield the text of each error of a module, with its scope and its exit code."""
    kinds = dict(codes)
    if module.startswith("config.") or module in ("losses.tiles", "planning.network"):
        kinds |= dict.fromkeys(_OF_VALUES, "2")

    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    for function in [*functions, tree]:
        for node in own_nodes(function):
            scope = _Scope(tree, function)
            if isinstance(node, ast.Return) and _is_sentence_of(function, node):
                assert node.value is not None
                yield node.value, scope, _SENTENCES[getattr(function, "name", "")]
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if (text := _text_argument(node, name, kinds, module)) is not None:
                yield text, scope, "2" if "EXIT_USER" in ast.unparse(node) else kinds.get(name, "1")


def _is_sentence_of(function: ast.AST, node: ast.Return) -> bool:
    name = getattr(function, "name", "")
    return name in _SENTENCES and node.value is not None and ast.unparse(node.value) != "None"


def _text_argument(call: ast.Call, name: str, kinds: Mapping[str, str], module: str) -> ast.expr | None:
    """Return the argument of a call that is the text of an error; None if the call makes none."""
    if name == "Failure":
        return call.args[1] if len(call.args) > 1 else None
    if name in kinds:
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        return call.args[0] if call.args else named.get("problem") or named.get("message")

    leaves = (name == "_exit" and module == "cli.app") or (name == "exit" and len(call.args) == 1)
    is_text = bool(call.args) and isinstance(call.args[0], (ast.Constant, ast.JoinedStr))
    return call.args[0] if leaves and is_text else None


def _variants(node: ast.expr | None, scope: _Scope) -> list[str]:
    """Return the texts that an expression can have, with words in capitals for what is filled in."""
    if node is None:
        return []
    if isinstance(node, ast.Constant):
        return [node.value if isinstance(node.value, str) else str(node.value).upper()]
    if isinstance(node, ast.JoinedStr):
        return _joined(node.values, scope)
    if isinstance(node, ast.FormattedValue):
        texts = _filled(node.value, scope)
        quoted = node.conversion == ord("r")
        return [repr(text) if quoted and not text.isupper() else text for text in texts]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _joined([node.left, node.right], scope)
    if isinstance(node, ast.IfExp):
        return _distinct([*_variants(node.body, scope), *_variants(node.orelse, scope)])
    return _filled(node, scope)


def _filled(node: ast.expr, scope: _Scope) -> list[str]:
    """Return what can stand in the place of a value: sentences that the source has, or a word in capitals."""
    if isinstance(node, (ast.JoinedStr, ast.IfExp, ast.Constant)):
        return _variants(node, scope)
    if isinstance(node, ast.BoolOp) and _is_text(node.values[-1]):
        texts = _variants(node.values[-1], scope)
        ends_sentence = texts[0].startswith(
            ";"
        )  # no single word can stand in the place of the end of a sentence
        others = [
            text for text in _filled(node.values[0], scope) if text and not (ends_sentence and text.isupper())
        ]
        return _distinct([*others, *texts])
    if isinstance(node, ast.Name):
        if node.id in scope.bound:
            return scope.bound[node.id]
        values = scope.assigned(node.id)
        texts = _distinct([text for value in values if _is_text(value) for text in _variants(value, scope)])
        if texts and all(map(_is_text, values)) and len(texts) <= _MOST_VARIANTS:
            return texts
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id in ("without_secrets", "str") and _is_text(node.args[0]):
            return _variants(node.args[0], scope)
        if (inlined := _inlined(node, scope)) is not None:
            return inlined
    return [placeholder(node)]


def _inlined(call: ast.Call, scope: _Scope) -> list[str] | None:
    """Return the sentences that a function of the module returns; None if it returns something else."""
    assert isinstance(call.func, ast.Name)
    name = call.func.id
    found = [node for node in scope.module.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not found or scope.depth > 2:
        return None

    function = found[0]
    returned = [node.value for node in own_nodes(function) if isinstance(node, ast.Return) and node.value]
    if not returned or not all(map(_is_text, returned)):
        return None
    names = [argument.arg for argument in function.args.args]
    bound = {key: _variants(value, scope) for key, value in zip(names, call.args, strict=False)}
    inner = _Scope(scope.module, function, bound, scope.depth + 1)
    texts = _distinct([text for value in returned for text in _variants(value, inner)])
    return texts if len(texts) <= _MOST_VARIANTS and any(" " in text for text in texts) else None


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _joined(parts: list[ast.expr], scope: _Scope) -> list[str]:
    """Return every combination of the parts, in which equal parts have equal texts.

    With too many combinations, a part with more than two texts has its first one.
    """
    keys = [ast.unparse(part) for part in parts]
    texts = {key: _variants(part, scope) for key, part in zip(keys, parts, strict=True)}
    if math.prod(max(1, len(each)) for each in texts.values()) > _MOST_VARIANTS:
        texts = {key: each[:1] if len(each) > 2 else each for key, each in texts.items()}

    combinations = islice(product(*texts.values()), _MOST_VARIANTS)
    chosen = (dict(zip(texts, combination, strict=True)) for combination in combinations)
    return _distinct(["".join(choice[key] for key in keys) for choice in chosen])


def _distinct(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _constant_part(text: str) -> str:
    return re.sub(r"\b[A-Z][A-Z_]+\b", "", text)


def _of_script(tree: ast.Module, module: str) -> Iterator[Template]:
    """Yield what the shell of the batch script writes into the log of a job that it ends."""
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if isinstance(node, ast.JoinedStr):
            text = "".join(_variants(part, _Scope(tree))[0] for part in node.values)
        for sentence in re.findall(r"(?<![a-z])flipscale: ([^\"\n]+)", text.replace("\\\n", "")):
            words = re.sub(r"\$\{\{?SLURMD_NODENAME[^ ]*|\$\(hostname\)\}?\}?", "NODE", sentence)
            words = re.sub(r"\$\{?\{?(\w+)\}?\}?", lambda match: match.group(1).upper(), words)
            if len(_WORD.findall(words)) > 3:
                yield Template(module, getattr(node, "lineno", 0), words.strip(" :'"), "2")


def _of_table(tree: ast.Module, module: str) -> Iterator[Template]:
    """Yield the sentences that end with an entry of a module's table: a dictionary, or an Enum's values."""
    for node in ast.walk(tree):
        values = node.values if isinstance(node, ast.Dict) else []
        if isinstance(node, ast.ClassDef):
            values = [line.value for line in node.body if isinstance(line, ast.Assign)]
        for value in values:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield Template(module, value.lineno, _TABLES[module] + value.value)
