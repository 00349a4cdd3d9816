"""Site files: the examples, what is refused in which words, and which file is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from flipscale.config import Site, load_site, parse_bytes
from flipscale.errors import UserError

SITES = Path(__file__).parents[2] / "slurm"


@pytest.mark.parametrize("path", sorted(SITES.glob("**/*.yaml")), ids=lambda path: path.stem)
def test_every_example_loads_and_survives_its_record(path: Path):
    site = load_site(path)
    assert site.name == (path.stem if path.parent == SITES else "dev")
    assert Site.model_validate(site.model_dump(mode="json", exclude_none=True)) == site


def test_examples_cover_restarts_and_launchers():
    assert {load_site(path).restart for path in SITES.glob("*.yaml")} == {"requeue", "chain"}
    assert {load_site(path).launcher for path in SITES.glob("*.yaml")} == {"srun", "torchrun"}
    assert (SITES / "dev/site.yaml").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("partitoin: gpu", "unknown key partitoin; did you mean partition?"),
        ("stop_before: 90", "stop_before: 90 has no unit; write a duration such as 90s"),
        ("gpu_memory: lots", "'lots' is not an amount of memory or disk; write for example 80GB"),
        ("restart: never", "restart: input should be 'requeue' or 'chain'"),
        ("sbatch: {time: 3}", "time is decided by the key time_limit and the job's cluster.timeout"),
        ("sbatch: {exclusive: false}", "exclusive is false, which sbatch cannot express; leave it out"),
        ("sbatch: {'x y': 1}", "should match pattern"),
        ('sbatch: {comment: "a\\nrm"}', "sbatch.comment: the text contains '\\n', which would end a line"),
        ('partition: "a\\nb"', "partition: the text contains '\\n', which would end a line"),
        ('partition: "a\\u2028b"', "partition: the text contains '\\u2028'"),
        ('setup: ["a\\x85b"]', "setup.0: the text contains '\\x85'"),
        (
            'environment: {A: "a\\rb"}',
            "environment.A: the value contains '\\r', which no batch script can hold",
        ),
        ("setup: {a: b}", "setup: give a list, such as [a, b]"),
        ("environment: {'A;B': 1}", "should match pattern"),
        ("environment: {NCCL_DEBUG: yes}", "environment.NCCL_DEBUG: give a text, in quotes if YAML takes it"),
    ],
)
def test_wrong_site_is_refused_in_one_sentence(tmp_path: Path, text: str, sentence: str):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        load_site(path)
    assert sentence in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_site_extends_another_and_takes_units(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("partition: gpu\nenvironment: {NCCL_DEBUG: INFO, A: 1}\n")
    path = tmp_path / "site.yaml"
    path.write_text(
        "extends: base.yaml\nname: x\ntime_limit: 24h\nstop_before: 3min\nmemory_per_node: 512GiB\n"
        "environment: {A: 2.5}\n"
    )
    site = load_site(path)

    assert (site.partition, site.environment) == ("gpu", {"NCCL_DEBUG": "INFO", "A": "2.5"})
    assert (site.time_limit, site.stop_before, site.memory_per_node) == (86_400, 180, 512 * 2**30)


def test_a_single_text_is_a_list_of_one(tmp_path: Path):
    path = tmp_path / "site.yaml"
    path.write_text("exclude: n[1-3,7]\nsetup: module load cuda\n")
    site = load_site(path)
    assert (site.exclude, site.setup) == (("n[1-3,7]",), ("module load cuda",))


def test_variable_names_the_default_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FLIPSCALE_SITE", raising=False)
    assert load_site() == Site()
    monkeypatch.setenv("FLIPSCALE_SITE", str(tmp_path / "mine.yaml"))
    with pytest.raises(UserError, match=r"there is no site file at .*mine\.yaml"):
        load_site()
    (tmp_path / "mine.yaml").write_text("name: mine")
    assert load_site().name == "mine"


@pytest.mark.parametrize(("text", "amount"), [("80GB", 80 * 10**9), ("1.5 KiB", 1536), (7, 7)])
def test_amount_of_memory_is_read(text: object, amount: int):
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "0GB", "-1GB", "8 bananas", True, "1e99TB"])
def test_wrong_amount_of_memory_is_refused(text: object):
    with pytest.raises(ValueError, match="memory"):
        parse_bytes(text)
