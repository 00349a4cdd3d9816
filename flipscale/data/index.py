"""The index of a training set: every shard's samples, and where each sample's members lie in the tar.

An index is a directory: `index.json` (shards with counts, sizes and modification times; written last) and
`members.bin` (one MEMBER row a sample), so that any sample is one read at a known offset.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from braceexpand import braceexpand

from flipscale.errors import UserError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
VERSION = 1
# tarfile answers absurd lengths in a header with the latter three.
_DAMAGE = (tarfile.ReadError, ValueError, OverflowError, MemoryError)

MEMBER = np.dtype(
    [
        ("image", "<u8"),  # byte offset of the image in the tar
        ("text", "<u8"),
        ("cls", "<u8"),
        ("image_bytes", "<u4"),  # 0 bytes: the sample has no such member
        ("text_bytes", "<u4"),
        ("cls_bytes", "<u4"),
    ]
)


@dataclass(frozen=True)
class Shard:
    path: str
    samples: int
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Damage:
    """A shard that ends before its last sample does; the samples before that point are in the index."""

    path: str
    samples: int
    reason: str


@dataclass(frozen=True)
class Index:
    """Shards in order, and the directory that holds their members table."""

    directory: Path
    shards: tuple[Shard, ...]
    damaged: tuple[Damage, ...]

    @cached_property
    def counts(self) -> np.ndarray:
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    @cached_property
    def samples(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the data: names, sizes and sample counts of the shards, wherever they lie."""
        identity = [[os.path.basename(s.path), s.bytes, s.samples] for s in self.shards]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    @cached_property
    def members(self) -> np.memmap:
        return np.memmap(self.directory / "members.bin", dtype=MEMBER, mode="r", shape=(self.samples,))

    @cached_property
    def first_rows(self) -> np.ndarray:
        """Row of each shard's first sample in `members`."""
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]])

    def check_paths(self, paths: list[str], pattern: str) -> None:
        """Raise UserError where the index is not of the shards at `paths`, which `pattern` names."""
        if [shard.path for shard in self.shards] != paths:
            raise UserError(
                f"the index in {self.directory} is of {len(self.shards)} shards from {self.shards[0].path} "
                f"on, not of data.train = {pattern}; make it for these with `flipscale data index`"
            )

    def verify(self) -> None:
        """Raise UserError naming a shard that is missing or changed since the index was made."""

        def problem(shard: Shard) -> str | None:
            try:
                status = os.stat(shard.path)
            except OSError as error:
                return f"{shard.path} cannot be opened ({error.strerror})"
            if (status.st_size, status.st_mtime_ns) != (shard.bytes, shard.mtime_ns):
                return f"{shard.path} changed since the index was made"
            return None

        with ThreadPoolExecutor(16) as pool:
            problems = [p for p in pool.map(problem, self.shards) if p]
        if problems:
            more = f" (and {len(problems) - 1} more shards)" if len(problems) > 1 else ""
            raise UserError(
                f"{problems[0]}{more}; restore the shards, or make the index in {self.directory} again "
                "with `flipscale data index`"
            )


def expand_shards(pattern: str) -> list[str]:
    """Expand braces and `::` to shard paths, in order. Raises UserError for bad braces and repeats."""
    paths: list[str] = []
    for part in pattern.split("::"):
        try:
            paths.extend(braceexpand(part))
        except ValueError:  # UnbalancedBracesError
            raise UserError(f"the shard pattern {part!r} has unbalanced braces") from None
    repeated = [path for path, times in Counter(paths).items() if times > 1]
    if repeated:
        raise UserError(f"the shard pattern {pattern!r} names {repeated[0]} more than once")
    return paths


def build_index(
    pattern: str,
    directory: Path,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Index:
    """Scan the shards' tar headers and write the index to `directory`, replacing an index that lies there.

    Args:
        progress: called with (shards done, shards in all).

    Raises UserError for shards that are missing, unreadable or no tar, a set without samples, and a directory
    that cannot be written or holds something else.
    """
    paths = expand_shards(pattern)
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"the shard {missing[0]}{more} of the pattern {pattern!r} does not exist")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()) and not (directory / "members.bin").exists():
            raise UserError(f"{directory} is not empty and holds no index; name another directory for it")
        (directory / "index.json").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"the index directory {directory} cannot be made: {error.strerror}") from None

    shards: list[Shard] = []
    damaged: list[Damage] = []
    with open(directory / "members.bin", "wb") as members:
        for done, scan in enumerate(_scan_all(paths, workers), start=1):
            members.write(scan.members.tobytes())
            shards.append(scan.shard)
            if scan.damage is not None:
                damaged.append(Damage(scan.shard.path, scan.shard.samples, scan.damage))
            progress(done, len(paths))
        members.flush()
        os.fsync(members.fileno())
    if not sum(shard.samples for shard in shards):
        cut = f"; {damaged[0].path} is damaged: {damaged[0].reason}" if damaged else ""
        raise UserError(f"no shard of {pattern!r} holds image-caption pairs (jpg|jpeg|png|webp, txt){cut}")
    index = Index(directory, tuple(shards), tuple(damaged))
    document = {
        "version": VERSION,
        "fingerprint": index.fingerprint,
        "shards": [asdict(shard) for shard in shards],
        "damaged": [asdict(damage) for damage in damaged],
    }
    partial = directory / "index.json.partial"
    partial.write_text(json.dumps(document))
    os.replace(partial, directory / "index.json")
    return index


def load_index(directory: Path) -> Index:
    """Load the index in `directory`. Raises UserError where there is none, or not one of this version."""
    try:
        document = json.loads((directory / "index.json").read_text())
        if document["version"] != VERSION:
            raise UserError(
                f"the index in {directory} has version {document['version']}, not {VERSION}; make it again"
            )
        index = Index(
            directory,
            tuple(Shard(**shard) for shard in document["shards"]),
            tuple(Damage(**damage) for damage in document["damaged"]),
        )
        rows = (directory / "members.bin").stat().st_size / MEMBER.itemsize
    except FileNotFoundError:
        raise UserError(f"there is no index in {directory}; make one with `flipscale data index`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the index in {directory} cannot be read ({error}); make it again") from None
    if rows != index.samples:
        raise UserError(f"the index in {directory} is damaged: members.bin has the wrong size; make it again")
    return index


@dataclass(frozen=True)
class _Scan:
    shard: Shard
    members: np.ndarray
    damage: str | None


def _scan_all(paths: list[str], workers: int) -> Iterator[_Scan]:
    if workers <= 1 or len(paths) == 1:
        yield from map(_scan, paths)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(_scan, paths, chunksize=max(1, min(16, len(paths) // (4 * workers))))


def _scan(path: str) -> _Scan:
    """Read one shard's tar headers."""
    rows: list[tuple[int, ...]] = []
    damage: str | None = None
    try:
        status = os.stat(path)
        rows.extend(row for _, row in _samples(path))
    except _DAMAGE as error:
        if not rows and not _begins_as_tar(path):
            raise UserError(f"{path} is not an uncompressed tar file ({error})") from None
        damage = f"{error} after {len(rows)} samples"
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    shard = Shard(path, len(rows), status.st_size, status.st_mtime_ns)
    return _Scan(shard, np.array(rows, dtype=MEMBER), damage)


def _begins_as_tar(path: str) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except _DAMAGE:
        return False


def _samples(path: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (key, MEMBER row) of each sample: consecutive members of one key with an image or a caption.

    Where damage cuts a member, its sample is left out, since it is not known to be whole.
    """
    current: str | None = None
    held: set[int] = set()
    row = [0] * 6
    for key, field, offset, size in _members(path):
        if key != current or field in held:
            if current is not None and held & {0, 1}:
                yield current, tuple(row)
            current, held, row = key, set(), [0] * 6
        held.add(field)
        row[field], row[3 + field] = offset, size
    if current is not None and held & {0, 1}:
        yield current, tuple(row)


def _members(path: str) -> Iterator[tuple[str, int, int, int]]:
    """Yield (key, field of MEMBER, offset, bytes) of the image, caption and label members of a tar.

    Raises tarfile.ReadError for a tar that is damaged or does not end as a tar ends.
    """
    size = os.path.getsize(path)
    with tarfile.open(path, "r:", encoding="utf-8", errors="backslashreplace") as tar:
        for member in tar:
            if not member.isreg() or member.issparse():
                continue
            key, extension = split_name(member.name)
            field = _FIELDS.get(extension)
            if field is not None:
                yield key, field, member.offset_data, min(member.size, 2**32 - 1)
            if not 0 <= member.size <= size - member.offset_data:  # only now: its key ends the sample before
                raise tarfile.ReadError("unexpected end of data")
        _check_end(tar)


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise tarfile.ReadError unless `tar` stopped at its end mark, a block of zeros.

    tarfile itself takes a header that is cut or overwritten for the end of the archive.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    mark, rest = tar.fileobj.read(tarfile.BLOCKSIZE), tar.fileobj.read(1 << 20)
    if len(mark) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("the end mark is missing")
    if any(mark):
        raise tarfile.ReadError(f"no valid header at byte {tar.offset}")
    if any(rest):
        raise tarfile.ReadError(f"more data behind the end mark at byte {tar.offset}")


_FIELDS = dict.fromkeys(IMAGE_EXTENSIONS, 0) | {"txt": 1, "cls": 2}


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name as webdataset does: key up to the first dot of the last path part, extension."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def sample_key(path: str, ordinal: int) -> str:
    """Key of sample number `ordinal` of a shard, found by reading its headers again; "?" if it cannot be."""
    keys = _keys(path)
    return keys[ordinal] if ordinal < len(keys) else "?"


@lru_cache(maxsize=16)  # a shard with one bad sample has more, and reading 10,000 headers takes a second
def _keys(path: str) -> list[str]:
    keys: list[str] = []
    with suppress(*_DAMAGE, OSError):  # of a shard that is cut, the keys up to there
        keys.extend(key for key, _ in _samples(path))
    return keys
