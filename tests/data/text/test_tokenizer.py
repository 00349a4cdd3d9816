"""Tokenizers against stock open_clip, against transformers' slow BERT, and in loader workers."""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from flipscale.data.text.tokenizer import ClipTokenizer, WordPieceTokenizer, load_tokenizer
from flipscale.data.text.vocabulary import SPECIAL_TOKENS, clean_caption, learn_vocab, read_vocabulary
from flipscale.errors import UserError
from flipscale.third_party import import_open_clip

PLAIN = [
    "a small red star left of a striped blue circle",
    "two green triangles on a grey background",
    "The Quick Brown Fox; jumps over 13 lazy dogs, isn't it?",
    "Café déjà-vu: naïve façade, Ångström & Øresund",
    "東京タワーの写真 and 中文字幕",
    "фотография кота на подоконнике",
]
ODD = [
    "",
    " ",
    "\n\t\r ",
    "\x00",
    "null\x00byte and \x07 bell \x1b[31mred\x1b[0m \x7f",
    "🐱🏽‍🦰 emoji 👨‍👩‍👧‍👦 flags 🇩🇪🇯🇵 keycap 1️⃣",
    "&amp; &lt;b&gt;bold&lt;/b&gt; &amp;amp;lt; &nbsp;&eacute; &#x41; &#0; &#xD800; &notanentity;",
    "<a href='x'>AT&T</a> &quot;quoted&quot; &hellip;",
    "[CLS] [PAD] [SEP]",
    "[MASK][UNK]glued[PAD]words [cls] [ CLS ] [CLS",
    "e\u0301 a\u0308 n\u0303 q\u0323\u0307 combining",
    "ﬁ ligature ① full Ａ１ ｗｉｄｅ",
    "Ä°stanbul Ã©tÃ© â€œmojibakeâ€\x9d",
    "İSTANBUL ß ẞ ŉ ǅ ΑΣ",
    "zero\u200bwidth\u200djoiner\ufeff bom \u00ad soft \u2028 line \u2029 paragraph \x85 next",
    "lone surrogate \ud800 and \udfff",
    "rtl \u202eabc\u202c العربية עברית ไทย हिन्दी",
    "x" * 99 + " " + "y" * 100 + " " + "z" * 101 + " " + "w" * 5000,
    " ".join(f"word{n}" for n in range(200)),
    "!" * 300,
    "中" * 100,
    "a" + "\u0300" * 50,
    "𝔉𝔯𝔞𝔨𝔱𝔲𝔯 𝒮 \U0010ffff \U000e0041",
    "## ##ing a##b #hashtag @user https://x.y/z?a=1&amp;b=2",
    "C:\\path\\to\\IMG_0001.JPG (1600×1200) – stock № 5 ½ ™ ®",
]


def thousand_captions() -> list[str]:
    """ODD and PLAIN, then mixtures of them in a fixed random order."""
    random = Random(0)
    captions = [*ODD, *PLAIN]
    while len(captions) < 1000:
        parts = random.choices([*ODD, *PLAIN], k=random.randint(1, 3))
        words = " ".join(parts).split(" ")
        random.shuffle(words)
        captions.append(" ".join(words[: random.randint(1, 40)]))
    return captions


@pytest.fixture(scope="module")
def vocab(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    learn_vocab([*PLAIN, *ODD[5:12]] * 3, 500, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(vocab) -> WordPieceTokenizer:
    return WordPieceTokenizer(read_vocabulary(str(vocab)))


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
def test_a_batch_is_its_captions_one_by_one(tokenizer, captions):
    assert torch.equal(tokenizer(captions), torch.cat([tokenizer([caption]) for caption in captions]))


def test_the_pad_id_is_the_vocabularys(tmp_path):
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


# --- learning


LEARN = """
import sys
from pathlib import Path
from random import Random
from flipscale.data.text.vocabulary import learn_vocab
random = Random(1)
captions = [
    " ".join("".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(1, 6))) for _ in range(8))
    for _ in range(300)
]
random.seed(int(sys.argv[2]))
random.shuffle(captions)
print(len(learn_vocab(iter(captions), 400, Path(sys.argv[1]))))
"""


def test_learning_is_deterministic_across_processes_and_caption_order(tmp_path):
    made = []
    for number in range(3):
        path = tmp_path / f"vocab{number}.txt"
        environment = {**os.environ, "PYTHONHASHSEED": str(number)}
        subprocess.run([sys.executable, "-c", LEARN, str(path), str(number)], check=True, env=environment)
        made.append(path.read_bytes())
    assert made[0].count(b"\n") == 400
    assert made[0] == made[1] == made[2]


def test_a_learned_vocabulary_spells_every_word_of_its_captions(tmp_path):
    captions = ["A Small red star", "left of &amp; above the striped circle", "a zebra"] * 2
    pieces = learn_vocab(captions, 120, tmp_path / "vocab.txt")
    assert pieces[:5] == SPECIAL_TOKENS
    assert len(pieces) <= 120
    assert len(set(pieces)) == len(pieces)
    assert {"star", "circle"} <= set(pieces)
    assert read_vocabulary(str(tmp_path)) == pieces
    ids = WordPieceTokenizer(pieces, 77)(captions)
    assert not (ids == pieces.index("[UNK]")).any()
    assert os.listdir(tmp_path) == ["vocab.txt"]


def test_rare_characters_do_not_crowd_the_alphabet(tmp_path):
    hanzi = "".join(chr(0x4E00 + n) for n in range(3000))
    pieces = learn_vocab([hanzi, "red star " * 50], 1100, tmp_path / "vocab.txt")
    assert len(pieces) <= 1100
    assert set("redstar") < set(pieces)


def test_learning_refuses_what_cannot_work(tmp_path):
    with pytest.raises(UserError, match="hold no text"):
        learn_vocab(["", " "], 100, tmp_path / "vocab.txt")
    with pytest.raises(UserError, match="at least") as error:
        learn_vocab(["abc def"], 10, tmp_path / "vocab.txt")
    least = int(str(error.value).rsplit(" ", 1)[1])
    assert len(learn_vocab(["abc def"], least, tmp_path / "vocab.txt")) == least
    with pytest.raises(UserError, match="at least"):
        learn_vocab(["abc def"], least - 1, tmp_path / "vocab.txt")


# --- bad vocabularies


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[UNK]\n[CLS]\na\n", r"lacks \[PAD\]; use"),
        (b"[PAD]\na\n", r"lacks \[UNK\] and \[CLS\]; use"),
        (b"", r"lacks \[PAD\] and \[UNK\] and \[CLS\]"),
        (b"[PAD]\n[UNK]\n[CLS]\na\nb\na\n", r"line 6 repeats line 4 \('a'\)"),
        (b"[PAD]\n[UNK]\n\n[CLS]\n", "line 3 is empty"),
        (b"[PAD]\n[UNK]\n[CLS]\n\xff\n", "not UTF-8"),
    ],
)
def test_a_bad_vocab_file_is_one_clear_sentence(tmp_path, content, message):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer("wordpiece", str(tmp_path / "vocab.txt"))


def edited(source: dict, **model) -> dict:
    return {**source, "model": {**source["model"], **model}}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: edited(s, type="BPE"), "holds a BPE tokenizer"),
        (lambda s: edited(s, continuing_subword_prefix="@@"), "needs WordPiece with the prefix ##"),
        (lambda s: {**s, "normalizer": {**s["normalizer"], "lowercase": False}}, "cased vocabulary"),
        (lambda s: edited(s, vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 7}), "does not number its word pieces"),
        (lambda s: {"something": "else"}, "is not a tokenizer.json"),
        (lambda s: [], "is not a tokenizer.json"),
        (lambda s: edited(s, vocab=["a", "b"]), "is not a tokenizer.json"),
    ],
)
def test_a_bad_tokenizer_json_is_one_clear_sentence(tokenizer, tmp_path, edit, message):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message):
        load_tokenizer("wordpiece", str(tmp_path))


def test_other_bad_sources(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    for arguments, message in [
        (("wordpiece", None), "tokenizer.vocab is missing"),
        (("wordpiece", str(tmp_path / "none.txt")), "does not exist"),
        (("wordpiece", "../no/such/place"), "does not exist"),
        (("wordpiece", str(tmp_path)), "holds neither tokenizer.json nor vocab.txt"),
        (("wordpiece", str(tmp_path / "broken.json")), "is not a tokenizer.json"),
        (("clip_bpe", "vocab.txt"), "brings its own vocabulary"),
        (("spm", None), "use wordpiece or clip_bpe"),
    ]:
        with pytest.raises(UserError, match=message):
            load_tokenizer(*arguments)
    with pytest.raises(UserError, match="context_length is 1"):
        WordPieceTokenizer(SPECIAL_TOKENS, 1)


@pytest.mark.parametrize("settings", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_hub_name_without_network_fails_soon_and_clearly(tmp_path, settings):
    """The hub client reads its settings when it is imported, hence a process of its own."""
    code = "from flipscale.data.text.vocabulary import read_vocabulary; read_vocabulary('bert-base-uncased')"
    environment = {**os.environ, "HF_HOME": str(tmp_path), **settings}
    start = time.monotonic()
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert time.monotonic() - start < 20
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("flipscale.errors.UserError: tokenizer vocabulary bert-base-uncased")
    assert "hub is out of reach" in last


def test_a_hub_model_is_read_from_the_local_cache(vocab, tokenizer, tmp_path):
    """A cache laid out as the hub client does it, used offline."""
    revision = "0" * 40
    model = tmp_path / "hub" / "models--org--bert"
    (model / "snapshots" / revision).mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(revision)
    (model / "snapshots" / revision / "vocab.txt").write_bytes(vocab.read_bytes())
    code = (
        "from flipscale.data.text.vocabulary import read_vocabulary; print(len(read_vocabulary('org/bert')))"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == str(tokenizer.vocab_size), run.stderr


# --- CLIP


def test_clip_ids_are_open_clips():
    tokenizer = load_tokenizer("clip_bpe")
    assert (tokenizer.context_length, tokenizer.vocab_size) == (77, 49408)
    captions = thousand_captions()
    assert torch.equal(tokenizer(captions), import_open_clip().get_tokenizer("ViT-B-32")(captions))
    with pytest.raises(UserError, match="context_length is 2"):
        ClipTokenizer(2)


def test_clips_cache_of_words_is_bounded(monkeypatch):
    monkeypatch.setattr("flipscale.data.text.tokenizer._MOST_CACHED_WORDS", 50)
    tokenizer = ClipTokenizer()
    want = ClipTokenizer()(["word1 word2"])
    for start in range(0, 400, 40):
        tokenizer([f"{chr(97 + n % 26) * (n // 26 + 1)}" for n in range(start, start + 40)])
        assert len(tokenizer._bpe.cache) <= 50 + 40
    assert torch.equal(tokenizer(["word1 word2"]), want)


# --- loader workers


class Captions(torch.utils.data.Dataset):
    def __init__(self, tokenizer, captions):
        self.tokenizer, self.captions = tokenizer, captions

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, item):
        return self.tokenizer([self.captions[item]])[0]


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
def test_a_pickled_tokenizer_is_the_same(vocab, kind):
    tokenizer = load_tokenizer(kind, str(vocab) if kind == "wordpiece" else None, 20)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.fingerprint == tokenizer.fingerprint
    assert torch.equal(again(ODD), tokenizer(ODD))
