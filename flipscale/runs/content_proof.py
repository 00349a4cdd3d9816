"""The checksums from which a run's content digests are recomputed, and what is proven without them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flipscale.data.shards.checksums import SampleChecksums
from flipscale.data.shards.index_document import load_index
from flipscale.errors import UserError
from flipscale.runs.recorded_run import RecordedRun

_NOT_PROVEN = "the content of the samples is not proven"
_OTHERS = "the content digest can be compared with that of another run, and not be recomputed"

PROVES = {
    "equal": "the content digest proves that the images and captions that were read there had the checksums "
    "in the index; CRC-32 notices accidents, not forgers",
    "not recorded": f"{_NOT_PROVEN}: the run began with a version that recorded no content digest",
    "no checksums": f"{_NOT_PROVEN}: the index has no checksums, so that {_OTHERS}",
    "other captions": f"{_NOT_PROVEN}: the index has checksums only of captions in txt, so that {_OTHERS}",
}
"""What an audit says about the content of the samples, by the state of the content digests."""


def find_checksums(files: RecordedRun) -> tuple[SampleChecksums | None, str]:
    """Return the checksums of the samples and `equal`, which the comparison is to confirm.

    If the content digests cannot be recomputed, there are no checksums, and the other keys of PROVES say why.
    """
    if not any(content for _, _, content in _recorded(files)):
        return None, "not recorded"
    if set(files.job.data.captions) != {"txt"}:
        return None, "other captions"

    try:
        checksums = load_index(index_directory(files)).sample_checksums()
    except UserError:
        checksums = None
    if checksums is None or checksums.samples != files.identity.samples:
        return None, "no checksums"
    return checksums, "equal"


def in_contents(files: RecordedRun) -> Iterator[str]:
    """Yield a sentence about records of the same samples that have different content digests."""
    recorded = _recorded(files)
    if not any(content for _, _, content in recorded):
        return

    known: dict[int, tuple[str, str]] = {}
    for samples, source, content in recorded:
        if not content:
            yield f"{source} has no content digest, but other records of the run have one"
            return
        first, expected = known.setdefault(samples, (source, content))
        if content != expected:
            yield f"{source} has another content digest at {samples} samples than {first}"
            return


def index_directory(files: RecordedRun) -> Path:
    """Return the directory of the index of the shards."""
    named = files.job.data.index
    return Path(named) if named is not None else files.run.path / "index"


def _recorded(files: RecordedRun) -> list[tuple[int, str, str]]:
    """Return the samples, the source and the content digest of every record."""
    recorded = [(line.samples_to, f"segment {line.segment}", line.content) for line in files.ledger]
    recorded += [
        (samples, name, manifest.progress.content_hex)
        for (samples, name), manifest in files.manifests.items()
    ]
    recorded += [(line.samples, f"step {line.step} of metrics.jsonl", line.content) for line in files.metrics]
    return recorded
