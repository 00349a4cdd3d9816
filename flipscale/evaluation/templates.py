"""Class names and prompt templates: by name from OpenCLIP, or from a file."""

from __future__ import annotations

from pathlib import Path

from flipscale.errors import UserError
from flipscale.evaluation.prompt_files import read_entries

_TEMPLATES = {"openai7": "SIMPLE_IMAGENET_TEMPLATES", "openai80": "OPENAI_IMAGENET_TEMPLATES"}
BARE_NAME = "name"
"""As `templates`: the prompt is the class name itself."""
_CLASS_NAMES = {"imagenet": "IMAGENET_CLASSNAMES"}


def load_templates(source: str) -> list[str]:
    """Return prompt templates, each with one `{}` for the class name.

    Args:
        source: `openai7` (the paper's choice, A.2), `openai80`, `name` for the bare class name, or a file. In
            a file, `{c}` is read as `{}`, since CLIP_benchmark writes it so.

    Raises:
        UserError: If the file is missing, a line is empty, or a template does not have `{}` once.
    """
    if source == BARE_NAME:
        return ["{}"]
    if source in _TEMPLATES:
        from flipscale.third_party import import_open_clip

        return [template("{}") for template in getattr(import_open_clip(), _TEMPLATES[source])]

    templates = [
        line.replace("{c}", "{}") for line in _entries(source, "templates", [*_TEMPLATES, BARE_NAME])
    ]
    for number, template in enumerate(templates, start=1):
        if template.count("{}") != 1:
            raise UserError(
                f"templates {source}, entry {number} ({template!r}) needs {{}} once, for the class name"
            )
    return templates


def load_class_names(source: str) -> list[str]:
    """Return class names in the order of their labels.

    Args:
        source: `imagenet`, or a file with one name per line.

    Raises:
        UserError: If the file is missing or a name is empty.
    """
    if source in _CLASS_NAMES:
        from flipscale.third_party import import_open_clip

        return list(getattr(import_open_clip(), _CLASS_NAMES[source]))

    return _entries(source, "class names", list(_CLASS_NAMES))


def _entries(source: str, noun: str, known: list[str]) -> list[str]:
    path = Path(source)
    if not path.is_file():
        raise UserError(
            f"{noun}: there is no file {source}; name one with one per line, or {' or '.join(known)}"
        )

    return read_entries(path, noun)
