"""The published numbers in the repository: each has a source, and recomputed ones are equal."""

from __future__ import annotations

import pytest

from flipscale.errors import UserError
from flipscale.interop.import_source import find_import_source
from flipscale.models.presets import preset
from flipscale.planning.flops import training_flops
from flipscale.reporting.comparison.reference import paper_tables, published_models
from flipscale.third_party import import_open_clip

_TAGGED = ("CLIP", "OpenCLIP", "DataComp")


def test_every_row_has_source_and_plausible_numbers() -> None:
    models = published_models()
    assert len({(m.family, m.model, m.weights, m.data, m.samples_seen) for m in models}) == len(models)
    for model in models:
        assert model.source
        assert model.samples_seen > 10**9
        assert model.imagenet_top1 is not None
        scores = (model.imagenet_top1, model.imagenet_v2_top1, model.coco_image_r1, model.flickr_text_r1)
        assert all(0.2 < score < 1.0 for score in scores if score is not None)


def test_open_clip_knows_every_tag() -> None:
    known = set(import_open_clip().list_pretrained())
    assert {(m.model, m.weights) for m in published_models() if m.family in _TAGGED} <= known


def test_every_tag_has_the_activation_of_its_name() -> None:
    """A tag of the other activation is refused for it; these are refused only for missing files."""
    for model in published_models():
        if model.family in _TAGGED:
            with pytest.raises(UserError) as refused:
                find_import_source(model.model, None, model.weights, random=False)
            assert "QuickGELU" not in str(refused.value), model.model


def test_flops_of_paper_models_are_those_of_plan() -> None:
    shapes = {"B/16": "vit_b16", "L/16": "vit_l16", "H/14": "vit_h14"}
    checked = 0
    for model in published_models():
        if model.family == "FLIP" and model.model in shapes:
            spec = preset(shapes[model.model])
            masked = training_flops(spec, model.samples_seen, 0.5)
            tuning = training_flops(spec, 128_000_000, 0.0)
            assert model.training_flops == pytest.approx(masked + tuning, rel=1e-3)
            checked += 1
    assert checked == 8


def test_open_clip_flops_grow_only_with_samples() -> None:
    each: dict[str, set[float]] = {}
    for model in published_models():
        if model.family in (*_TAGGED, "OpenCLIP scaling"):
            shape = model.model.removesuffix("-quickgelu")
            each.setdefault(shape, set()).add(model.training_flops / model.samples_seen)
    for shape, ratios in each.items():
        assert max(ratios) == pytest.approx(min(ratios), rel=2e-3), shape


def test_paper_tables_are_complete() -> None:
    tables = {table.number: table for table in paper_tables()}
    assert set(tables) == {"1a", "1b", "1c", "1d", "1e", "1f", "2", "5", "6", "8"}
    for table in tables.values():
        assert all(len(row) == 1 + len(table.columns) for row in table.rows)
        assert "FLIP paper" in table.source
    assert ("50 %", "68.5", "69.6", "70.4") in tables["1b"].rows
    # Table 8 and the list of models have the same scores.
    top1 = {float(row[1 + tables["8"].columns.index("ImageNet top-1")]) for row in tables["8"].rows}
    listed = {round(100 * (m.imagenet_top1 or 0), 1) for m in published_models() if "table 8" in m.source}
    assert top1 == listed
