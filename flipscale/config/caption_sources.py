"""The sources of captions that `data.captions` names: a member of the sample, or a field of a JSON member."""

from __future__ import annotations

from dataclasses import dataclass

_JSON = "json"  # the extension of a member that has fields


@dataclass(frozen=True)
class CaptionSource:
    """A place within a sample where a caption is stored."""

    member: str
    """The extension of the member, in lower case: `txt`, `alt.txt`, `json`, `syn.json`."""
    field: str | None = None
    """The field of a JSON member; None if the member itself is the caption."""

    @property
    def name(self) -> str:
        """The name in job files: `txt`, `syn.json.caption`."""
        return self.member if self.field is None else f"{self.member}.{self.field}"


def parse_caption_source(name: str) -> CaptionSource:
    """Read the name of a source.

    An extension may have any case, since the members of a tar are compared without it. The first part `json`
    ends the extension, and the rest is the field, which keeps its case.

    Raises:
        ValueError: If the name has an empty part or a slash, or is a JSON member without a field.
    """
    parts = name.split(".")
    extensions = [part.lower() for part in parts]
    if not all(parts):
        raise ValueError(
            f"{name!r} has an empty part; write an extension without its first dot, such as txt, or "
            "json.FIELD"
        )
    end = extensions.index(_JSON) + 1 if _JSON in extensions else len(parts)
    if any("/" in part for part in extensions[:end]):
        raise ValueError(
            f"{name!r} has a slash, which no extension has; write what follows the first dot of a name"
        )
    if _JSON not in extensions:
        return CaptionSource(".".join(extensions))

    if end == len(parts):
        raise ValueError(
            f"{name!r} is a JSON document and not a caption; name one of its fields, as in {name}.caption"
        )
    return CaptionSource(".".join(extensions[:end]), ".".join(parts[end:]))
