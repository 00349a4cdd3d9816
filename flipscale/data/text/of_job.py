"""The tokenizer of a job."""

from __future__ import annotations

from pathlib import Path

from flipscale.config import TokenizerSource
from flipscale.data.text.tokenizer import Tokenizer, load_tokenizer


def load_job_tokenizer(source: TokenizerSource, saved: Path | None = None) -> Tokenizer:
    """Load the tokenizer that a job describes.

    Args:
        source: The `data.tokenizer` block of the job.
        saved: The tokenizer directory of a run. Its vocabulary replaces `source.vocab`, which may be gone
            since the run began.

    Raises:
        UserError: If the vocabulary is missing or unusable.
    """
    vocab = source.vocab
    if saved is not None:
        vocab = str(saved) if source.kind == "wordpiece" else None
    return load_tokenizer(source.kind, vocab, source.context_length)
