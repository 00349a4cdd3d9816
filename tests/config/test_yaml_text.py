"""The limits of YAML files: bombs, devices, pipes and numbers of a million digits end in one sentence."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from support.job_texts import BASE

from flipscale.config import load_job, load_site
from flipscale.config.yaml_text import LARGEST_FILE, MOST_VALUES, NotYamlError, parse_yaml
from flipscale.errors import UserError
from flipscale.planning.plan import model_shape

LONGEST = 700
"""Characters of a message; a path and a quoted value fit."""


def problem(path: Path, *overrides: str) -> str:
    """Return the one short sentence with which a job is refused."""
    with pytest.raises(UserError) as refusal:
        load_job(path, overrides)
    sentence = str(refusal.value)
    assert sentence.isprintable()
    assert len(sentence) < LONGEST
    return sentence


def bomb(levels: int) -> str:
    """Return a YAML text of 10^levels values."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels + 1)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (bomb(9), f"more than {MOST_VALUES:,} values"),
        (bomb(9).replace("[", "{<<: [").replace("]", "]}"), "is not valid YAML"),
        ("a: &a [*a]", "an alias contains itself (line 1)"),
        ("a: &a {b: *a}", "an alias contains itself (line 1)"),
        ("[" + "[]," * 150_000 + "]", f"more than {MOST_VALUES:,} values"),
        ("seed: " + "9" * 900_000, "has 900,000 characters (line 1)"),
        ("seed: 0x" + "f" * 900_000, "has 900,002 characters (line 1)"),
        ("seed: 1" + ":59" * 100_000, "has 300,001 characters (line 1)"),
        ("seed: 1." + "5" * 100_000, "has 100,002 characters (line 1)"),
        ("a: " + "[" * 5000, "it is nested too deeply"),
        (f"{'k' * 900}: 1\n" * 2, "is given twice (line 2)"),
        ("a: !<" + "t" * 5000 + "> b", "could not determine a constructor"),
        ("#" * (LARGEST_FILE + 1), f"it has more than {LARGEST_FILE:,} bytes"),
    ],
    ids=lambda value: value[:16],
)
def test_hostile_file_is_refused_at_once(write, text: str, named: str):
    path = write(text)
    before = resource.getrusage(resource.RUSAGE_SELF)
    assert named in problem(path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 60  # of the processor: a bomb takes hours
    assert after.ru_maxrss - before.ru_maxrss < 300_000  # kB


@pytest.mark.parametrize("number", ["9" * 5000, "-" + "9" * 5000, "1e5000", "0x" + "f" * 5000])
@pytest.mark.parametrize("key", ["seed", "phases.0.samples", "checkpoint.keep_last", "data.max_bad_fraction"])
def test_endless_number_is_refused_for_every_kind_of_key(write, key: str, number: str):
    problem(write(BASE), f"{key}={number}")
    problem(write(BASE), f"{key}='{number}'")


@pytest.mark.parametrize("text", ["9" * 5000 + "d", "9" * 70 + "d", "1" + "0" * 5000 + "GB", "9" * 20 + "s"])
def test_endless_quantity_with_a_unit_is_refused(write, text: str):
    assert "cluster.timeout" in problem(write(BASE), f"cluster.timeout={text}")


@pytest.mark.parametrize(
    "key",
    [
        "model.image_size",
        "model.patch_size",
        "phases.0.image_size",
        "loss.reconstruction.width",
        "loss.reconstruction.layers",
        "data.tokenizer.context_length",
        "data.lanes",
        "cluster.nodes",
        "cluster.gpus_per_node",
    ],
)
def test_model_and_cluster_of_endless_size_are_refused(write, key: str):
    for size in ("1e9", "1e18"):
        assert f"{key}: input should be less than or equal to" in problem(write(BASE), f"{key}={size}")


def test_images_of_too_many_patches_are_refused(write):
    job = load_job(write(BASE), ["model.image_size=8192", "model.patch_size=1"])
    with pytest.raises(UserError, match=r"have 67,108,864 patches of 1 pixels, and the most is 65,536"):
        model_shape(job)


@pytest.mark.parametrize("kind", ["device", "fifo", "directory", "socket"])
def test_devices_and_pipes_are_refused_without_waiting(write, tmp_path: Path, kind: str):
    odd = tmp_path / "odd.yaml"
    if kind == "device":
        odd = Path("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(odd)
    elif kind == "directory":
        odd.mkdir()
    else:
        os.mknod(odd, 0o140600)
    why = "No such device or address" if kind == "socket" else "it is not a regular file"
    assert problem(odd) == f"{odd} cannot be read: {why}"
    assert f"{odd} cannot be read" in problem(write(f"extends: {odd}\n"))
    with pytest.raises(UserError, match="cannot be read"):
        load_site(odd)


def test_a_chain_of_files_has_an_end(write):
    for number in range(100):
        write(f"extends: {number + 1}.yaml\n", f"{number}.yaml")
    path = write("extends: 0.yaml\n")
    assert problem(path).startswith(f"{path} extends more than 32 files")


def test_aliases_are_values_of_their_own(write):
    path = write("one: &one {a: 1, b: [2]}\n")
    assert parse_yaml(path.read_text() + "two: *one\n") == {
        "one": {"a": 1, "b": [2]},
        "two": {"a": 1, "b": [2]},
    }

    first = "&p {name: a, samples: 64, mask_ratio: 0, batch_size: 8, base_lr: 1}"
    text = BASE[: BASE.index("phases:")] + f"phases:\n- {first}\n- {{<<: *p, name: b}}\n"
    job = load_job(write(text), ["phases.0.samples=128"])
    assert [(phase.name, phase.samples) for phase in job.phases] == [("a", 128), ("b", 64)]


def test_limits_do_not_touch_what_is_used(write):
    shards = "::".join(f"/data/laion/part_{number:06d}.tar" for number in range(20_000))
    path = write(BASE.replace("train:", "train_:").replace("train_: ", f"train: {shards} # "))
    assert load_job(path).data.train == shards
    with pytest.raises(NotYamlError, match="given twice"):
        parse_yaml("a: 1\na: 2")
