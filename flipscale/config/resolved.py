"""A job as it is understood, with the origin of each value that is not a default."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, cast

import yaml

from flipscale.addresses import find_secret, without_secrets
from flipscale.config.job import Job
from flipscale.config.origins import Origins, origin_of
from flipscale.config.yaml_text import parse_with_lines
from flipscale.terminal import printable


@dataclass(frozen=True)
class ResolvedJob:
    """A job for people and programs to read; addresses are without their secrets.

    Attributes:
        document: The job.
        origins: The origins of its values by dotted keys, such as phases.0.samples; defaults have none.
        text: The job as YAML, which `load_job` reads; the origins are comments.
    """

    document: dict[str, Any]
    origins: dict[str, str]
    text: str


def resolved_job(job: Job, origins: Origins) -> ResolvedJob:
    """Describe a job and where its values come from, both as `load_job_with_origins` returns them."""
    document = cast("dict[str, Any]", _without_secrets(job.model_dump(mode="json", exclude_none=True)))
    # One value per line: a comment inside of a text that is folded would be part of the text.
    text = yaml.safe_dump(document, sort_keys=False, width=sys.maxsize)

    lines = text.split("\n")
    dotted: dict[str, str] = {}
    for place, number in parse_with_lines(text)[1].items():
        if (origin := origin_of(origins, place)) is not None:
            dotted[".".join(map(str, place))] = origin
            lines[number - 1] += f"  # {printable(origin, keep='')}"

    return ResolvedJob(document, dotted, "\n".join(lines))


def _without_secrets(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_secrets(item) for key, item in cast("dict[str, object]", value).items()}
    if isinstance(value, list):
        return [_without_secrets(item) for item in cast("list[object]", value)]
    if not isinstance(value, str):
        return value

    # Only what has a secret changes: without its query, an address may be another one.
    addresses = value.split("::")
    return "::".join(without_secrets(address) if find_secret(address) else address for address in addresses)
