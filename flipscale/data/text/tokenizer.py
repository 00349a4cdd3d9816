"""Tokenizers: captions in, fixed-length token ids out (WordPiece of FLIP, byte-pair encoding of CLIP)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tokenizers import processors

from flipscale.data.text.vocabulary import (
    CLS,
    MASK,
    PAD,
    REQUIRED_TOKENS,
    SEP,
    SPECIAL_TOKENS,
    UNK,
    clean_caption,
    read_vocabulary,
    wordpiece_backend,
)
from flipscale.errors import UserError

WORDPIECE_LENGTH = 32  # tokens (FLIP, section 3.1)
CLIP_LENGTH = 77  # tokens (CLIP)
_MOST_CACHED_WORDS = 500_000  # about 100 MB in each process that tokenizes


class Tokenizer(Protocol):
    """Captions to token ids. Picklable, and safe in forked and spawned loader workers."""

    context_length: int
    vocab_size: int
    padding_id: int
    fingerprint: str
    """SHA-256 over everything the ids depend on: kind, context length and vocabulary."""

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """Token ids, int64 (len(captions), context_length), padded and truncated on the right."""
        ...

    def save(self, directory: Path) -> None:
        """Write into an existing directory what open_clip's get_tokenizer("local-dir:...") needs."""
        ...


class WordPieceTokenizer:
    """BERT's uncased word pieces: [CLS], then up to context_length - 1 pieces, then [PAD]; no [SEP].

    As the released FLIP code with `cls_token=True`, but for the cleaning of captions, which is OpenCLIP's,
    so that an exported model tokenizes identically. A special token spelled out in a caption ("[MASK]")
    becomes that token, as it does for every BERT tokenizer of the transformers library.
    """

    def __init__(self, pieces: Sequence[str], context_length: int = WORDPIECE_LENGTH) -> None:
        """`pieces` in the order of their ids; they hold [PAD], [UNK] and [CLS] (see `read_vocabulary`)."""
        assert all(token in pieces for token in REQUIRED_TOKENS)
        if context_length < 2:
            raise UserError(
                f"tokenizer.context_length is {context_length}; [CLS] and one word piece need at least 2"
            )
        # A loader worker is one process of many: threads would only contend, and threads started before a
        # fork hang after it. Setting this also keeps the library from warning about the fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.context_length = context_length
        self.vocab_size = len(pieces)
        self.padding_id = pieces.index(PAD)
        self.fingerprint = _fingerprint("wordpiece", context_length, pieces)
        self._special = [token for token in SPECIAL_TOKENS if token in pieces]
        self._backend = wordpiece_backend(pieces)
        self._backend.add_special_tokens(self._special)
        self._backend.post_processor = processors.TemplateProcessing(
            single=f"{CLS} $A", special_tokens=[(CLS, pieces.index(CLS))]
        )
        self._serialised = self._backend.to_str(pretty=True)
        self._backend.enable_truncation(context_length)
        self._backend.enable_padding(length=context_length, pad_id=self.padding_id, pad_token=PAD)

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        encodings = self._backend.encode_batch_fast([clean_caption(caption) for caption in captions])
        ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)  # 4 times as fast as torch's
        return torch.from_numpy(ids.reshape(len(captions), self.context_length))

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json.

        The class named there must be the generic one: transformers' BertTokenizer would put [SEP] back.
        """
        names = {PAD: "pad_token", UNK: "unk_token", CLS: "cls_token", SEP: "sep_token", MASK: "mask_token"}
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.context_length,
            "padding_side": "right",
            "truncation_side": "right",
            "clean_up_tokenization_spaces": False,
            **{names[token]: token for token in self._special},
        }
        (directory / "tokenizer.json").write_text(self._serialised, encoding="utf-8")
        (directory / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2) + "\n", encoding="utf-8"
        )


class ClipTokenizer:
    """CLIP's byte-pair encoding of 49,408 tokens (OpenCLIP's SimpleTokenizer); pad id 0."""

    def __init__(self, context_length: int = CLIP_LENGTH) -> None:
        from flipscale.third_party import (
            import_open_clip,
        )  # takes seconds; only the CLIP baseline needs it

        if context_length < 3:
            raise UserError(
                f"tokenizer.context_length is {context_length}; start, end and one token need at least 3"
            )
        self._bpe = import_open_clip().tokenizer.SimpleTokenizer(context_length=context_length)
        self._initial_cache = dict(self._bpe.cache)
        self.context_length = context_length
        self.padding_id = 0
        self.vocab_size: int = self._bpe.vocab_size
        self.fingerprint = _fingerprint("clip_bpe", context_length, list(self._bpe.encoder))

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        # OpenCLIP keeps every word it ever saw: gigabytes in each worker over a web-scale run.
        if len(self._bpe.cache) > _MOST_CACHED_WORDS:
            self._bpe.cache = dict(self._initial_cache)
        return self._bpe(list(captions))

    def save(self, directory: Path) -> None:
        """Nothing to write: OpenCLIP has this tokenizer built in."""

    def __reduce__(self) -> tuple[type[ClipTokenizer], tuple[int]]:
        # Rebuilt rather than copied: unpickling OpenCLIP's object would import open_clip without the fix.
        return ClipTokenizer, (self.context_length,)


def load_tokenizer(kind: str, vocab: str | None = None, context_length: int | None = None) -> Tokenizer:
    """The tokenizer of a job's `data.tokenizer` block.

    kind: 'wordpiece' (`vocab` as `read_vocabulary` takes it; 32 tokens by default) or 'clip_bpe' (no `vocab`;
    77 tokens). Raises UserError if the kind is unknown or the vocabulary unusable.
    """
    if kind == "wordpiece":
        if vocab is None:
            raise UserError(
                "tokenizer.vocab is missing: name a vocab.txt, a directory or a hub name such as "
                "bert-base-uncased, or learn one with `flipscale data vocab`"
            )
        return WordPieceTokenizer(read_vocabulary(vocab), context_length or WORDPIECE_LENGTH)
    if kind == "clip_bpe":
        if vocab is not None:
            raise UserError(
                f"tokenizer.vocab is {vocab}, but clip_bpe brings its own vocabulary; remove the key"
            )
        return ClipTokenizer(context_length or CLIP_LENGTH)
    raise UserError(f"tokenizer.kind is {kind!r}; use wordpiece or clip_bpe")


def _fingerprint(kind: str, context_length: int, pieces: Sequence[str]) -> str:
    # Over the pieces rather than the library's serialisation, whose layout may change between versions.
    content = json.dumps([kind, context_length, list(pieces)])
    return hashlib.sha256(content.encode()).hexdigest()
