"""The fixtures of the tests of pages: a browser, and models to write pages about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser
from support.browser import launched
from support.reported_models import Models, stock_directory, trained_run


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Return a headless Chromium."""
    with launched() as browser:
        yield browser


@pytest.fixture(scope="session")
def models(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Return two short runs and a stock model."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("reporting")
    return Models(
        trained_run(root / "masked", data_set, 0.5),
        trained_run(root / "unmasked", data_set, 0.0),
        stock_directory(root / "stock"),
    )
