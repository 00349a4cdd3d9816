"""Models that OpenCLIP knows by name, and directories in its format: what is to be imported."""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flipscale.errors import UserError
from flipscale.interop.mapping import StateDict
from flipscale.interop.openclip_directory import CONFIG, finished_config
from flipscale.interop.openclip_import import convert_openclip
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
    """As in open_clip_config.json."""
    weights: Path | None
    """None: initial weights."""
    pretrained: str | None = None
    """OpenCLIP's tag of the weights."""
    directory: Path | None = None
    """Where the tokenizer's files lie, if anywhere."""

    def read(self) -> tuple[ModelSpec, StateDict]:
        """Spec and state dict. Raises UserError for what flipscale's towers or the weights lack."""
        name = self.directory.name if self.directory else self.stock
        try:
            spec, _ = convert_openclip(self.config, None, name)
        except UserError as error:
            raise UserError(
                f"{name} cannot be imported: {error}; flipscale has OpenCLIP's plain ViTs alone, such as "
                "ViT-B-32 and ViT-L-14"
            ) from None
        if self.weights is None:
            return spec, build_model(spec).state_dict()
        return convert_openclip(self.config, read_weights(self.weights), name)


def find_import_source(
    source: str, weights: Path | None, pretrained: str | None, random: bool
) -> ImportSource:
    """What SOURCE and the options of `flipscale import` mean; nothing is downloaded.

    Raises:
        UserError: there is no such directory, name, tag or file, or the options do not go together.
    """
    if sum((weights is not None, pretrained is not None, random)) > 1:
        raise UserError("--weights, --pretrained and --random exclude each other; give one of them")
    directory = Path(source)
    if directory.is_dir():
        if weights is not None or pretrained is not None:
            raise UserError(
                f"{source} is a directory, which brings its own weights; give --weights and --pretrained "
                "with a builtin name alone"
            )
        config = finished_config(directory)
        found = None if random else find_weights(directory)
        return ImportSource(f"local-dir:{directory.resolve()}", config, found, directory=directory)
    name = source.replace("/", "-")
    open_clip = import_open_clip()
    names = open_clip.list_models()
    if name not in names:
        near = ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.0))
        raise UserError(
            f"{source} is neither a directory with {CONFIG} nor a model of OpenCLIP; nearest names: {near}"
        )
    config = {"model_cfg": open_clip.get_model_config(name)}
    if pretrained is not None:
        described = _described(open_clip, name, pretrained)
        config["preprocess_cfg"] = {key: described[key] for key in _PREPROCESSING if key in described}
        return ImportSource(name, config, _cached(open_clip, name, pretrained, described), pretrained)
    if weights is None and not random:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise UserError(
            f"{name} is a shape without weights; add --weights FILE, --pretrained TAG "
            f"(it has: {tags}) or --random"
        )
    return ImportSource(name, config, weights)


def _described(open_clip: Any, name: str, tag: str) -> dict[str, Any]:
    """OpenCLIP's entry of a tag."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    described = open_clip.get_pretrained_cfg(name, tag)
    if not described:
        near = ", ".join(difflib.get_close_matches(tag, tags, n=3, cutoff=0.0)) or "it has none"
        raise UserError(f"{name} has no pretrained weights {tag!r}; the nearest tags: {near}")
    wanted = bool(described.get("quick_gelu", False))
    if wanted != bool(open_clip.get_model_config(name).get("quick_gelu", False)):
        other = f"{name}-quickgelu" if wanted else name.removesuffix("-quickgelu")
        raise UserError(
            f"the weights {tag} were {'' if wanted else 'not '}trained with QuickGELU; import {other} instead"
        )
    return described


def _cached(open_clip: Any, name: str, tag: str, described: dict[str, Any]) -> Path:
    """The file that open_clip has downloaded before; safetensors where there are both."""
    repository, file = os.path.split(described.get("hf_hub", ""))
    if repository:
        from huggingface_hub import try_to_load_from_cache

        constants = open_clip.constants
        file = file or constants.HF_WEIGHTS_NAME
        safe = constants.HF_SAFE_WEIGHTS_NAME if file == constants.HF_WEIGHTS_NAME else _safe_name(file)
        for candidate in (safe, file):
            found = try_to_load_from_cache(repository, candidate)
            if isinstance(found, str):
                return Path(found)
    elif described.get("url"):
        found = Path("~/.cache/clip").expanduser() / os.path.basename(described["url"])
        if found.is_file():
            return found
    fetch = f"import open_clip; open_clip.create_model({json.dumps(name)}, pretrained={json.dumps(tag)})"
    raise UserError(
        f"the weights {tag} of {name} are not on this machine; where the network is reached, run "
        f"python -c '{fetch}' once, or give a file with --weights"
    )


def _safe_name(file: str) -> str:
    return str(Path(file).with_suffix(".safetensors"))
