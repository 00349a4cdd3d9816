"""Read job, evaluation and site files: strict YAML, `extends`, and overrides of the command line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import ValidationError

from flipscale.config.evaluation import Evaluation
from flipscale.config.job import Job
from flipscale.config.origins import Origins, file_origins, merge_origins, override_origins
from flipscale.config.overrides import apply_override
from flipscale.config.problems import block_name, describe_problem
from flipscale.config.site import Site
from flipscale.config.values import Strict
from flipscale.config.yaml_text import KeyPath, NotYamlError, parse_with_lines, read_text_file
from flipscale.errors import UserError, words_of
from flipscale.formatting import format_value

SITE_VARIABLE = "FLIPSCALE_SITE"
"""The environment variable that names the site file of everyone who does not name one."""

_LONGEST_CHAIN = 32  # files, each extended by the one before

Document = TypeVar("Document", bound=Strict)


def load_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """Load a job file.

    Args:
        path: The YAML file; the files that it extends are read as well.
        overrides: Texts of the form `key.sub=value`, which win over the files.

    Raises:
        UserError: If a file cannot be read, `extends` forms a cycle, a key is unknown (the message names the
            nearest known one) or a value does not fit.
    """
    return load_job_with_origins(path, overrides)[0]


def load_job_with_origins(path: Path, overrides: Sequence[str] = ()) -> tuple[Job, Origins]:
    """Load a job file, and say where each of its values comes from; see `load_job`."""
    return _load(Job, path, overrides)


def load_evaluation(path: Path) -> Evaluation:
    """Load evaluation sets from a YAML file that holds what a job has under `evaluation`.

    Raises:
        UserError: As `load_job` does.
    """
    return _load(Evaluation, path, ())[0]


def load_site(path: Path | None = None) -> Site:
    """Load a site file.

    Args:
        path: The YAML file; default: the one that $FLIPSCALE_SITE names. Without both, the site is a plain
            cluster.

    Raises:
        UserError: As `load_job` does.
    """
    named = os.environ.get(SITE_VARIABLE)
    if path is None and not named:
        return Site()
    return _load(Site, path or Path(named or ""), ())[0]


def dump_job(job: Job) -> str:
    """Return the resolved job as YAML, which `load_job` reads back to an equal job."""
    return yaml.safe_dump(job.model_dump(mode="json", exclude_none=True), sort_keys=False)


def _load(kind: type[Document], path: Path, overrides: Sequence[str]) -> tuple[Document, Origins]:
    document, origins = _read_with_bases(kind, path, ())

    for override in overrides:
        place, lines = apply_override(document, override)
        origins = override_origins(origins, place, lines)

    try:
        return kind.model_validate(document), origins
    except ValidationError as error:
        raise UserError(f"{path}: {describe_problem(kind, error)}") from None


def _read_with_bases(
    kind: type[Strict], path: Path, chain: tuple[Path, ...]
) -> tuple[dict[str, Any], Origins]:
    """Return the content of a file merged over that of the file it extends, if any, and its origins.

    Args:
        kind: The block that the file holds.
        path: The file.
        chain: The files that extend this one, outermost first; they show a cycle.
    """
    resolved = path.resolve()
    if resolved in chain:
        raise UserError(
            f"{path} extends itself through {' -> '.join(p.name for p in (*chain, resolved))}; "
            "remove one of these `extends`"
        )
    if len(chain) > _LONGEST_CHAIN:
        raise UserError(
            f"{chain[0]} extends more than {_LONGEST_CHAIN} files, one through the other; merge some of them"
        )

    own, lines = _read_mapping(kind, path, chain)
    origins = file_origins(path, lines)
    base = own.pop("extends", None)
    if base is None:
        return own, origins
    if not isinstance(base, str) or "\0" in base:
        raise UserError(
            f"{path}: extends must be the path of one {block_name(kind)} file, not {format_value(base)}"
        )

    inherited, inherited_origins = _read_with_bases(kind, path.parent / base, (*chain, resolved))
    return _merged(inherited, own), merge_origins(inherited_origins, origins)


def _read_mapping(
    kind: type[Strict], path: Path, chain: tuple[Path, ...]
) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Return the content of a file, and the lines of its values."""
    extended_by = f" (extended by {chain[-1]})" if chain else ""

    try:
        text = read_text_file(path)
    except FileNotFoundError:
        raise UserError(
            f"there is no {block_name(kind)} file at {path}{extended_by}; {_nearest_files(path)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {words_of(error)}") from None

    try:
        document, lines = parse_with_lines(text)
    except NotYamlError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None

    if not isinstance(document, dict):
        raise UserError(f"{path} must hold keys and values, such as `name: my_run`, at its top level")
    return cast("dict[str, Any]", document), lines


def _nearest_files(path: Path) -> str:
    """Return what to name instead of a file that does not exist."""
    if not path.parent.is_dir():
        return f"the directory {path.parent} does not exist either, as seen from {Path.cwd()}"

    names = [other.name for other in path.parent.glob("[!.]*.yaml")]  # hidden files are not jobs
    nearest = difflib.get_close_matches(path.name, names, n=3, cutoff=0.0)
    return f"nearest names there: {', '.join(nearest)}" if nearest else f"{path.parent} has no YAML files"


def _merged(base: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return `own` over `base`: mappings merge key by key; all else, lists included, is replaced."""
    merged = dict(base)
    for key, value in own.items():
        inherited = merged.get(key)
        if isinstance(inherited, dict) and isinstance(value, dict):
            merged[key] = _merged(cast("dict[str, Any]", inherited), cast("dict[str, Any]", value))
        else:
            merged[key] = value
    return merged
