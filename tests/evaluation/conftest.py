import pytest
import torch
from support.evaluation_samples import COLOURS, ColourModel, StockModel

from flipscale.data.text.tokenizer import ClipTokenizer, WordPieceTokenizer
from flipscale.data.text.vocabulary import SPECIAL_TOKENS
from flipscale.third_party import import_open_clip


@pytest.fixture(scope="session")
def words() -> WordPieceTokenizer:
    """A tokenizer that knows a dozen words."""
    known = ["a", "photo", "of", "the", "red", "green", "blue", "square", "and", "."]
    return WordPieceTokenizer([*SPECIAL_TOKENS, *known], 8)


@pytest.fixture
def colour_model(words) -> ColourModel:
    return ColourModel([int(words([colour])[0, 1]) for colour in COLOURS])


@pytest.fixture(scope="session")
def stock() -> StockModel:
    """A small open_clip model with random weights."""
    torch.manual_seed(0)
    open_clip = import_open_clip()
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    clip = open_clip.CLIP(32, vision, text)
    return StockModel(clip, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD).eval()


@pytest.fixture(scope="session")
def bpe() -> ClipTokenizer:
    return ClipTokenizer()
