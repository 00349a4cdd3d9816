"""The JSON Schema of a job file, for editors."""

from __future__ import annotations

from typing import Any, cast

from flipscale.config.job import Job
from flipscale.config.training import Checkpoints, Logging


def job_schema() -> dict[str, Any]:
    """Return the JSON Schema of a job file.

    Beyond the schema of the resolved job it accepts what a file may say: numbers as text with units (12.8B,
    30min), a bare preset name as the model, and `extends`, which may supply the keys that are required.
    """
    schema = Job.model_json_schema()
    definitions = schema["$defs"]
    schema["properties"]["extends"] = {"type": "string", "description": "Job file to merge this one over."}

    # A cadence is a text or a number; pydantic knows only the parsed one.
    definitions["Cadence"] = {
        "type": "integer",
        "description": "How often: 20M samples, 500 steps or 30min; a bare number counts samples.",
    }
    logged = definitions["Logging"]["properties"]["every"]
    saved = definitions["Checkpoints"]["properties"]["every"]
    logged["default"] = str(Logging().every)
    saved["default"] = [str(cadence) for cadence in Checkpoints().every]
    saved["anyOf"] = [saved["items"], {"type": saved.pop("type"), "items": saved.pop("items")}]

    for supplied_by_base in (schema, definitions["Data"], definitions["Model"]):
        del supplied_by_base["required"]
    definitions["Model"] = {"anyOf": [{"type": "string"}, definitions["Model"]]}

    _allow_units(schema)
    return schema


def _allow_units(node: Any) -> None:
    """Let every whole number of the schema be a text as well."""
    if isinstance(node, dict):
        mapping = cast("dict[str, Any]", node)
        if mapping.get("type") == "integer":
            mapping["type"] = ["integer", "string"]
        for value in mapping.values():
            _allow_units(value)
    elif isinstance(node, list):
        for value in cast("list[Any]", node):
            _allow_units(value)
