"""Class names and templates: OpenCLIP's by name, or from files; unusable files are reported."""

import pytest

from flipscale.errors import UserError
from flipscale.evaluation.templates import load_class_names, load_templates
from flipscale.third_party import import_open_clip


@pytest.mark.parametrize(
    ("name", "count", "constant"),
    [("openai7", 7, "SIMPLE_IMAGENET_TEMPLATES"), ("openai80", 80, "OPENAI_IMAGENET_TEMPLATES")],
)
def test_named_templates_say_what_open_clips_say(name, count, constant):
    templates = load_templates(name)
    theirs = getattr(import_open_clip(), constant)
    assert len(templates) == count
    assert [t.replace("{}", "great {} shark") for t in templates] == [t("great {} shark") for t in theirs]


def test_imagenet_has_its_thousand_names():
    names = load_class_names("imagenet")
    assert names == list(import_open_clip().IMAGENET_CLASSNAMES)
    assert len(names) == 1000


def test_files_are_read_line_by_line(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("\ufeffa {} photo \r\n the {c}, {0.x}\n\n".encode())
    assert load_templates(str(path)) == ["a {} photo", "the {}, {0.x}"]
    path.write_text("red fox\nécureuil roux\n", encoding="utf-8")
    assert load_class_names(str(path)) == ["red fox", "écureuil roux"]


@pytest.mark.parametrize("load", [load_templates, load_class_names])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"a {}\n\nb {}\n", "line 2 is empty"),
        (b"\xff {}", "not UTF-8"),
    ],
)
def test_unusable_files_are_reported(tmp_path, load, content, message):
    path = tmp_path / "lines.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(str(path))


@pytest.mark.parametrize("line", ["a photo", "{} and {}", "{name}", "{0}"])
def test_template_has_the_class_name_once(tmp_path, line):
    path = tmp_path / "templates.txt"
    path.write_text(f"a {{}}\n{line}\n")
    with pytest.raises(UserError, match=r"entry 2 .* needs \{\} once"):
        load_templates(str(path))


@pytest.mark.parametrize(("load", "known"), [(load_templates, "openai80"), (load_class_names, "imagenet")])
def test_missing_file_lists_the_alternatives(load, known):
    with pytest.raises(UserError, match=f"no file openai9.*{known}"):
        load("openai9")
