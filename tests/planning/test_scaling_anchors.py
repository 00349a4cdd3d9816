"""The step time against published scaling of CLIP training, one test per training, and the page's table."""

from __future__ import annotations

import pytest
from documentation.scaling_anchors import ANCHORS, PAGE, TOLERANCE, UNMET, Anchor, page_with_table

from flipscale.errors import UserError
from flipscale.planning.gpus import GPUS


@pytest.mark.parametrize(
    "anchor", [a for a in ANCHORS if a.name not in UNMET], ids=lambda anchor: anchor.name
)
def test_scaling_efficiency_is_the_published_one(anchor: Anchor) -> None:
    for point in anchor.points[1:]:
        assert abs(anchor.deviation(point)) < TOLERANCE, (point, anchor.deviation(point))


@pytest.mark.parametrize("anchor", [a for a in ANCHORS if a.name in UNMET], ids=lambda anchor: anchor.name)
def test_unmet_anchor_is_still_unmet(anchor: Anchor) -> None:
    """If this fails the model has become better: move the anchor, and say so in docs/planning.md."""
    assert any(abs(anchor.deviation(point)) >= TOLERANCE for point in anchor.points[1:])


def test_default_mfu_is_that_of_the_published_training() -> None:
    """NeMo's guide for the A100 and the H100, CLAP for the GH200; rounded to whole per cent."""
    by_name = {anchor.name: anchor for anchor in ANCHORS}
    for gpu, name in (
        ("a100-80gb", "NeMo g/14, A100"),
        ("h100-80gb", "NeMo g/14, H100"),
        ("gh200-96gb", "CLAP HTSAT-tiny, GH200"),
        ("a100-40gb", "OpenCLIP L/14, A100"),
    ):
        assert GPUS[gpu].mfu == pytest.approx(by_name[name].mfu, abs=0.006)


def test_model_loses_more_on_more_gpus() -> None:
    for anchor in ANCHORS:
        weak = len({point.batch for point in anchor.points}) == 1
        if weak:
            computed = [anchor.computed(point) for point in anchor.points]
            assert computed[0] == pytest.approx(1.0)
            assert computed == sorted(computed, reverse=True)


def test_page_has_the_table_of_the_anchors() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page_with_table(page) == page, "run `make docs-tables`"
    with pytest.raises(UserError, match="lacks the comment"):
        page_with_table("# Planning a run\n")
