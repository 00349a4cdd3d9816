"""The audit agrees with what a stream really reads, and with nothing else."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from support.readers import open_reader
from support.shards import write_shards

from flipscale import jsonl
from flipscale.budget import Budget
from flipscale.cli.data.audit import audit as audit_command
from flipscale.config import Job, load_job
from flipscale.data.order.lanes import digest, hash64
from flipscale.data.order.mixture import Mixture
from flipscale.data.quarantine import Quarantine
from flipscale.data.samples.stream import Batch, LaneShare, Stream
from flipscale.data.shards.checksumming import write_checksums
from flipscale.data.shards.indexing import build_index
from flipscale.errors import RunError, UserError
from flipscale.order_digest import ContentDigest, OrderDigest
from flipscale.progress import Progress
from flipscale.runs.audit import audit
from flipscale.runs.directory import RunDirectory, prepare
from flipscale.runs.expected_order import expected_order, expected_orders, sample_keys
from flipscale.runs.identity import DataIdentity, check_identity
from flipscale.runs.manifest import Manifest, StoredFile

BAD_AT = {(0, 3): "half a jpeg", (1, 0): "missing caption", (1, 1): "no image", (2, 8): "not utf-8"}


@dataclass(frozen=True)
class Recorded:
    """The reads of one process: every batch of 600 samples (over 6 epochs of 97), and their order."""

    job: Job
    order: Mixture
    batches: list[Batch]
    index: Path
    identity: DataIdentity

    def digest(self, start: int, stop: int) -> OrderDigest:
        read = [batch.digest for batch in self.batches if start <= batch.step.start < stop]
        return sum(read, OrderDigest())

    def content(self, stop: int) -> ContentDigest:
        return sum((batch.content for batch in self.batches if batch.step.start < stop), ContentDigest())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    root = tmp_path_factory.mktemp("audit")
    pattern = write_shards(root, [33, 20, 44], BAD_AT)
    document = {
        "name": "audited",
        "model": "vit_micro_p8",
        "seed": 11,
        "data": {"train": pattern, "tokenizer": {"vocab": "vocab.txt"}, "lanes": 8, "window": 5},
        "phases": [
            {"name": "a", "samples": 480, "mask_ratio": 0.5, "batch_size": 32, "base_lr": 1e-3},
            {"name": "b", "samples": 120, "mask_ratio": 0.0, "batch_size": 48, "base_lr": 1e-3},
        ],
    }
    (root / "job.yaml").write_text(yaml.safe_dump(document))
    job = load_job(root / "job.yaml")
    index = build_index(pattern, root / "index")
    write_checksums(index, 1)
    reader, order = open_reader(index, 8, window=5, seed=11, size=8)
    batches = list(Stream(reader, Budget.of(job.phases, 8), LaneShare(8), 0).batches(0))
    shards = tuple((Path(shard.path).name, shard.samples) for shard in index.shards)
    identity = DataIdentity(fingerprint=index.fingerprint, tokenizer="t", samples=97, shards=shards)
    return Recorded(job, order, batches, root / "index", identity)


@pytest.fixture
def run(recorded: Recorded, tmp_path: Path) -> RunDirectory:
    """The directory of a run that stopped at 160 and 480 samples, and at its end, 600."""
    run = RunDirectory(tmp_path / "run")
    prepare(run, recorded.job, 0)
    check_identity(run, recorded.identity, lambda directory: None)
    Quarantine(run.quarantine).add(record for batch in recorded.batches for record in batch.bad)
    start = 0
    for segment, (stop, reason) in enumerate([(160, "killed"), (480, "stopped"), (600, "done")]):
        line = {"segment": segment, "samples_from": start, "samples_to": stop, "reason": reason}
        line |= {"digest": recorded.digest(0, stop).hex(), "quarantined": len(BAD_AT)}
        line |= {"content": recorded.content(stop).hex()}
        jsonl.append(run.ledger, [line])
        start = stop
    budget = Budget.of(recorded.job.phases, 8)
    for step in budget.steps_from(0):
        line = {"samples": step.stop, "step": budget.steps_done(step.stop), "phase": "a", "lr": step.lr}
        line |= {"digest": recorded.digest(0, step.stop).hex(), "content": recorded.content(step.stop).hex()}
        jsonl.append(run.metrics, [line])
    for stop in (480, 600):
        progress = Progress(stop, recorded.digest(0, stop), content=recorded.content(stop))
        write_manifest(run, stop, progress, recorded.job)
    return run


def write_manifest(run: RunDirectory, samples: int, progress: Progress, job: Job) -> Path:
    path = run.checkpoints / f"samples_{samples:012d}" / "manifest.json"
    path.parent.mkdir(exist_ok=True)
    files = {"weights.safetensors": StoredFile(1, "0" * 64)}
    path.write_text(
        Manifest(progress, False, files, job.model_dump(mode="json", exclude_none=True)).to_json()
    )
    return path


def slow_expected(
    order: Mixture, bad: set[tuple[int, int]], start: int, stop: int
) -> tuple[OrderDigest, int]:
    """Return digest and replaced positions by walking from each position to the next good sample."""
    used: list[tuple[int, int, int]] = []
    replaced = 0
    for position in range(start, stop):
        here = np.array([position], dtype=np.int64)
        for attempt in range(order.window_size(position)):
            shards, ordinals = order.locate(here, attempt)
            if (int(shards[0]), int(ordinals[0])) not in bad:
                used.append((position, int(shards[0]), int(ordinals[0])))
                replaced += attempt > 0
                break
        else:
            raise LookupError("a window without a usable sample")
    return digest(*np.array(used, dtype=np.int64).reshape(-1, 3).T), replaced


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_expected_order_equals_the_slow_reference(data):
    counts = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda c: sum(c) > 0))
    lanes = data.draw(st.integers(1, min(sum(counts), 6)))
    order = Mixture(counts, lanes, data.draw(st.integers(1, 7)), data.draw(st.integers(0, 99)))
    everything = [(shard, ordinal) for shard, count in enumerate(counts) for ordinal in range(count)]
    bad = data.draw(st.sets(st.sampled_from(everything), max_size=len(everything) // 3))
    cuts = sorted(data.draw(st.lists(st.integers(0, 3 * sum(counts) // lanes), min_size=2, max_size=4)))
    stretches = [(a * lanes, b * lanes) for a, b in itertools.pairwise(cuts)]
    try:
        slow = [slow_expected(order, bad, *stretch) for stretch in stretches]
    except LookupError:
        reject()  # training cannot pass such a window
    parts = [expected_order(order, sample_keys(bad), *stretch) for stretch in stretches]
    assert [(part.digest, part.replaced) for part in parts] == slow
    whole = expected_order(order, sample_keys(bad), cuts[0] * lanes, cuts[-1] * lanes)
    assert (
        expected_orders(order, sample_keys(bad), [cut * lanes for cut in dict.fromkeys(cuts)])
        == [part for part, (start, stop) in zip(parts, stretches, strict=True) if start < stop]
        or len(set(cuts)) < 2
    )
    assert whole.digest == sum((part.digest for part in parts), OrderDigest())
    assert whole.replaced == sum(part.replaced for part in parts)


@pytest.mark.parametrize("workers", [1, 2])
def test_stream_reads_the_expected_order(recorded, workers):
    """Audit six epochs, at once and in parts."""
    bad = sample_keys(BAD_AT)
    whole = expected_order(recorded.order, bad, 0, 600, workers=workers)
    assert whole.digest == recorded.digest(0, 600)
    assert whole.replaced == slow_expected(recorded.order, set(BAD_AT), 0, 600)[1] > 0
    boundaries = [*[batch.step.start for batch in recorded.batches][::4], 600]
    for start, stop in itertools.pairwise(boundaries):
        part = expected_order(recorded.order, bad, start, stop, workers=workers)
        assert part.digest == recorded.digest(start, stop)


def test_run_is_proven_from_its_directory(run):
    report = audit(run, workers=2)
    assert report.proven
    assert (report.samples_seen, report.dataset_samples, report.unusable) == (600, 97, len(BAD_AT))
    assert report.epochs == pytest.approx(600 / 97)
    assert report.replaced > 0
    assert report.metrics_lines == 18
    assert report.gaps == (
        f"{run.path / 'index'} is not here: the names of the shards could not be compared with it",
    )
    assert [(mark.samples_seen, mark.source) for mark in report.marks] == [
        (160, "segment 0 (killed)"),
        (480, "samples_000000000480"),
        (480, "segment 1 (stopped)"),
        (600, "samples_000000000600"),
        (600, "segment 2 (done)"),
    ]
    assert json.dumps(asdict(report))


def rewrite(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    records = jsonl.read(path)
    change(records)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize(
    ("file", "change", "first_wrong"),
    [
        ("ledger", lambda lines: lines[1].update(digest="0" * 16), 480),
        ("ledger", lambda lines: lines[0].update(samples_to=192), 192),
        ("ledger", lambda lines: lines[2].update(samples_to=480), 480),
        ("quarantine", lambda lines: lines.pop(), 160),
        ("quarantine", lambda lines: lines.append({**lines[0], "ordinal": lines[0]["ordinal"] + 1}), 160),
        ("quarantine", lambda lines: lines[0].update(shard=(lines[0]["shard"] + 1) % 3), 160),
    ],
)
def test_changed_record_is_detected(run, file, change, first_wrong):
    rewrite(getattr(run, file), change)
    report = audit(run)
    assert not report.proven
    wrong = [mark for mark in report.marks if mark.recorded != mark.expected]
    assert next(m.samples_seen for m in wrong if not m.source.startswith("metrics")) == first_wrong


def test_changed_checkpoint_index_or_seed_is_detected(run, recorded):
    progress = Progress(480, recorded.digest(0, 480), content=recorded.content(480))
    manifest = write_manifest(run, 480, replace(progress, digest=OrderDigest(7)), recorded.job)
    assert [mark.source for mark in audit(run).marks if mark.recorded != mark.expected] == [
        manifest.parent.name
    ]
    write_manifest(run, 480, progress, recorded.job)
    assert audit(run).proven

    index = run.index.read_text()
    run.index.write_text(index.replace("33]", "34]"))
    with pytest.raises(UserError, match="contradict each other"):
        audit(run)
    run.index.write_text(index.replace("33]", "34]").replace('"samples": 97', '"samples": 98'))
    assert not audit(run).proven
    run.index.write_text(index)

    run.job.write_text(run.job.read_text().replace("seed: 11", "seed: 12"))
    assert not audit(run).proven


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("ledger", "{}\n", "line 1 is damaged: its segment is not"),
        ("ledger", "[1]\n", "line 1 is damaged"),
        ("ledger", '{"segment": 0}\nnot json\n', "line 2 is damaged"),
        (
            "ledger",
            '{"samples_from": 0, "samples_to": 161, "segment": 0, "reason": "", "digest": ""}\n',
            "at 161 samples, where no step",
        ),
        (
            "ledger",
            '{"samples_from": 0, "samples_to": 5000, "segment": 0, "reason": "", "digest": ""}\n',
            "at 5000 samples",
        ),
        ("quarantine", '{"shard": 0}\n', "line 1 is damaged: its ordinal"),
        ("quarantine", "\x00\x00\n", "line 1 is damaged"),
        ("index", "{", "is damaged"),
        ("index", '{"shards": [["a", "b"]]}', "is damaged"),
        ("job", "name: x\n", "is missing"),
    ],
)
def test_damaged_record_is_named(run, file, text, message):
    getattr(run, file).write_text(text)
    with pytest.raises(UserError) as refusal:
        audit(run)
    assert message in str(refusal.value)
    assert str(run.path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_damaged_checkpoint_is_left_out_with_a_warning(run, caplog):
    manifest = run.checkpoints / "samples_000000000480" / "manifest.json"
    manifest.write_text(manifest.read_text()[:20])
    with caplog.at_level(logging.WARNING):
        report = audit(run)
    assert report.proven
    assert len(report.marks) == 4
    assert str(manifest) in caplog.text
    assert "samples_000000000480 has a damaged manifest" in report.gaps[0]


def test_another_order_is_not_called_another_content(recorded, run):
    """Both digests differ then, since the content digest has the positions in it."""
    shutil.copytree(recorded.index, run.path / "index")
    run.job.write_text(run.job.read_text().replace("seed: 11", "seed: 12"))
    assert audit(run).content == "different"
    with pytest.raises(RunError, match="did not read the samples that its order prescribes"):
        audit_command(run.path)


def test_lost_record_of_the_data_is_named(run):
    run.index.unlink()
    with pytest.raises(UserError, match=r"there is no .*index\.json, which says what the run was trained on"):
        audit(run)


def test_run_without_records_is_refused(recorded, tmp_path):
    run = RunDirectory(tmp_path / "run")
    prepare(run, recorded.job, 0)
    with pytest.raises(UserError, match="nothing was trained in it yet"):
        audit(run)
    check_identity(run, recorded.identity, lambda directory: None)
    with pytest.raises(UserError, match="nothing to audit"):
        audit(run)


def rewrite_line(number: int, **fields: object) -> Callable[[RunDirectory], None]:
    return lambda run: rewrite(run.ledger, lambda lines: lines[number].update(fields))


def remove(name: str) -> Callable[[RunDirectory], None]:
    def change(run: RunDirectory) -> None:
        path = run.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def in_metrics(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[RunDirectory], None]:
    return lambda run: rewrite(run.metrics, change)


def in_job(before: str, after: str) -> Callable[[RunDirectory], None]:
    def change(run: RunDirectory) -> None:
        text = run.job.read_text()
        assert before in text
        run.job.write_text(text.replace(before, after, 1))

    return change


CONTRADICTIONS: dict[str, tuple[Callable[[RunDirectory], object], str]] = {
    "first line removed": (
        lambda run: rewrite(run.ledger, lambda lines: lines.pop(0)),
        "line 1 of ledger.jsonl is segment 1, not 0: a line is missing or doubled",
    ),
    "last line removed": (
        lambda run: rewrite(run.ledger, lambda lines: lines.pop()),
        "no line of ledger.jsonl accounts for the samples from 480 to 600",
    ),
    "line doubled": (
        lambda run: rewrite(run.ledger, lambda lines: lines.insert(1, lines[0])),
        "line 2 of ledger.jsonl is segment 0, not 1",
    ),
    "gap": (rewrite_line(1, samples_from=192), "begins at 192 samples, but the one before it ends at 160"),
    "overlap": (
        rewrite_line(2, samples_from=448),
        "at 448 samples, but the one before it ends at 480",
    ),
    "backwards": (rewrite_line(1, samples_from=512), "segment 1 of ledger.jsonl ends before it begins"),
    "early end": (rewrite_line(0, reason="done"), "is done at 160 samples, where no phase of job.yaml ends"),
    "ledger gone": (remove("ledger.jsonl"), "no line of ledger.jsonl accounts for the samples from 0 to 600"),
    "checkpoints gone": (
        remove("checkpoints"),
        "says that 600 samples were committed, but the newest whole checkpoint has none",
    ),
    "newest checkpoint gone": (
        remove("checkpoints/samples_000000000600"),
        "says that 600 samples were committed, but the newest whole checkpoint has 480",
    ),
    "metrics repeated": (in_metrics(lambda lines: lines.append(lines[-1])), "repeats itself at 600 samples"),
    "step of metrics": (in_metrics(lambda lines: lines[3].update(step=9)), "ends at 128 samples 9"),
    "rate of metrics": (in_metrics(lambda lines: lines[3].update(lr=1.0)), "has the learning rate 1 at 128"),
    "mask ratio": (in_job("mask_ratio: 0.5", "mask_ratio: 0.25"), "phases.0.mask_ratio was 0.5, now 0.25"),
    "rate": (in_job("base_lr: 0.001", "base_lr: 0.002"), "phases.0.base_lr was 0.001, now 0.002"),
    "quarantine gone": (remove("quarantine.jsonl"), "quarantine.jsonl is missing, but the ledger counted 4"),
    "quarantine shortened": (
        lambda run: rewrite(run.quarantine, lambda lines: lines.pop()),
        "quarantine.jsonl holds 3 records, but the ledger counted 4",
    ),
    "evaluation between steps": (
        lambda run: jsonl.append(run.evaluations, [{"samples_seen": 161}]),
        "evaluations.jsonl has one at 161 samples, where no step of the job ends",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradiction_is_found(run, name):
    assert audit(run).contradictions == ()
    change, sentence = CONTRADICTIONS[name]
    change(run)
    report = audit(run)
    assert not report.proven
    assert sentence in " / ".join(report.contradictions)
    assert json.dumps(asdict(report))


def test_budget_in_metrics_but_in_no_checkpoint_is_not_accepted(run):
    shutil.rmtree(run.checkpoints / "samples_000000000600")
    rewrite(run.ledger, lambda lines: lines.pop())
    report = audit(run)
    assert not report.proven
    assert (
        "a step that ends at 600 samples, but the last segment saved and ended at 480"
        in report.contradictions[0]
    )

    # After a kill that is what a run looks like; the samples are named as not proven.
    rewrite(run.ledger, lambda lines: lines[-1].update(reason="killed"))
    report = audit(run)
    assert report.proven
    assert report.samples_seen == 480
    assert "continues to 600 samples, which no checkpoint holds" in report.gaps[-1]


def test_run_that_was_done_may_get_another_phase(run):
    rewrite(run.ledger, lambda lines: lines[1].update(reason="done"))  # at the end of the first phase
    assert audit(run).contradictions == ()


def test_killed_run_may_have_an_evaluation_that_its_checkpoints_do_not_hold(run):
    rewrite(run.ledger, lambda lines: lines.pop())
    shutil.rmtree(run.checkpoints / "samples_000000000600")
    rewrite(run.ledger, lambda lines: lines[-1].update(reason="killed"))
    jsonl.append(run.evaluations, [{"samples_seen": 528}])
    assert audit(run).contradictions == ()
    rewrite(run.ledger, lambda lines: lines[-1].update(reason="stopped"))
    assert "has one at 528 samples, which no checkpoint holds" in " / ".join(audit(run).contradictions)


def test_digest_of_a_metrics_line_is_compared(run):
    rewrite(run.metrics, lambda lines: lines[4].update(digest="0" * 16))
    (wrong,) = [mark for mark in audit(run).marks if mark.recorded != mark.expected]
    assert (wrong.samples_seen, wrong.source) == (160, "metrics.jsonl at step 5")


def test_swapped_names_of_shards_are_found(run, recorded, tmp_path):
    shutil.copytree(recorded.index, run.path / "index")
    assert audit(run).proven
    assert audit(run).gaps == ()
    record = json.loads(run.index.read_text())
    record["shards"][0][0], record["shards"][1][0] = record["shards"][1][0], record["shards"][0][0]
    run.index.write_text(json.dumps(record))
    assert "index.json names other shards, or in another order" in audit(run).contradictions[0]


def without_contents(run: RunDirectory) -> None:
    """Remove the content digests from ledger, metrics and manifests, which earlier versions did not write."""
    for path in (run.ledger, run.metrics):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            del line["content"]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for path in run.checkpoints.glob("*/manifest.json"):
        manifest = Manifest.from_json(path.read_bytes())
        path.write_text(replace(manifest, progress=replace(manifest.progress, content=None)).to_json())


def test_the_content_digest_is_the_sum_over_what_the_tars_hold(recorded, run):
    """Walk the order position by position, and read images and captions with tarfile."""
    rows: dict[tuple[int, int], tuple[int, int]] = {}
    for shard, path in enumerate(sorted(recorded.index.parent.glob("*.tar"))):
        with tarfile.open(path) as tar:
            # pyrefly: ignore[missing-attribute]: all are files
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for ordinal, key in enumerate(dict.fromkeys(name.split(".")[0] for name in members)):
            images = (data for name, data in members.items() if name in (f"{key}.jpg", f"{key}.png"))
            rows[shard, ordinal] = zlib.crc32(next(images, b"")), zlib.crc32(members.get(f"{key}.txt", b""))

    total = 0
    for position in range(600):
        here = np.array([position], dtype=np.int64)
        for attempt in range(recorded.order.window_size(position)):
            shards, ordinals = recorded.order.locate(here, attempt)
            if (int(shards[0]), int(ordinals[0])) not in BAD_AT:
                total += int(hash64(7, position, *rows[int(shards[0]), int(ordinals[0])]))
                break
    assert recorded.content(600) == ContentDigest(total)

    shutil.copytree(recorded.index, run.path / "index")
    report = audit(run)
    assert (report.proven, report.content) == (True, "equal")
    expected = {recorded.content(samples).hex() for samples in (160, 480, 600)}
    assert {mark.expected_content for mark in report.marks} == expected


def test_other_content_in_the_index_is_noticed(recorded, run):
    """The shards were replaced and indexed again: the same names, sizes and counts."""
    shutil.copytree(recorded.index, run.path / "index")
    sums = run.path / "index" / "checksums.bin"
    data = bytearray(sums.read_bytes())
    data[64 + 8 * 50] ^= 1  # the image of one sample
    sums.write_bytes(data)
    report = audit(run, workers=2)
    assert (report.proven, report.content) == (False, "different")
    assert all(mark.recorded == mark.expected for mark in report.marks)
    assert not all(mark.same_content for mark in report.marks)


def test_runs_without_content_digests_or_checksums_are_audited(recorded, run):
    assert (audit(run).proven, audit(run).content) == (True, "no checksums")  # without an index
    shutil.copytree(recorded.index, run.path / "index")
    (run.path / "index" / "checksums.bin").unlink()
    assert audit(run).content == "no checksums"

    without_contents(run)
    report = audit(run)
    assert (report.proven, report.content) == (True, "not recorded")
    assert {mark.content for mark in report.marks} == {""}


def test_content_digests_that_contradict_each_other_are_noticed(recorded, run):
    whole = run.metrics.read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    for wrong in ({"content": "0" * 16}, {"content": ""}):
        changed = [*lines[:-1], lines[-1] | wrong]
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in changed))
        report = audit(run)
        assert not report.proven
        assert ["content digest" in text for text in report.contradictions] == [True]

    run.metrics.write_text(whole)
    assert audit(run).proven
