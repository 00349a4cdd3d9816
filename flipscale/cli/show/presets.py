"""`flipscale show presets`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flipscale.cli.options import AsJson
from flipscale.terminal import print_json

if TYPE_CHECKING:
    from flipscale.models.presets import ModelSpec, TowerSpec


def presets(as_json: AsJson = False) -> None:
    """List the models that a job can name, with the sizes of both towers."""
    from flipscale.models.presets import PRESETS

    if as_json:
        print_json([_record(spec) for spec in PRESETS.values()])
    else:
        _print(PRESETS.values())


def _record(spec: ModelSpec) -> dict[str, Any]:
    from flipscale.planning.flops import parameter_count

    count = parameter_count(spec)
    vision = {"image_size": spec.vision.image_size, "patch_size": spec.vision.patch_size}
    text = {"context_length": spec.text.context_length, "vocab_size": spec.text.vocab_size}
    return {
        "name": spec.name,
        "family": spec.family,
        "embed_dim": spec.embed_dim,
        "parameters": count.total,
        "vision": {**vision, **_sizes(spec.vision), "parameters": count.vision},
        "text": {**text, **_sizes(spec.text), "parameters": count.text},
    }


def _sizes(tower: TowerSpec) -> dict[str, int]:
    return {"width": tower.width, "layers": tower.layers, "heads": tower.heads}


def _print(specs: Iterable[ModelSpec]) -> None:
    from flipscale.cli.console import print_table
    from flipscale.formatting import format_millions
    from flipscale.planning.flops import parameter_count
    from flipscale.terminal import say

    rows = [
        (
            spec.name,
            f"{spec.vision.image_size} / {spec.vision.patch_size}",
            _shape(spec.vision),
            format_millions(parameter_count(spec).vision),
            _shape(spec.text),
            format_millions(parameter_count(spec).text),
            str(spec.embed_dim),
        )
        for spec in specs
    ]
    headings = ("preset", "image / patch", "image tower", "params", "text tower", "params", "embedding")
    print_table(headings, rows)
    say(
        "image and patch in pixels; towers: width x layers x heads, and their parameters without the "
        "projections to the embedding"
    )


def _shape(tower: TowerSpec) -> str:
    return f"{tower.width} x {tower.layers} x {tower.heads}"
