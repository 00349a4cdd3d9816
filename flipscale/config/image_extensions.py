"""The extensions of images that `data.images` names, as a tar stores them behind the first dot of a name."""

from __future__ import annotations

from collections.abc import Sequence

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
"""The extensions of images in shards that img2dataset writes."""

_MOST = 32
_OTHERS = ("txt", "cls", "json")  # members of a sample that are not its image


def parse_image_extensions(names: Sequence[str]) -> tuple[str, ...]:
    """Read a list of extensions. Their case does not matter: the members of a tar are compared without it.

    Raises:
        ValueError: If a name is not an extension, belongs to other members, or comes twice.
    """
    extensions = tuple(name.lower() for name in names)
    if not 0 < len(extensions) <= _MOST:
        raise ValueError(f"{len(extensions)} extensions of images; give 1 to {_MOST}, such as [jpg, png]")

    for name, extension in zip(names, extensions, strict=True):
        if not all(extension.split(".")) or "/" in extension:
            raise ValueError(
                f"{name!r} is not an extension; write it without its first dot, such as jpg or input.jpg"
            )
        if extension in _OTHERS:
            raise ValueError(f"{name!r} is the extension of other members of a sample than its image")
        if extensions.count(extension) > 1:
            raise ValueError(f"images names {extension} twice; name it once")

    return extensions
