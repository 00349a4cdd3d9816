"""`flipscale data synth|index|check|vocab|audit`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from flipscale.cli.console import print_table
from flipscale.config import parse_count
from flipscale.data.checks.histograms import draw_histogram, median
from flipscale.data.checks.scan import Checking, ShardReport, check_shards, duplicates
from flipscale.data.quarantine import BadSample, kind
from flipscale.data.samples.decode import decode_caption
from flipscale.data.shards.index import Index, expand_shards
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.source import ShardSource
from flipscale.data.shards.storage import Storage
from flipscale.data.synthetic.dataset import synthesize
from flipscale.data.text.vocabulary import learn_vocab
from flipscale.errors import RunError, UserError
from flipscale.formatting import format_megabytes
from flipscale.runs.audit import audit
from flipscale.runs.directory import existing_run


def make_synthetic(
    out: Path, size: int, train: int, val: int, test: int, shard_size: int, seed: int, workers: int | None
) -> None:
    with _progress("rendering") as show:
        summary = synthesize(
            out,
            image_size=size,
            train=train,
            val=val,
            test=test,
            shard_size=shard_size,
            seed=seed,
            workers=_cores(workers),
            progress=lambda samples: show(advance=samples),
        )
    for split in summary.splits:
        print(f"{split.name}: {split.samples} samples in {split.pattern} ({format_megabytes(split.bytes)})")
    print(f"class names: {summary.classnames}, templates: {summary.templates}")


def make_index(
    shards: str,
    out: Path,
    workers: int | None,
    allow_pipe: list[str],
    members: bool,
    from_stats: bool,
) -> None:
    with _progress("indexing") as show:
        index = build_index(
            shards,
            out,
            workers=_cores(workers),
            members=members,
            from_stats=from_stats,
            storage=Storage(tuple(allow_pipe)),
            progress=lambda done, total: show(completed=done, total=total),
        )
    print(
        f"{out}: {index.samples} samples in {len(index.shards)} shards, fingerprint {index.fingerprint[:16]}"
    )
    for damage in index.damaged:
        print(f"warning: {damage.path} is damaged: {damage.reason}", file=sys.stderr)


def check_data(
    shards: str,
    max_image_pixels: str,
    workers: int | None,
    allow_pipe: list[str],
    clean: Path | None,
    pictures: Path | None,
    as_json: bool,
) -> None:
    try:
        limit = parse_count(max_image_pixels)
    except ValueError as error:
        raise UserError(f"--max-image-pixels: {error}") from None
    if limit == 0:
        raise UserError("--max-image-pixels is 0, which no image can meet; give for example 100M")
    paths = expand_shards(shards)
    if pictures is not None:
        _make_directory(pictures, "--report")
    if clean is not None:
        _make_directory(clean, "--fix")
        if any(clean.iterdir()):
            raise UserError(f"--fix: {clean} is not empty; name a new directory for the clean shards")
    reports: list[ShardReport] = []
    with _progress("checking") as show:
        checking = Checking(limit, clean, Storage(tuple(allow_pipe)))
        for report in check_shards(paths, checking, _cores(workers)):
            reports.append(report)
            show(completed=len(reports), total=len(paths))
    summary = _summary(reports)
    if clean is not None:
        summary["clean"] = {
            "shards": str(clean / f"{{000000..{len(paths) - 1:06d}}}.tar"),
            "samples": sum(report.written for report in reports),
        }
    if pictures is not None:
        _draw(reports, summary, pictures)
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        _print_summary(reports, summary)


def _make_directory(path: Path, option: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: the directory {path} cannot be made: {error.strerror}") from None


def _summary(reports: list[ShardReport]) -> dict[str, Any]:
    bad = [record for report in reports for record in report.bad]
    samples = sum(report.samples for report in reports)
    hashes = np.concatenate([report.hashes for report in reports])
    oddities = sum((report.oddities for report in reports), Counter[str]())
    return {
        "shards": len(reports),
        "bytes": sum(report.bytes for report in reports),
        "samples": samples,
        "good": samples - len(bad),
        "bad": [asdict(record) for record in bad],
        "reasons": dict(Counter(kind(record.reason) for record in bad).most_common()),
        "damaged_shards": [
            {"path": report.path, "samples": report.samples, "reason": report.damage}
            for report in reports
            if report.damage is not None
        ],
        "duplicate_keys": len(duplicates(hashes[:, 0])),
        "duplicate_keys_within_a_shard": sum(len(report.repeated_keys) for report in reports),
        "duplicate_images": len(duplicates(hashes[:, 1])),
        "oddities": dict(oddities.most_common()),
        "shorter_side_pixels": _quantiles(_sides(reports)),
        "caption_words": _quantiles(_words(reports)),
    }


def _print_summary(reports: list[ShardReport], summary: dict[str, Any]) -> None:
    print(
        f"{summary['samples']} samples in {summary['shards']} shards: "
        f"{len(summary['bad'])} cannot be used ({format_megabytes(summary['bytes'])} in all)"
    )
    print(
        f"shorter side in pixels: {_sentence(_sides(reports))}; words a caption: {_sentence(_words(reports))}"
    )
    print(
        f"come more than once: {summary['duplicate_keys']} keys "
        f"({summary['duplicate_keys_within_a_shard']} of them within one shard), "
        f"{summary['duplicate_images']} images"
    )
    for damage in summary["damaged_shards"]:
        print(f"{damage['path']} is damaged: {damage['reason']}")
    if summary["oddities"]:
        print("worth a look: " + ", ".join(f"{n} {name}" for name, n in summary["oddities"].items()))
    bad = [record for report in reports for record in report.bad]
    if bad:
        examples = {kind(record.reason): f"{record.key} in {record.path}" for record in reversed(bad)}
        rows = [(reason, str(count), examples[reason]) for reason, count in summary["reasons"].items()]
        print_table(("reason", "samples", "for example"), rows)
    if "clean" in summary:
        print(f"clean: {summary['clean']['samples']} samples in {summary['clean']['shards']}")


def _draw(reports: list[ShardReport], summary: dict[str, Any], directory: Path) -> None:
    draw_histogram(_sides(reports), "Shorter side of the images", "pixels", directory / "image_sizes.png")
    draw_histogram(_words(reports), "Length of the captions", "words", directory / "caption_lengths.png")
    (directory / "report.json").write_text(json.dumps(summary, indent=2) + "\n")


def _sides(reports: list[ShardReport]) -> Counter[int]:
    return sum((report.sides for report in reports), Counter[int]())


def _words(reports: list[ShardReport]) -> Counter[int]:
    return sum((report.caption_words for report in reports), Counter[int]())


def make_vocabulary(shards: str, out: Path, size: int) -> None:
    if out.suffix != ".txt":
        raise UserError(f"{out} must end in .txt: a vocabulary is a file such as vocab.txt")
    with tempfile.TemporaryDirectory() as scratch:
        index = build_index(shards, Path(scratch) / "index", workers=_cores(None))
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


def _captions(index: Index) -> Iterator[str]:
    source = ShardSource(index)
    for shard, count in enumerate(index.counts.tolist()):
        for ordinal in range(count):
            row = source.member(shard, ordinal)
            try:
                yield decode_caption(source.bytes(shard, int(row["text"]), int(row["text_bytes"])))
            except BadSample:
                continue  # `data check` reports it; a vocabulary needs no complete set


@contextmanager
def _progress(what: str) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal; yields its update, which takes `completed` or `advance`, and `total`."""
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=None)
        yield partial(progress.update, task)


def _cores(workers: int | None) -> int:
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; give at least 1")
    return len(os.sched_getaffinity(0)) if workers is None else workers


def _quantiles(counts: Counter[int]) -> dict[str, int]:
    if not counts:
        return {}
    return {"smallest": min(counts), "median": median(counts), "largest": max(counts)}


def _sentence(counts: Counter[int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in _quantiles(counts).items()) or "none"
