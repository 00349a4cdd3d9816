"""Which class each folder of a set is: ImageNet's relatives, and other folders by number or by order."""

import json
from pathlib import Path

import pytest
from support.evaluation_samples import make_class_folders

from flipscale.config import ZeroShot
from flipscale.errors import UserError
from flipscale.evaluation.class_sets import class_set
from flipscale.evaluation.subsets import SUBSETS, imagenet_wnids, load_subset
from flipscale.evaluation.templates import load_class_names
from flipscale.third_party import import_open_clip

IMAGENET = load_class_names("imagenet")


def names_by_folder(data: Path, classnames: str, subset: str | None = None) -> dict[str, str]:
    """Class names by folder, of the samples that the set has."""
    opened = class_set(ZeroShot(data=str(data), classnames=classnames, subset=subset))
    samples = {str(Path(s.name).parent): int(s.label or b"") for s in opened.samples}
    assert sorted(samples.values()) == opened.numbers
    return {folder: opened.all_names[number] for folder, number in samples.items()}


# --- ImageNet's relatives


def test_wordnet_ids_get_open_clips_names():
    """Timm's order of ids is OpenCLIP's order of names, checked for some unmistakable ones."""
    known = {
        "n01440764": "tench",
        "n02123045": "tabby cat",
        "n03895866": "railroad car",
        "n07753592": "banana",
    }
    wnids = imagenet_wnids()
    assert len(wnids) == 1000
    assert sorted(wnids) == wnids
    names = import_open_clip().IMAGENET_CLASSNAMES
    for wnid, name in known.items():
        assert name in names[wnids.index(wnid)]


@pytest.mark.parametrize("subset", SUBSETS)
def test_robustness_sets_have_the_200_classes_of_their_folders(tmp_path, subset):
    """The folders count by WordNet id; other classes may be there too, as in ImageNet's validation folder."""
    numbers = load_subset(subset, 1000)
    wnids = imagenet_wnids()
    assert len(numbers) == 200
    root = make_class_folders(tmp_path / "all", [wnids[number] for number in numbers])
    expected = {wnids[number]: IMAGENET[number] for number in numbers}
    assert names_by_folder(root, "imagenet", subset) == expected
    other = next(n for n in range(1000) if n not in numbers)
    make_class_folders(root, [wnids[other]])
    assert names_by_folder(root, "imagenet", subset) == expected
    with pytest.raises(
        UserError, match=r"no class folder for class \d+ \(.* and 798 more; name the `subset`"
    ):
        names_by_folder(root, "imagenet")
    (root / wnids[numbers[7]] / "0.jpg").unlink()
    with pytest.raises(UserError, match=f"{wnids[numbers[7]]} holds no images"):
        names_by_folder(root, "imagenet", subset)
    (root / wnids[numbers[7]]).rmdir()
    with pytest.raises(UserError, match=rf"no class folder for class {numbers[7]} .* and 0 more"):
        names_by_folder(root, "imagenet", subset)


def test_numbered_folders_are_sorted_as_numbers(tmp_path):
    """ImageNet-V2 has 0, 1, 10, 100, ... in the order of text."""
    names = [str(number) for number in range(1000)]
    root = make_class_folders(tmp_path / "v2", names)
    assert names_by_folder(root, "imagenet") == dict(zip(names, IMAGENET, strict=True))
    own = tmp_path / "names.txt"
    own.write_text("".join(f"name {number}\n" for number in names))
    assert names_by_folder(root, str(own)) == {number: f"name {number}" for number in names}
    numbers = tmp_path / "numbers.txt"
    numbers.write_text("12\n3\n")
    assert names_by_folder(root, "imagenet", str(numbers)) == {"3": IMAGENET[3], "12": IMAGENET[12]}


def test_wordnet_id_outside_imagenet_is_named(tmp_path):
    root = make_class_folders(tmp_path / "set", ["n01440764", "n99999999"])
    with pytest.raises(UserError, match="n99999999 is none of ImageNet's"):
        names_by_folder(root, "imagenet", "imagenet_a")


def objectnet(root: Path) -> tuple[Path, Path]:
    """The folders images and mappings; two of the four classes are ImageNet's."""
    mappings = root / "mappings"
    mappings.mkdir()
    labels = {
        "air_freshener": "Air freshener",
        "still_camera": "Still Camera",
        "banana": "Banana",
        "axe": "Axe",
    }
    shared = {"Still Camera": "Polaroid camera; reflex camera", "Banana": "banana"}
    (mappings / "folder_to_objectnet_label.json").write_text(json.dumps(labels))
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(shared))
    return make_class_folders(root / "images", list(labels)), mappings


def test_objectnet_keeps_the_classes_that_imagenet_has(tmp_path):
    images, mappings = objectnet(tmp_path)
    assert names_by_folder(images, str(mappings)) == {"banana": "banana", "still_camera": "still camera"}
    (images / "banana" / "0.jpg").unlink()
    (images / "banana").rmdir()
    with pytest.raises(UserError, match=r"no class folder for class 0 \(banana\)"):
        names_by_folder(images, str(mappings))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("objectnet_to_imagenet_1k.json", "{", "cannot be read"),
        ("objectnet_to_imagenet_1k.json", "[]", "holds no table"),
        ("objectnet_to_imagenet_1k.json", '{"Apple": "x"}', "names 'Apple', which"),
        ("folder_to_objectnet_label.json", None, "cannot be read .* the folder `mappings`"),
    ],
)
def test_unusable_mappings_are_reported(tmp_path, file, content, message):
    images, mappings = objectnet(tmp_path)
    (mappings / file).unlink()
    if content is not None:
        (mappings / file).write_text(content)
    with pytest.raises(UserError, match=message):
        names_by_folder(images, str(mappings))


# --- which folder is which class


NAMES = ("ape", "bee", "cat", "dog", "elk", "fox")


@pytest.fixture
def own_names(tmp_path) -> str:
    """A file of six names."""
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return str(tmp_path / "names.txt")


def listed(path: Path, numbers: list[int]) -> str:
    """A file of a subset."""
    path.write_text("\n".join(map(str, numbers)))
    return str(path)


def test_folders_named_by_numbers_keep_them_if_some_are_missing(tmp_path, own_names):
    root = make_class_folders(tmp_path / "set", ["0", "1", "3", "4", "5"])
    subset = listed(tmp_path / "subset.txt", [0, 1, 3, 4])
    assert names_by_folder(root, own_names, subset) == {"0": "ape", "1": "bee", "3": "dog", "4": "elk"}
    with pytest.raises(UserError, match=r"no class folder for class 2 \(cat\) and 0 more; name the `subset`"):
        names_by_folder(root, own_names)


def test_as_many_folders_as_names_are_matched_in_order(tmp_path, own_names):
    root = make_class_folders(tmp_path / "set", [str(number) for number in range(1, 7)])
    subset = listed(tmp_path / "subset.txt", [0, 5])
    assert names_by_folder(root, own_names) == dict(zip("123456", NAMES, strict=True))
    assert names_by_folder(root, own_names, subset) == {"1": "ape", "6": "fox"}


@pytest.mark.parametrize(
    "made",
    [
        ["ape", "bee", "dog", "elk", "fox"],
        ["0", "1", "3", "4", "extra"],
        ["0", "1", "01", "3", "4"],
        [str(number) for number in range(2, 7)],
        ["ape", "bee", "cat", "dog", "elk", "fox", "lost+found"],
    ],
)
def test_folders_that_match_neither_by_number_nor_by_order_are_refused(tmp_path, own_names, made):
    """A subset with a folder at each of its places does not help: these would be other classes."""
    root = make_class_folders(tmp_path / "set", made)
    for subset in (None, listed(tmp_path / "subset.txt", [0, 1, 3, 4])):
        with pytest.raises(
            UserError, match=rf"has 6 class names, but .* has {len(made)} class folders; give"
        ):
            names_by_folder(root, own_names, subset)


@pytest.mark.parametrize("wnids", [1000, 999])
def test_foreign_folder_among_imagenets_is_named(tmp_path, wnids):
    """The foreign folder is one of 1,001 or, with one of ImageNet's missing, one of 1,000."""
    root = make_class_folders(tmp_path / "set", [*imagenet_wnids()[:wnids], "lost+found"])
    for subset in (None, "imagenet_a"):
        with pytest.raises(UserError, match=r"lost\+found is none of ImageNet's 1,000 classes; remove it"):
            names_by_folder(root, "imagenet", subset)


def test_imagenets_classes_counted_from_1_are_refused(tmp_path):
    root = make_class_folders(tmp_path / "set", [str(number) for number in range(1, 1001)])
    for subset in (None, "imagenet_a"):
        with pytest.raises(UserError, match=r"class folders 1 to 1000, and .* are 0 to 999, each once"):
            names_by_folder(root, "imagenet", subset)


@pytest.mark.parametrize("classnames", ["imagenet", "folders"])
def test_directory_named_like_a_choice_does_not_replace_it(tmp_path, monkeypatch, classnames):
    monkeypatch.chdir(make_class_folders(tmp_path / "work", ["imagenet", "folders"]))
    root = make_class_folders(tmp_path / "set", ["n01440764", "n02123045"])
    subset = listed(tmp_path / "subset.txt", [0, 281] if classnames == "imagenet" else [0, 1])
    assert list(names_by_folder(root, classnames, subset)) == ["n01440764", "n02123045"]


def test_empty_folder_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no sub-folders"):
        names_by_folder(tmp_path / "empty", "folders")
