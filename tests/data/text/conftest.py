"""A small learned vocabulary that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.caption_texts import ODD, PLAIN

from flipscale.data.text.tokenizer import WordPieceTokenizer
from flipscale.data.text.vocabulary import learn_vocab, read_vocabulary


@pytest.fixture(scope="session")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a vocabulary learned from `PLAIN` and some of `ODD`."""
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    learn_vocab([*PLAIN, *ODD[5:12]] * 3, 500, path)
    return path


@pytest.fixture(scope="session")
def tokenizer(vocab: Path) -> WordPieceTokenizer:
    """The tokenizer of `vocab`."""
    return WordPieceTokenizer(read_vocabulary(str(vocab)))
