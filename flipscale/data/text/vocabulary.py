"""Word-piece vocabularies: read from a file, a directory or the hub, or learned from captions."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ftfy
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from flipscale.documents import parse_object
from flipscale.errors import UserError
from flipscale.files import read_regular, write_output

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL_TOKENS = (PAD, UNK, CLS, SEP, MASK)
REQUIRED_TOKENS = (PAD, UNK, CLS)
CONTINUATION = "##"  # marks a piece that does not begin a word, as in BERT

_FILES = ("tokenizer.json", "vocab.txt")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_TIMEOUT = 10  # seconds until the hub counts as out of reach
_ALPHABET_SIZE = 1000  # characters that a learned vocabulary can spell; words with rarer ones become [UNK]
_LARGEST = 256 << 20  # bytes of a vocabulary; one of 250,000 pieces has 20 MB as tokenizer.json
_MOST_REPEATS = 4096  # copies of a word handed to the trainer at a time, which bounds the list


def clean_caption(caption: str) -> str:
    """Clean a caption as OpenCLIP's HFTokenizer does: resolve mojibake and HTML entities, collapse blanks.

    Entities are resolved twice, since crawled alt text is often escaped twice ("&amp;lt;").
    """
    # Printable ASCII without an ampersand has nothing to resolve.
    if not caption.isascii() or not caption.isprintable() or "&" in caption:
        caption = html.unescape(html.unescape(ftfy.fix_text(caption)))

    return " ".join(caption.split())


def wordpiece_backend(pieces: Sequence[str]) -> Tokenizer:
    """Return BERT's uncased tokenizer: lower case, no accents, words, then word pieces.

    It adds no special tokens, does not pad and does not truncate.

    Args:
        pieces: Word pieces in the order of their ids.
    """
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(
        models.WordPiece(vocab=vocabulary, unk_token=UNK, continuing_subword_prefix=CONTINUATION)
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def read_vocabulary(source: str) -> tuple[str, ...]:
    """Return the word pieces of a vocabulary, in the order of their ids.

    Only the list of pieces is used. WordPieceTokenizer fixes how text is cleaned, split and framed, and no
    code is taken from the hub.

    Args:
        source: A vocab.txt (one piece per line), a tokenizer.json, a directory with either, or the name of a
            model on the Hugging Face hub, whose local cache is searched first.

    Raises:
        UserError: If the vocabulary is not available, not WordPiece, cased, or lacks [PAD], [UNK] or [CLS].
    """
    path = _locate(source)
    pieces = _read_json(path) if path.suffix == ".json" else _read_lines(path)
    missing = [token for token in REQUIRED_TOKENS if token not in set(pieces)]
    if missing:
        raise UserError(
            f"tokenizer vocabulary {source} lacks {' and '.join(missing)}; "
            "use a BERT-style vocabulary, or learn one with `flipscale data vocab`"
        )

    return pieces


def learn_vocab(captions: Iterable[str], size: int, path: Path, *, min_frequency: int = 2) -> tuple[str, ...]:
    """Learn a vocabulary from captions, and write it to a vocab.txt.

    The pieces are the special tokens ([PAD] = 0), then the alphabet, then merges, the most frequent first.
    They are a pure function of the multiset of captions. By itself, the trainer numbers the alphabet by the
    iteration order of a hash map. It breaks ties between equally frequent pairs by that number, and so learns
    another vocabulary each time. Here, the alphabet is numbered beforehand. Memory grows with the number of
    distinct words, not of captions.

    Args:
        captions: Captions to learn from.
        size: Most pieces to learn.
        path: File to write.
        min_frequency: Least occurrences of a pair that is merged.

    Returns:
        The pieces in the order of their ids; fewer than `size` if no frequent pair is left.

    Raises:
        UserError: If all texts are empty, or `size` has no room for the alphabet.
    """
    backend = wordpiece_backend((UNK,))
    words: Counter[str] = Counter()
    for caption in captions:
        normal = backend.normalizer.normalize_str(clean_caption(caption))
        words.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    if not words:
        raise UserError(
            "no vocabulary can be learned: the captions hold no text; name their source with --captions, or "
            "look at the shards with `flipscale data check`"
        )

    letters: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    by_frequency = sorted(letters, key=lambda letter: (-letters[letter], letter))
    alphabet = sorted(by_frequency[:_ALPHABET_SIZE])

    later = {letter for word in words for letter in word[1:]}
    numbered = [
        *SPECIAL_TOKENS,
        *alphabet,
        *(CONTINUATION + letter for letter in alphabet if letter in later),
    ]
    if size < len(numbered):
        raise UserError(
            f"a vocabulary of {size} has no room for the captions' alphabet; ask for at least {len(numbered)}"
        )

    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        special_tokens=numbered,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(_repeated(words), trainer)

    ids = backend.get_vocab(with_added_tokens=False)
    pieces = tuple(sorted(ids, key=ids.__getitem__))
    write_vocabulary(pieces, path)

    return pieces


def write_vocabulary(pieces: Sequence[str], path: Path) -> None:
    """Write one piece per line, so that the line number is the id. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_output(path, "".join(piece + "\n" for piece in pieces))


def _repeated(words: Counter[str]) -> Iterable[list[str]]:
    """Yield every word as often as it was counted."""
    for word, count in words.items():
        while count > 0:
            yield [word] * min(count, _MOST_REPEATS)
            count -= _MOST_REPEATS


def _locate(source: str) -> Path:
    """Return the file of a vocabulary (see `read_vocabulary`)."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for name in _FILES:
            if (path / name).is_file():
                return path / name
        raise UserError(
            f"tokenizer directory {source} holds neither {' nor '.join(_FILES)}; name one that does"
        )

    if path.suffix in (".txt", ".json") or not _HUB_NAME.fullmatch(source):
        raise UserError(
            f"tokenizer vocabulary {source} does not exist; name a vocab.txt, a directory or a hub name"
        )

    return _fetch(source)


def _fetch(name: str) -> Path:
    """Return the hub's file of a model, from the local cache or by download."""
    # Imported here since it costs 0.3 s, and only hub names need it.
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
    )
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    for file in _FILES:
        try:
            return Path(hf_hub_download(name, file, local_files_only=True))
        except LocalEntryNotFoundError:
            continue

    for file in _FILES:
        try:
            # A request of its own, since hf_hub_download retries for 20 s and more without a network.
            get_hf_file_metadata(hf_hub_url(name, file), timeout=_HUB_TIMEOUT)
            return Path(hf_hub_download(name, file, etag_timeout=_HUB_TIMEOUT))
        except RepositoryNotFoundError as error:
            raise UserError(
                f"tokenizer vocabulary {name} is neither a local path nor a public model on the Hugging Face "
                "hub; check the name"
            ) from error
        except EntryNotFoundError:
            continue
        except Exception as error:  # of the hub client or its HTTP library, which depends on the version
            raise UserError(
                f"tokenizer vocabulary {name} is not a local path, not in the hub cache, and the Hugging "
                f"Face hub is out of reach ({type(error).__name__}); name a vocab.txt or a tokenizer "
                "directory"
            ) from error

    raise UserError(f"hub model {name} has neither {' nor '.join(_FILES)}; name a BERT-style model")


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"tokenizer vocabulary {path} has more than {_LARGEST >> 20} MiB; name another")
        return read_regular(path).decode()
    except IsADirectoryError:
        raise UserError(f"tokenizer vocabulary {path} is not a regular file; name another") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"tokenizer vocabulary {path} is not UTF-8 (byte {error.start}); convert it"
        ) from error
    except OSError as error:
        raise UserError(
            f"tokenizer vocabulary {path} cannot be read ({error.strerror}); restore it"
        ) from error


def _read_lines(path: Path) -> tuple[str, ...]:
    # Not splitlines(): some vocabularies have pieces that Unicode counts as line breaks.
    lines = _read_text(path).split("\n")
    while lines and not lines[-1]:
        lines.pop()

    line_of: dict[str, int] = {}
    for number, piece in enumerate(lines, start=1):
        if not piece or piece in line_of:
            fault = f"repeats line {line_of[piece]} ({piece!r})" if piece else "is empty"
            raise UserError(
                f"tokenizer vocabulary {path}, line {number} {fault}; give each line its own word piece"
            )
        line_of[piece] = number

    return tuple(lines)


def _read_json(path: Path) -> tuple[str, ...]:
    try:
        content = parse_object(_read_text(path).encode())
        model: dict[str, Any] = content["model"]
        normalizer: dict[str, Any] = content.get("normalizer") or {}
        tokens: list[dict[str, Any]] = content.get("added_tokens") or []

        kind = model.get("type", "unknown")
        prefix = model.get("continuing_subword_prefix", CONTINUATION)
        cased = normalizer.get("type") == "BertNormalizer" and not normalizer.get("lowercase", True)

        # The model's own pieces come last: their ids hold if an added token is named as well.
        added = {str(token["content"]): token["id"] for token in tokens}
        ids: dict[str, int] = {**added, **dict(model["vocab"])}
        pieces = sorted(ids, key=ids.__getitem__)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        reason = str(error).split("\n")[0][:200]
        raise UserError(
            f"{path} is not a tokenizer.json of the tokenizers library ({reason}); name another"
        ) from error

    if kind != "WordPiece" or prefix != CONTINUATION:
        raise UserError(
            f"{path} holds a {kind} tokenizer; flipscale needs WordPiece with the prefix {CONTINUATION}"
        )

    if cased:
        raise UserError(
            f"{path} is a cased vocabulary, but flipscale lower-cases captions; use the uncased one"
        )

    if [ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise UserError(
            f"{path} does not number its word pieces 0 to {len(pieces) - 1}; repair or replace it"
        )

    return tuple(pieces)
