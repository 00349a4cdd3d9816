"""The table of every key in docs/job_files.md is the one that the schema gives."""

from __future__ import annotations

import pytest
from documentation.job_keys import BEGIN, PAGE, page_with_table, rows, table

from flipscale.errors import UserError

ROWS = {row.key: row for row in rows()}


def test_page_has_the_table_of_the_schema():
    page = PAGE.read_text(encoding="utf-8")
    assert page_with_table(page) == page, "run `make docs-tables`"


def test_every_key_has_a_meaning():
    assert [key for key, row in ROWS.items() if not row.meaning] == []


@pytest.mark.parametrize(
    ("key", "type_", "default"),
    [
        ("name", "name", "required"),
        ("output", "text", "`runs/NAME`"),
        ("seed", "count", "`0`"),
        ("data.captions", "NAME: number > 0", "`{txt: 1}`"),
        ("data.max_image_pixels", "count > 0", "`100M`"),
        ("data.augmentation.crop_area", "[0 to 1, 0 to 1]", "`[0.5, 1]`"),
        ("data.cache.size", "size", "required"),
        ("data.workers", "count", "its share of the node's cores, less one"),
        ("phases", "list of blocks", "required"),
        ("phases.N.text_mask", "`prioritised`, `random`", "`prioritised`"),
        ("optimizer.eps", "number > 0", "`1e-8`"),
        ("loss.reconstruction", "block", "none"),
        ("checkpoint.every", "list of cadence", "`[30min]`"),
        ("logging.tensorboard", "true or false", "`true`"),
        ("evaluation.zero_shot.NAME.templates", "text", "`openai7`"),
        ("hang.least", "duration", "`5min`"),
        ("cluster.timeout", "duration", "`24h`"),
    ],
)
def test_types_and_defaults_are_written_as_in_a_job(key: str, type_: str, default: str):
    assert (ROWS[key].type, ROWS[key].default) == (type_, default)


def test_pages_that_a_description_names_are_links():
    assert "[data.md](data.md)" in ROWS["data.lanes"].meaning
    assert "](evaluation_and_export.md#sets)" in ROWS["evaluation.zero_shot"].meaning


def test_table_replaces_what_is_between_the_markers():
    page = PAGE.read_text(encoding="utf-8").replace("| `seed` |", "| `sed` |")
    assert "| `seed` |" in page_with_table(page)
    assert table() in page_with_table(page)


def test_page_without_markers_is_refused():
    with pytest.raises(UserError, match="lacks the comment"):
        page_with_table("# Job files\n")
    with pytest.raises(UserError, match="lacks the comment"):
        page_with_table(f"{BEGIN}\n")
