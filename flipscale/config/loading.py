"""Read job and site files: `extends`, overrides, and errors that name the nearest key."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flipscale.config.job import Checkpoints, Evaluation, Job, Logging, Strict
from flipscale.config.site import Site
from flipscale.errors import UserError

SITE_VARIABLE = "FLIPSCALE_SITE"  # names the site file of those who give none

# A date such as 2026-13-45 is a ValueError, and a thousand open brackets are a RecursionError.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)

Document = TypeVar("Document", bound=Strict)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error, not a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        # A sequence tagged `!!map` comes here too; the parent refuses it.
        pairs: list[tuple[yaml.Node, yaml.Node]] = node.value if node.id == "mapping" else []
        for key_node, _ in pairs:
            key = str(key_node.value)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice (line {line})")
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """Return the job that the YAML file at `path`, the files it extends, and `key.sub=value` overrides state.

    Raises UserError with one sentence for a file that cannot be read, a cycle of `extends`, an unknown key
    (naming the nearest known one) or a value that does not fit.
    """
    return _load(Job, path, overrides)


def load_evaluation(path: Path) -> Evaluation:
    """Return the sets in the YAML file at `path`, which holds what a job has under `evaluation`.

    Raises UserError as `load_job` does.
    """
    return _load(Evaluation, path, ())


def load_site(path: Path | None = None) -> Site:
    """Return the site in the YAML file at `path`, or at $FLIPSCALE_SITE; without both a plain cluster.

    Raises UserError as `load_job` does.
    """
    named = os.environ.get(SITE_VARIABLE)
    if path is None and not named:
        return Site()
    return _load(Site, path or Path(named or ""), ())


def _load(kind: type[Document], path: Path, overrides: Sequence[str]) -> Document:
    document = _read_with_bases(kind, path, ())
    for override in overrides:
        _apply_override(document, override)
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise UserError(f"{path}: {_first_problem(kind, error)}") from None


def dump_job(job: Job) -> str:
    """Return the resolved job as YAML that load_job reads back to an equal job."""
    return yaml.safe_dump(job.model_dump(mode="json", exclude_none=True), sort_keys=False)


def job_schema() -> dict[str, Any]:
    """Return the JSON Schema of a job file, for editors.

    Beyond the schema of the resolved job it accepts what a file may say: numbers as text with units (12.8B,
    30min), a bare preset name as the model, and `extends`, which may supply the keys that are required.
    """
    schema = Job.model_json_schema()
    definitions = schema["$defs"]
    schema["properties"]["extends"] = {"type": "string", "description": "Job file to merge this one over."}
    definitions["Cadence"] = {
        "type": "integer",
        "description": "How often: 20M samples, 500 steps or 30min; a bare number counts samples.",
    }
    logged, saved = (definitions[name]["properties"]["every"] for name in ("Logging", "Checkpoints"))
    logged["default"] = str(Logging().every)
    saved["default"] = [str(cadence) for cadence in Checkpoints().every]
    saved["anyOf"] = [saved["items"], {"type": saved.pop("type"), "items": saved.pop("items")}]
    for supplied_by_base in (schema, definitions["Data"], definitions["Model"]):
        del supplied_by_base["required"]
    definitions["Model"] = {"anyOf": [{"type": "string"}, definitions["Model"]]}
    _allow_units(schema)
    return schema


def _allow_units(node: Any) -> None:
    if isinstance(node, dict):
        mapping = cast("dict[str, Any]", node)
        if mapping.get("type") == "integer":
            mapping["type"] = ["integer", "string"]
        for value in mapping.values():
            _allow_units(value)
    elif isinstance(node, list):
        for value in cast("list[Any]", node):
            _allow_units(value)


def _read_with_bases(kind: type[Strict], path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in chain:
        raise UserError(f"{path} extends itself through {' -> '.join(p.name for p in (*chain, resolved))}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"there is no {_word(kind)} file at {path}{_extended_by(chain)}; {_nearest_files(path)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    try:
        document = yaml.load(text, Loader=_UniqueKeyLoader)  # a SafeLoader subclass
    except _NOT_YAML as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} must hold keys and values, such as `name: my_run`, at its top level")
    own = cast("dict[str, Any]", document)
    base = own.pop("extends", None)
    if base is None:
        return own
    if not isinstance(base, str):
        raise UserError(f"{path}: extends must be the path of one {_word(kind)} file, not {base!r}")
    return _merged(_read_with_bases(kind, path.parent / base, (*chain, resolved)), own)


def _word(kind: type[Strict]) -> str:
    """What people call such a file: job or site."""
    return kind.__name__.lower()


def _nearest_files(path: Path) -> str:
    """What to name instead of a file that is not there."""
    if not path.parent.is_dir():
        return f"the directory {path.parent} is not there either, as seen from {Path.cwd()}"
    names = [other.name for other in path.parent.glob("*.yaml")]
    nearest = difflib.get_close_matches(path.name, names, n=3, cutoff=0.0)
    return f"the nearest beside it: {', '.join(nearest)}" if nearest else f"{path.parent} has no YAML files"


def _extended_by(chain: tuple[Path, ...]) -> str:
    return f" (extended by {chain[-1]})" if chain else ""


def _merged(base: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key; anything else, lists included, is replaced."""
    merged = dict(base)
    for key, value in own.items():
        known = merged.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            merged[key] = _merged(cast("dict[str, Any]", known), cast("dict[str, Any]", value))
        else:
            merged[key] = value
    return merged


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"the override {override!r} is not of the form key.sub=value")
    try:
        value = yaml.safe_load(text)
    except _NOT_YAML:
        raise UserError(f"the value of the override {override!r} is not valid YAML") from None
    *parents, last = key.split(".")
    node: Any = document
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, list):
        items = cast("list[Any]", node)
        items[_number(items, last, override)] = value
    else:
        node[last] = value


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        items = cast("list[Any]", node)
        child = items[_number(items, part, override)]
    else:
        mapping = cast("dict[str, Any]", node)
        child = mapping.setdefault(part, {})
        if isinstance(child, str) and part == "model":  # `model: vit_b16` is short for {preset: vit_b16}
            child = mapping[part] = {"preset": child}
    if not isinstance(child, (dict, list)):
        raise UserError(f"the override {override!r}: {part!r} holds a value, not keys")
    return cast("Any", child)


def _number(items: Sequence[Any], part: str, override: str) -> int:
    numbers = [str(number) for number in range(len(items))]
    if part not in numbers:
        raise UserError(
            f"the override {override!r}: {part!r} is none of the list's items ({', '.join(numbers)})"
        )
    return int(part)


def _first_problem(kind: type[Strict], error: ValidationError) -> str:
    """Say the first of pydantic's findings in one sentence; an unknown key goes before its consequences."""
    findings = sorted(error.errors(), key=lambda finding: finding["type"] != "extra_forbidden")
    finding = findings[0]
    where = ".".join(str(part) for part in finding["loc"]) or f"the {_word(kind)}"
    if finding["type"] == "extra_forbidden":
        return _unknown_key(kind, finding, where)
    if finding["type"] == "missing":
        return f"the key {where} is missing"
    message = finding["msg"].removeprefix("Value error, ")
    shown = repr(finding["input"])
    given = "" if isinstance(finding["input"], (dict, list)) or shown in message else f" (given: {shown})"
    return f"{where}: {message[:1].lower() + message[1:]}{given}"


def _unknown_key(kind: type[Strict], finding: ErrorDetails, where: str) -> str:
    *parents, unknown = finding["loc"]
    known = sorted(_fields_at(kind, parents))
    nearest = difflib.get_close_matches(str(unknown), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known keys here: {', '.join(known)}"
    return f"unknown key {where}; {hint}"


def _fields_at(model: type[BaseModel], parents: Sequence[int | str]) -> list[str]:
    for part in parents:
        if isinstance(part, int) or part not in model.model_fields:
            continue  # an item of a list, or a name chosen by the user
        inner = _model_in(model.model_fields[part].annotation)
        if inner is not None:
            model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
