"""Folders of class folders: which classes and samples they have."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.evaluation_samples import read_set, swatch

from flipscale.errors import UserError
from flipscale.evaluation.class_folders import class_folders, open_class_folders
from flipscale.evaluation.samples import RawSample
from flipscale.third_party import import_open_clip


def labelled_folders(root: Path) -> Iterator[RawSample]:
    """The images of class folders, labelled by the places of their classes."""
    classes = open_class_folders(str(root))
    return classes.labelled({name: place for place, name in enumerate(classes.images)})


def test_classes_are_the_sorted_sub_folders(tmp_path):
    colours = {"b_class": "red", "a_class": "green", "c_class": "blue"}
    for name, colour in colours.items():
        (tmp_path / name / "deeper").mkdir(parents=True)
        (tmp_path / name / "1.jpg").write_bytes(swatch(colour))
        (tmp_path / name / "deeper" / "0.JPEG").write_bytes(swatch(colour))
        (tmp_path / name / ".DS_Store").write_bytes(b"x")
    (tmp_path / "c_class" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "README.txt").write_text("no class")
    folders = class_folders(tmp_path)
    assert [folder.name for folder in folders] == ["a_class", "b_class", "c_class"]
    images, labels, reader = read_set(labelled_folders(tmp_path))
    assert labels == [0, 0, 1, 1, 2, 2]
    assert images.float().mean(dim=(2, 3)).argmax(dim=1).tolist() == [1, 1, 0, 0, 2, 2]
    assert reader.skipped.examples == ["c_class/notes.txt: not an image"]


def test_labels_are_those_of_torchvisions_image_folder(tmp_path):
    for name in ("b", "a", "C", "10", "9"):
        (tmp_path / name).mkdir()
        for number in range(40):
            (tmp_path / name / f"{number}.png").write_bytes(swatch("red", "PNG"))
    import_open_clip()
    from torchvision.datasets import ImageFolder

    theirs = [(str(Path(path).relative_to(tmp_path)), label) for path, label in ImageFolder(tmp_path).samples]
    ours = [(s.name, int(s.label or b"")) for s in labelled_folders(tmp_path)]
    assert ours == theirs


def test_unreadable_file_is_counted(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "a" / "here.jpg").write_bytes(swatch("red"))
    _, labels, reader = read_set(labelled_folders(tmp_path))
    assert labels == [0]
    assert reader.skipped.examples == ["a/gone.jpg: the image cannot be read (No such file or directory)"]


def test_folder_without_sub_folders_is_refused(tmp_path):
    (tmp_path / "1.jpg").write_bytes(swatch("red"))
    with pytest.raises(UserError, match="has no sub-folders; it needs one for each class"):
        class_folders(tmp_path)
