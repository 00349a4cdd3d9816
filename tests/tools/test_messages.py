"""docs/messages.md has every sentence that ends a command, and real messages are found in it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from documentation.message_templates import PACKAGE, collect
from documentation.messages import PAGE, as_code, page, split, subject_of, subjects, templates
from support.broken_files import flipscale
from support.job_texts import BASE

PASSED_ON = {
    "'interrupted'",  # Ctrl-C
    "f'error: {error}'",
    "f'error: {problem}'",
    "f'--captions: {error}'",
    "f'--images: {error}'",
    "f'{path}: {describe_problem(kind, error)}'",
    "f'{key}: {message[:1].lower() + message[1:]}{shown}'",  # of pydantic, or of a check in flipscale.config
    "f'{directory / CONFIG}: {error}'",
    "f'phases.{number} ({phase.name}): {error}'",
    "f'{path}: {error}'",
    "str(error).replace('a file with --weights', f'{name}:FILE')",
    "f'{path} is {kind.value}'",
    "f'{type(error).__name__}: {message}'",  # a traceback, which is not a message
    "explain_refusal(str(error))",
    "remedy(job, model_shape(job), on.gpus, on.gpu)",
    "planned.remedy",
    "problems[0]",
    "problem",
    "message",
    "segment.failed(error).message",
    "''",  # the end of a run that is done
}
"""The texts of errors that hand on the words of another one, which the page has."""


@cache
def patterns() -> tuple[re.Pattern[str], ...]:
    """Return the messages as patterns, in which every word in capitals stands for anything."""
    found: list[re.Pattern[str]] = []
    for template in templates():
        text = re.escape(" ".join(template.text.split()))
        found.append(re.compile(re.sub(r"\b[A-Z][A-Z_]*(?=s?\b)", ".+?", text)))
    return tuple(found)


def is_known(message: str) -> bool:
    line = " ".join(message.split())
    return any(pattern.search(line) for pattern in patterns())


def test_page_is_the_one_of_the_code():
    assert page() == PAGE.read_text(encoding="utf-8"), "run `make docs-tables`"


def test_every_message_is_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    assert len(collect().templates) > 480
    for template in templates():
        problem, fix = split(" ".join(template.text.split()))
        assert f"#### {as_code(problem)}\n" in text
        assert fix[1:] in text


def test_every_error_of_the_package_is_collected():
    """No call that makes an error is left out, except those that hand on the words of another one."""
    assert {text for _, text in collect().passed_on} <= PASSED_ON
    lines = {(template.module, template.line) for template in collect().templates}
    handed_on = {(module, text) for module, text in collect().passed_on}

    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "UserError",
                "RunError",
                "StoppedEarly",
            ):
                text = node.args[0]
                assert (module, text.lineno) in lines or (module, ast.unparse(text)) in handed_on, module


def test_every_subject_has_a_cause_and_messages():
    taken = {subject_of(template.module).title for template in collect().templates}
    assert {subject.title for subject in subjects()} == taken
    assert all(subject.cause and subject.more for subject in subjects())
    with pytest.raises(LookupError, match="no subject of"):
        subject_of("unheard_of")


COMMANDS = [
    ("plan", "missing.yaml"),
    ("plan", "job.yaml", "sed=1"),
    ("plan", "job.yaml", "data.lanes=7"),
    ("plan", "job.yaml", "data.window=many"),
    ("plan", "job.yaml", "loss.tile=-1"),
    ("plan", "job.yaml", "phases.0.samples=20m"),
    ("plan", "job.yaml", "model=vit_b61"),
    ("train", "job.yaml", "--time-limit=20"),
    ("status", "."),
    ("data", "index", "/nowhere/{000..001}.tar", "index"),
    ("data", "index", "/nowhere/{000..001.tar", "index"),
    ("submit", "job.yaml", "--cluster=slum"),
    ("submit", "job.yaml", "--at-most=0"),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_message_of_a_real_command_is_found(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(BASE)
    done = flipscale(*arguments)
    assert done.code == 2
    assert is_known(done.errors.removeprefix("error: ")), done.errors


def test_other_sentences_are_not_found():
    assert not is_known("the moon is made of cheese; bring crackers")
    assert not is_known("there is no index")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("it is wrong; correct it", ("it is wrong", "correct it")),
        ("it (a; b) is wrong; correct it; or not", ("it (a; b) is wrong", "correct it; or not")),
        ("it is wrong", ("it is wrong", "")),
    ],
)
def test_message_is_split_into_problem_and_fix(text: str, parts: tuple[str, str]):
    assert split(text) == parts
