"""The source of an import: a directory in OpenCLIP's format, or a model that OpenCLIP knows by name."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from flipscale.errors import UserError
from flipscale.interop.openclip_directory import CONFIG, LOCAL, finished_config, local_directory
from flipscale.interop.openclip_import import convert_openclip
from flipscale.interop.openclip_state import StateDict
from flipscale.interop.weights import find_weights, read_weights
from flipscale.models.flip import build_model
from flipscale.models.presets import ModelSpec
from flipscale.third_party import import_open_clip

_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class ImportSource:
    """A model to import, and what stock OpenCLIP calls it."""

    stock: str
    """A builtin name, or local-dir:PATH."""
    config: dict[str, Any]
    """The configuration, as in open_clip_config.json."""
    weights: Path | None
    """The file of weights; None for initial weights."""
    pretrained: str | None = None
    """OpenCLIP's tag of the weights."""
    directory: Path | None = None
    """The directory with the tokenizer's files, if there is one."""

    def read(self) -> tuple[ModelSpec, StateDict]:
        """Read the model's shape and its state dict.

        Raises:
            UserError: If flipscale's towers lack a feature of the model, or the weights do not fit.
        """
        name = self.directory.name if self.directory else self.stock
        try:
            spec, _ = convert_openclip(self.config, None, name)
        except UserError as error:
            raise UserError(
                f"{name} cannot be imported: {error}; flipscale has only OpenCLIP's plain ViTs, such as "
                "ViT-B-32 and ViT-L-14"
            ) from None

        if self.weights is None:
            return spec, build_model(spec).state_dict()
        return convert_openclip(self.config, read_weights(self.weights), name)


def find_import_source(
    source: str, weights: Path | None, pretrained: str | None, random: bool
) -> ImportSource:
    """Resolve the argument and the options of `flipscale import`; nothing is downloaded.

    Args:
        source: A directory, or a builtin name of OpenCLIP.
        weights: A file of weights, for a builtin name.
        pretrained: OpenCLIP's tag of weights, for a builtin name.
        random: Take initial weights.

    Raises:
        UserError: If the directory, name, tag or file does not exist, or the options contradict each other.
    """
    if sum((weights is not None, pretrained is not None, random)) > 1:
        raise UserError("--weights, --pretrained and --random exclude each other; give one of them")

    directory = local_directory(source)
    if source.startswith(LOCAL) and not directory.is_dir():
        raise UserError(f"there is no directory {directory}; give {LOCAL}PATH of an OpenCLIP directory")
    if directory.is_dir():
        if weights is not None or pretrained is not None:
            raise UserError(
                f"{source} is a directory, which brings its own weights; give --weights and --pretrained "
                "only with a builtin name"
            )
        config = finished_config(directory)
        own = None if random else find_weights(directory)
        return ImportSource(f"{LOCAL}{directory.resolve()}", config, own, directory=directory)

    return _find_builtin(source, weights, pretrained, random)


def _find_builtin(source: str, weights: Path | None, pretrained: str | None, random: bool) -> ImportSource:
    name = source.replace("/", "-")
    open_clip: Any = import_open_clip()
    names = cast("list[str]", open_clip.list_models())
    if name not in names:
        near = ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.0))
        raise UserError(
            f"{source} is neither a directory with {CONFIG} nor a model of OpenCLIP; nearest names: {near}"
        )
    config: dict[str, Any] = {"model_cfg": open_clip.get_model_config(name)}

    if pretrained is not None:
        entry = _pretrained_entry(open_clip, name, pretrained)
        config["preprocess_cfg"] = {key: entry[key] for key in _PREPROCESSING if key in entry}
        return ImportSource(name, config, _cached_weights(open_clip, name, pretrained, entry), pretrained)

    if weights is None and not random:
        tags = ", ".join(pretrained_tags(open_clip, name)) or "none"
        raise UserError(
            f"{name} is a shape without weights; add --weights FILE, --pretrained TAG "
            f"(it has: {tags}) or --random"
        )
    return ImportSource(name, config, weights)


def pretrained_tags(open_clip: Any, name: str) -> Sequence[str]:
    """Return OpenCLIP's tags of weights for a builtin name."""
    return cast("list[str]", open_clip.list_pretrained_tags_by_model(name))


def _pretrained_entry(open_clip: Any, name: str, tag: str) -> dict[str, Any]:
    """Return OpenCLIP's entry of a tag."""
    entry = cast("dict[str, Any]", open_clip.get_pretrained_cfg(name, tag))
    if not entry:
        near = ", ".join(difflib.get_close_matches(tag, pretrained_tags(open_clip, name), n=3, cutoff=0.0))
        raise UserError(
            f"{name} has no pretrained weights {tag!r}; the nearest tags: {near or 'it has none'}"
        )

    # The same weights under the other name would load and compute something else.
    quick = bool(entry.get("quick_gelu", False))
    if quick != bool(open_clip.get_model_config(name).get("quick_gelu", False)):
        other = f"{name}-quickgelu" if quick else name.removesuffix("-quickgelu")
        raise UserError(
            f"the weights {tag} were {'' if quick else 'not '}trained with QuickGELU; import {other} instead"
        )
    return entry


def _cached_weights(open_clip: Any, name: str, tag: str, entry: dict[str, Any]) -> Path:
    """Return the file that open_clip has downloaded before; the safetensors if there are two.

    Raises:
        UserError: If it has downloaded none.
    """
    repository, file = os.path.split(entry.get("hf_hub", ""))
    if repository:
        from huggingface_hub import try_to_load_from_cache

        constants = open_clip.constants
        file = file or constants.HF_WEIGHTS_NAME
        safe = constants.HF_SAFE_WEIGHTS_NAME if file == constants.HF_WEIGHTS_NAME else _safe_name(file)
        for candidate in (safe, file):
            cached = try_to_load_from_cache(repository, candidate)
            if isinstance(cached, str):
                return Path(cached)
    elif entry.get("url"):
        cached = Path("~/.cache/clip").expanduser() / os.path.basename(entry["url"])
        if cached.is_file():
            return cached

    fetch = f"import open_clip; open_clip.create_model({json.dumps(name)}, pretrained={json.dumps(tag)})"
    raise UserError(
        f"the weights {tag} of {name} are not on this machine; where the network is reachable, run "
        f"python -c '{fetch}' once, or give a file with --weights"
    )


def _safe_name(file: str) -> str:
    return str(Path(file).with_suffix(".safetensors"))
