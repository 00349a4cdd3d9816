"""Vocabularies: learned the same way each time, read from any source, and refused if they are unusable."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.time_limits import time_limit

from flipscale.data.text.tokenizer import WordPieceTokenizer, load_tokenizer
from flipscale.data.text.vocabulary import SPECIAL_TOKENS, learn_vocab, read_vocabulary
from flipscale.errors import UserError

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


def test_learned_vocabulary_spells_every_word_of_its_captions(tmp_path):
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


def test_learning_without_text_or_room_is_refused(tmp_path):
    with pytest.raises(UserError, match="hold no text"):
        learn_vocab(["", " "], 100, tmp_path / "vocab.txt")
    with pytest.raises(UserError, match="at least") as error:
        learn_vocab(["abc def"], 10, tmp_path / "vocab.txt")
    least = int(str(error.value).rsplit(" ", 1)[1])
    assert len(learn_vocab(["abc def"], least, tmp_path / "vocab.txt")) == least
    with pytest.raises(UserError, match="at least"):
        learn_vocab(["abc def"], least - 1, tmp_path / "vocab.txt")


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
def test_bad_vocab_file_is_refused_in_one_sentence(tmp_path, content, message):
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
def test_bad_tokenizer_json_is_refused_in_one_sentence(tokenizer, tmp_path, edit, message):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message):
        load_tokenizer("wordpiece", str(tmp_path))


def test_other_bad_sources_are_refused(tmp_path):
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
def test_hub_name_without_network_fails_soon_and_clearly(tmp_path, settings):
    """The hub client reads its settings when it is imported, hence a process of its own."""
    code = "from flipscale.data.text.vocabulary import read_vocabulary; read_vocabulary('bert-base-uncased')"
    environment = {**os.environ, "HF_HOME": str(tmp_path), **settings}
    start = time.monotonic()
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert time.monotonic() - start < time_limit(60)  # the client would try for minutes
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("flipscale.errors.UserError: tokenizer vocabulary bert-base-uncased")
    assert "hub is out of reach" in last


def test_hub_model_is_read_from_the_local_cache(vocab, tokenizer, tmp_path):
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


def foreign_tokenizers() -> list[str]:
    """Return files of tokenizers with one value replaced, removed, or nested without an end."""
    whole: dict[str, Any] = {
        "model": {"type": "WordPiece", "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "a": 3}},
        "normalizer": {"type": "BertNormalizer", "lowercase": True},
        "added_tokens": [{"id": 0, "content": "[PAD]"}],
    }
    values = [None, True, -1, 10**30, 1.5, "x", [], [1], {}, {"a": {}}, {"[PAD]": "x"}, {"[PAD]": 10**9}]
    files = ["", "[]", "null", "{" * 100_000, "[" * 100_000, '{"model": 1e999}', "\ufeff{}"]
    for key, inner in (("model", "vocab"), ("model", "type"), ("normalizer", "type"), ("added_tokens", None)):
        for value in values:
            block = whole[key]
            files.append(json.dumps({**whole, key: value}))
            if inner is not None:
                files.append(json.dumps({**whole, key: {**block, inner: value}}))
    files += [json.dumps({**whole, "added_tokens": [{"id": value, "content": value}]}) for value in values]
    return files


def test_foreign_tokenizers_are_read_or_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    read = 0
    for text in foreign_tokenizers():
        path.write_text(text, encoding="utf-8")
        try:
            pieces = read_vocabulary(str(path))
        except UserError as error:
            sentence = str(error)
        else:
            read += 1
            sentence = ""
            WordPieceTokenizer(pieces)(["a"])
        assert "\n" not in sentence
    assert read > 5
