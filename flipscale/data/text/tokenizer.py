"""Tokenizers: captions in, token ids of a fixed length out (FLIP's WordPiece, CLIP's byte-pair encoding)."""

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
    """A map from captions to token ids. It can be pickled and used in forked and spawned loader workers."""

    context_length: int
    vocab_size: int
    padding_id: int
    fingerprint: str
    """SHA-256 over all that the ids depend on: kind, context length and vocabulary."""

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """Return token ids, int64 (len(captions), context_length), padded and truncated on the right."""
        ...

    def save(self, directory: Path) -> None:
        """Write the files that open_clip's get_tokenizer("local-dir:...") needs to an existing directory."""
        ...


class WordPieceTokenizer:
    """BERT's uncased word pieces: [CLS], then up to context_length - 1 pieces, then [PAD]; no [SEP].

    This is the tokenizer of the released FLIP code with `cls_token=True`, except that captions are cleaned as
    in OpenCLIP, so that an exported model tokenizes identically. A special token that is spelled out in a
    caption ("[MASK]") becomes that token, as with every BERT tokenizer of the transformers library.

    Args:
        pieces: Word pieces in the order of their ids, including [PAD], [UNK] and [CLS] (see
            `read_vocabulary`).
        context_length: Tokens per caption; at least 2.

    Raises:
        UserError: If the context length is too small.
    """

    def __init__(self, pieces: Sequence[str], context_length: int = WORDPIECE_LENGTH) -> None:
        assert all(token in pieces for token in REQUIRED_TOKENS)
        if context_length < 2:
            raise UserError(
                f"tokenizer.context_length is {context_length}; [CLS] and one word piece need at least 2"
            )

        # A loader worker is one process of many, so threads would only compete for cores. Threads that were
        # started before a fork hang after it. The setting also suppresses the library's warning about forks.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

        self.context_length = context_length
        self.vocab_size = len(pieces)
        self.padding_id = pieces.index(PAD)
        self.fingerprint = _fingerprint("wordpiece", context_length, pieces)

        self._special = [token for token in SPECIAL_TOKENS if token in pieces]
        self._backend = wordpiece_backend(pieces)
        self._backend.add_special_tokens(list[Any](self._special))
        self._backend.post_processor = processors.TemplateProcessing(
            single=f"{CLS} $A", special_tokens=[(CLS, pieces.index(CLS))]
        )

        self._serialised = self._backend.to_str(pretty=True)
        # The serialised tokenizer has neither truncation nor padding, as the hub's files.
        self._backend.enable_truncation(context_length)
        self._backend.enable_padding(length=context_length, pad_id=self.padding_id, pad_token=PAD)

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """Return token ids, int64 (len(captions), context_length)."""
        encodings = self._backend.encode_batch_fast([clean_caption(caption) for caption in captions])
        ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)  # 4 times as fast as torch
        return torch.as_tensor(ids.reshape(len(captions), self.context_length))

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json.

        The config must name the generic class: transformers' BertTokenizer would insert [SEP] again.
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
    """CLIP's byte-pair encoding with 49,408 tokens (OpenCLIP's SimpleTokenizer); its padding id is 0.

    Args:
        context_length: Tokens per caption; at least 3.

    Raises:
        UserError: If the context length is too small.
    """

    def __init__(self, context_length: int = CLIP_LENGTH) -> None:
        # Imported here since it takes seconds, and only the CLIP baseline needs it.
        from flipscale.third_party import import_open_clip

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
        """Return token ids, int64 (len(captions), context_length)."""
        # OpenCLIP keeps every word it has seen: gigabytes per worker over a web-scale run.
        if len(self._bpe.cache) > _MOST_CACHED_WORDS:
            self._bpe.cache = dict(self._initial_cache)

        return self._bpe(list(captions))

    def save(self, directory: Path) -> None:
        """Write nothing, since OpenCLIP has this tokenizer built in."""

    def __reduce__(self) -> tuple[type[ClipTokenizer], tuple[int]]:
        # Rebuilt instead of copied: unpickling OpenCLIP's object would import open_clip without the fix.
        return ClipTokenizer, (self.context_length,)


def load_tokenizer(kind: str, vocab: str | None = None, context_length: int | None = None) -> Tokenizer:
    """Return the tokenizer of a job's `data.tokenizer` block.

    Args:
        kind: "wordpiece" or "clip_bpe".
        vocab: Source of the word pieces (see `read_vocabulary`); None for "clip_bpe".
        context_length: Tokens per caption; default: 32 for "wordpiece", 77 for "clip_bpe".

    Raises:
        UserError: If the kind is unknown or the vocabulary is not usable.
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
    # Over the pieces, since the layout of the library's serialisation may change between versions.
    content = json.dumps([kind, context_length, list(pieces)])
    return hashlib.sha256(content.encode()).hexdigest()
