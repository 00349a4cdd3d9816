"""Pages: text from the data never becomes markup or a script of the page."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser
from support.browser import opened

from flipscale.reporting.page import plots
from flipscale.reporting.page.blocks import (
    Card,
    CardLine,
    Cell,
    Code,
    Column,
    Gallery,
    Headline,
    Note,
    Page,
    PlotBlock,
    PlotGrid,
    Section,
    Table,
)
from flipscale.reporting.page.html_renderer import to_html
from flipscale.reporting.page.json_renderer import to_json
from flipscale.reporting.page.markdown_renderer import to_markdown
from flipscale.reporting.page.pictures import encode_picture

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


def hostile_page() -> Page:
    """Return a page that has the hostile text wherever text can come from data."""
    figure = plots.new_figure(HOSTILE, HOSTILE)
    curve = plots.Points(HOSTILE, [1, 2], [1, 2], plots.colour(0), [HOSTILE, "b"])
    plots.add_line(figure, curve, hover="%{text}")
    point = plots.Points("other", [1], [2], plots.colour(1), [HOSTILE])
    plots.add_points(figure, point, hover="%{y}")
    image = encode_picture(np.zeros((3, 8, 8), np.uint8), HOSTILE)
    blocks = [
        Note(HOSTILE),
        Note(HOSTILE, missing=True),
        Table([Column(HOSTILE, hint=HOSTILE)], [[Cell(HOSTILE)]], HOSTILE),
        PlotGrid([PlotBlock(HOSTILE, plots.to_document(figure), HOSTILE)]),
        Gallery([Card([image], HOSTILE, [CardLine(HOSTILE)])]),
        Code(HOSTILE, HOSTILE),
    ]
    return Page(HOSTILE, HOSTILE, [Headline(HOSTILE, HOSTILE, HOSTILE)], [Section(HOSTILE, blocks)])


@pytest.mark.slow
def test_hostile_texts_remain_texts(tmp_path: Path, browser: Browser) -> None:
    path = tmp_path / "page.html"
    path.write_text(to_html(hostile_page()))
    with opened(browser, path, 1400) as shown:
        assert shown.page.title() == HOSTILE
        assert shown.page.locator("p.note").inner_text() == HOSTILE
        assert shown.page.locator(".legend button").first.inner_text() == HOSTILE
        assert shown.page.locator("img").count() == 1
        assert shown.complaints == []
        assert [url for url in shown.requests if not url.startswith(("file:", "data:"))] == []


def test_figure_in_page_equals_figure_of_block() -> None:
    page = hostile_page()
    text = to_html(page)
    embedded = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    assert embedded is not None
    block = page.sections[0].blocks[3]
    assert isinstance(block, PlotGrid)
    assert json.loads(embedded[1]) == block.plots[0].figure


@pytest.mark.slow
def test_injected_script_does_not_run(tmp_path: Path, browser: Browser) -> None:
    text = to_html(Page("plain", "", [], []))
    path = tmp_path / "page.html"
    path.write_text(text.replace("</main>", "<script>document.title = 'taken'</script></main>"))
    with opened(browser, path, 1400) as shown:
        assert shown.page.title() == "plain"
        assert any("Content Security Policy" in complaint for complaint in shown.complaints)


def test_markdown_keeps_texts_in_their_cells() -> None:
    table = Table([Column("a|b"), Column("c")], [[Cell("x|y\nz"), Cell("<b>*1*")]])
    text = to_markdown(Page("t", "s", [], [Section("S", [table])]))
    assert "| a\\|b | c |\n| ---: | ---: |\n| x\\|y z | &lt;b&gt;\\*1\\* |" in text
    assert "<script" not in to_markdown(hostile_page())
    assert html.escape("<script>", quote=False) in to_markdown(hostile_page())


def test_json_has_null_for_numbers_that_are_not_finite() -> None:
    document = {"a": float("nan"), "b": [float("inf"), 1.5], "c": (True, None, "x")}
    assert json.loads(to_json(document)) == {"a": None, "b": [None, 1.5], "c": [True, None, "x"]}


def test_text_between_backticks_is_escaped_code() -> None:
    page = Page("t", "s", [], [Section("one", [Note("set `a <b> c` in the job"), Note("a lone ` stays")])])
    shown = to_html(page)
    assert "set <code>a &lt;b&gt; c</code> in the job" in shown
    assert "a lone ` stays" in shown
