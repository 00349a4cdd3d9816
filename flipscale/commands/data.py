"""`flipscale data synth|index|check|vocab|audit`."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from flipscale.commands.table import print_table
from flipscale.config import parse_count
from flipscale.data.audit import audit
from flipscale.data.check import check_index
from flipscale.data.decode import BadSample, decode_caption
from flipscale.data.index import Index, build_index
from flipscale.data.quarantine import BadRecord
from flipscale.data.synthetic import synthesize
from flipscale.data.vocabulary import learn_vocab
from flipscale.errors import RunError, UserError
from flipscale.run_directory import existing_run


def make_synthetic(
    out: Path, size: int, train: int, val: int, test: int, shard_size: int, seed: int, workers: int | None
) -> None:
    with _progress("rendering") as advance:
        summary = synthesize(
            out,
            image_size=size,
            train=train,
            val=val,
            test=test,
            shard_size=shard_size,
            seed=seed,
            workers=_cores(workers),
            progress=lambda samples: advance(samples, None),
        )
    for split in summary.splits:
        print(f"{split.name}: {split.samples} samples in {split.pattern} ({split.bytes / 1e6:.1f} MB)")
    print(f"class names: {summary.classnames}, templates: {summary.templates}")


def make_index(shards: str, out: Path, workers: int | None) -> None:
    index = _indexed(shards, out, workers)
    print(
        f"{out}: {index.samples} samples in {len(index.shards)} shards, fingerprint {index.fingerprint[:16]}"
    )
    for damage in index.damaged:
        print(f"warning: {damage.path} is damaged: {damage.reason}", file=sys.stderr)


def check_shards(shards: str, max_image_pixels: str, workers: int | None, as_json: bool) -> None:
    try:
        limit = parse_count(max_image_pixels)
    except ValueError as error:
        raise UserError(f"--max-image-pixels: {error}") from None
    if limit == 0:
        raise UserError("--max-image-pixels is 0, which no image can meet; give for example 100M")
    with tempfile.TemporaryDirectory() as scratch:
        index = _indexed(shards, Path(scratch) / "index", workers)
        with _progress("checking") as advance:
            reports = []
            for report in check_index(index, limit, _cores(workers)):
                reports.append(report)
                advance(report.samples, index.samples)
    bad = [record for report in reports for record in report.bad]
    sides = sum((report.sides for report in reports), Counter())
    words = sum((report.caption_words for report in reports), Counter())
    document = {
        "shards": len(index.shards),
        "samples": index.samples,
        "good": index.samples - len(bad),
        "bad": [asdict(record) for record in bad],
        "damaged_shards": [asdict(damage) for damage in index.damaged],
        "shorter_side_pixels": _quantiles(sides),
        "caption_words": _quantiles(words),
    }
    if as_json:
        print(json.dumps(document, indent=2))
        return
    print(f"{index.samples} samples in {len(index.shards)} shards: {len(bad)} cannot be used")
    print(f"shorter side in pixels: {_sentence(sides)}; words a caption: {_sentence(words)}")
    for damage in index.damaged:
        print(f"{damage.path} is damaged: {damage.reason}")
    if bad:
        examples = {_kind(record): f"{record.key} in {record.path}" for record in reversed(bad)}
        kinds = Counter(_kind(record) for record in bad).most_common()
        rows = [(kind, str(count), examples[kind]) for kind, count in kinds]
        print_table(("reason", "samples", "for example"), rows)


def _kind(record: BadRecord) -> str:
    """The reason without its numbers, which differ from image to image."""
    return re.sub(r"\d+", "N", record.reason)


def make_vocabulary(shards: str, out: Path, size: int) -> None:
    if out.suffix != ".txt":
        raise UserError(f"{out} must end in .txt: a vocabulary is a file such as vocab.txt")
    with tempfile.TemporaryDirectory() as scratch:
        index = _indexed(shards, Path(scratch) / "index", None)
        pieces = learn_vocab(_captions(index), size, out)
    print(f"{out}: {len(pieces)} word pieces from the captions of {index.samples} samples")


def audit_run(path: Path, as_json: bool) -> None:
    """Exit 1 where the run did not read what it should have read."""
    run = existing_run(path)
    report = audit(run, workers=_cores(None))
    if as_json:
        print(json.dumps(asdict(report), indent=2))
    else:
        verdicts = ["equal" if mark.recorded == mark.expected else "DIFFERENT" for mark in report.marks]
        print_table(
            ("samples seen", "recorded by", "order digest", "recomputed", ""),
            [
                (str(mark.samples_seen), mark.source, mark.recorded, mark.expected, verdict)
                for mark, verdict in zip(report.marks, verdicts, strict=True)
            ],
        )
    if not report.proven:
        raise RunError(f"{path} did not read the samples that its order prescribes; see the marks above")
    print(
        f"{report.samples_seen} samples seen ({report.epochs:.4g} epochs of {report.dataset_samples}): "
        f"0 repeated, 0 skipped; {report.unusable} unusable samples replaced at {report.replaced} positions",
        file=sys.stderr if as_json else sys.stdout,
    )


def _indexed(shards: str, out: Path, workers: int | None) -> Index:
    with _progress("indexing") as advance:
        return build_index(shards, out, workers=_cores(workers), progress=lambda _, total: advance(1, total))


def _captions(index: Index) -> Iterator[str]:
    rows = iter(index.members)
    for shard in index.shards:
        with open(shard.path, "rb") as file:
            for _ in range(shard.samples):
                member = next(rows)
                file.seek(int(member["text"]))
                try:
                    yield decode_caption(file.read(int(member["text_bytes"])))
                except BadSample:
                    continue  # `data check` reports it; a vocabulary needs no complete set


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on a terminal; yields a function that takes (further done, total)."""
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, advance=done, total=total)


def _cores(workers: int | None) -> int:
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; give at least 1")
    return len(os.sched_getaffinity(0)) if workers is None else workers


def _quantiles(counts: Counter[int]) -> dict[str, int]:
    if not counts:
        return {}
    values = sorted(counts)
    below = list(accumulate(counts[value] for value in values))
    median = values[bisect_right(below, below[-1] // 2)]
    return {"smallest": values[0], "median": median, "largest": values[-1]}


def _sentence(counts: Counter[int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in _quantiles(counts).items()) or "none"
