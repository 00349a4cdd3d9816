"""Tokenizers against stock open_clip, against transformers' slow BERT, and in loader workers."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.caption_texts import ODD, PLAIN, thousand_captions
from torch.utils.data import DataLoader

from flipscale.data.text.tokenizer import ClipTokenizer, WordPieceTokenizer, load_tokenizer
from flipscale.data.text.vocabulary import SPECIAL_TOKENS, clean_caption, read_vocabulary
from flipscale.errors import UserError
from flipscale.third_party import import_open_clip


def export(tokenizer: WordPieceTokenizer, directory: Path) -> None:
    """The directory that open_clip's `local-dir:` wants, as far as its tokenizer goes."""
    tokenizer.save(directory)
    text = {"context_length": tokenizer.context_length, "vocab_size": tokenizer.vocab_size}
    model = {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {**text, "hf_tokenizer_name": "local"}}
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))


@pytest.mark.parametrize("context_length", [32, 5])
def test_stock_open_clip_gives_the_same_ids_offline(vocab, tmp_path, monkeypatch, context_length):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer = WordPieceTokenizer(read_vocabulary(str(vocab)), context_length)
    export(tokenizer, tmp_path)
    stock = import_open_clip().get_tokenizer(f"local-dir:{tmp_path}")
    captions = thousand_captions()
    ours, theirs = tokenizer(captions), stock(captions)
    assert ours.shape == (1000, context_length)
    assert ours.dtype == torch.int64
    wrong = [captions[n] for n in (ours != theirs).any(dim=1).nonzero().flatten().tolist()]
    assert not wrong


def test_ids_are_those_of_the_slow_bert_tokenizer(tokenizer, vocab):
    bert = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy")
    pieces = read_vocabulary(str(vocab))
    ids = {piece: number for number, piece in enumerate(pieces)}
    words, split = bert.BasicTokenizer(do_lower_case=True), bert.WordpieceTokenizer(ids, "[UNK]", 100)
    # These classes do not look for special tokens, and drop characters of the last planes that Rust keeps.
    beyond = (*SPECIAL_TOKENS, "\U0010ffff", "\U000e0041")
    captions = [c for c in thousand_captions() if not any(part in c for part in beyond)]
    assert len(captions) > 500
    for caption, row in zip(captions, tokenizer(captions).tolist(), strict=True):
        expected = [
            ids[piece] for word in words.tokenize(clean_caption(caption)) for piece in split.tokenize(word)
        ]
        assert row == ([ids["[CLS]"], *expected[:31]] + [ids["[PAD]"]] * 31)[:32], caption


def test_layout_cls_then_pieces_then_pad_and_no_sep(tokenizer, vocab):
    pieces = read_vocabulary(str(vocab))
    short, long = tokenizer(["red star", "star " * 40]).tolist()
    assert [pieces[n] for n in short[:4]] == ["[CLS]", "red", "star", "[PAD]"]
    assert [pieces[n] for n in long] == ["[CLS]"] + ["star"] * 31
    assert set(tokenizer([""]).flatten().tolist()[1:]) == {pieces.index("[PAD]")}
    assert tokenizer([]).shape == (0, 32)


@settings(max_examples=300)
@given(st.text(st.characters(exclude_categories=()), max_size=80))
def test_any_text_is_cleaned_as_open_clip_does_and_tokenizes(tokenizer, caption):
    stock = import_open_clip().tokenizer.get_clean_fn("whitespace")
    assert clean_caption(caption) == stock(caption)
    row = tokenizer([caption])[0]
    assert row.shape == (32,)
    assert 0 <= int(row.min()) <= int(row.max()) < tokenizer.vocab_size


@settings(max_examples=300)
@given(st.text(st.characters(max_codepoint=127), max_size=40))
def test_plain_text_is_cleaned_as_open_clip_does(caption):
    """Most captions are ASCII, which takes a shorter way."""
    assert clean_caption(caption) == import_open_clip().tokenizer.get_clean_fn("whitespace")(caption)


@given(st.lists(st.sampled_from([*ODD, *PLAIN]), min_size=1, max_size=8))
def test_batch_equals_its_captions_one_by_one(tokenizer, captions):
    assert torch.equal(tokenizer(captions), torch.cat([tokenizer([caption]) for caption in captions]))


def test_pad_id_is_that_of_the_vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("a\n[UNK]\nb\n[CLS]\n[PAD]\n")
    assert load_tokenizer("wordpiece", str(path), 4)(["b a c"]).tolist() == [[3, 2, 0, 1]]
    assert load_tokenizer("wordpiece", str(path), 4)(["b"]).tolist() == [[3, 2, 4, 4]]


def test_sources_agree_and_an_export_can_be_read_back(vocab, tokenizer, tmp_path):
    export(tokenizer, tmp_path)
    for source in (vocab, vocab.parent, tmp_path, tmp_path / "tokenizer.json"):
        again = load_tokenizer("wordpiece", str(source))
        assert again.fingerprint == tokenizer.fingerprint
        assert torch.equal(again(ODD), tokenizer(ODD))


def test_fingerprint_follows_vocabulary_length_and_kind(vocab, tokenizer):
    pieces = read_vocabulary(str(vocab))
    others = [
        WordPieceTokenizer(pieces, 31),
        WordPieceTokenizer([*pieces, "extra"]),
        WordPieceTokenizer([*pieces[:-2], pieces[-1], pieces[-2]]),
        ClipTokenizer(32),
    ]
    assert len({tokenizer.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_clip_ids_are_those_of_open_clip():
    tokenizer = load_tokenizer("clip_bpe")
    assert (tokenizer.context_length, tokenizer.vocab_size) == (77, 49408)
    captions = thousand_captions()
    assert torch.equal(tokenizer(captions), import_open_clip().get_tokenizer("ViT-B-32")(captions))
    with pytest.raises(UserError, match="context_length is 2"):
        ClipTokenizer(2)


def test_word_cache_of_clip_is_bounded(monkeypatch):
    monkeypatch.setattr("flipscale.data.text.tokenizer._MOST_CACHED_WORDS", 50)
    tokenizer = ClipTokenizer()
    want = ClipTokenizer()(["word1 word2"])
    for start in range(0, 400, 40):
        tokenizer([f"{chr(97 + n % 26) * (n // 26 + 1)}" for n in range(start, start + 40)])
        assert len(tokenizer._bpe.cache) <= 50 + 40
    assert torch.equal(tokenizer(["word1 word2"]), want)


class Captions(torch.utils.data.Dataset):
    def __init__(self, tokenizer, captions):
        self.tokenizer, self.captions = tokenizer, captions

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, index):
        return self.tokenizer([self.captions[index]])[0]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["wordpiece", "clip_bpe"])
def test_loader_workers_give_the_same_ids(vocab, kind, context):
    tokenizer = load_tokenizer(kind, str(vocab) if kind == "wordpiece" else None)
    captions = [*ODD, *PLAIN]
    want = tokenizer(captions)  # used before the fork, as the trainer's own process may
    loader = DataLoader(
        Captions(tokenizer, captions), batch_size=8, num_workers=1, multiprocessing_context=context
    )
    assert torch.equal(torch.cat(list(loader)), want)


@pytest.mark.parametrize("kind", ["wordpiece", "clip_bpe"])
def test_pickled_tokenizer_is_the_same(vocab, kind):
    tokenizer = load_tokenizer(kind, str(vocab) if kind == "wordpiece" else None, 20)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.fingerprint == tokenizer.fingerprint
    assert torch.equal(again(ODD), tokenizer(ODD))
