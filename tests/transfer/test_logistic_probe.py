"""Logistic regression on frozen features against stock open_clip and scikit-learn, and the sweep."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from support.classifier_samples import exported_model, labelled_folder, labelled_tar
from support.evaluation_samples import write_tar

from flipscale.cli.probe import ProbeOptions, probe
from flipscale.errors import UserError
from flipscale.third_party import import_open_clip
from flipscale.transfer.logistic_probe import LogisticRecipe, best_strength, fit, held_out

CLASSES = 7


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return exported_model(tmp_path_factory.mktemp("probe") / "model")


@pytest.fixture(scope="module")
def sets(model) -> tuple[str, str]:
    """70 training and 63 test images."""
    train = labelled_tar(model.parent / "train.tar", CLASSES, 10)
    return train, labelled_tar(model.parent / "test.tar", CLASSES, 9, first=10)


def probed(model: Path, sets: tuple[str, str], out: Path, **changes) -> dict:
    train, test = sets
    settings: dict[str, Any] = {"micro_batch": 16, "as_json": True, **changes}
    probe(ProbeOptions(checkpoint=model, train=train, test=test, out=out, **settings))
    return json.loads(out.read_text())


def stock_features(model: Path, shard: str, features: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of a shard by open_clip with its own preprocessing."""
    open_clip = import_open_clip()
    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model}")
    clip.eval()
    if features == "pooled":
        clip.visual.proj = None
    images, labels = [], []
    with tarfile.open(shard) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            content = file.read()
            if member.name.endswith(".cls"):
                labels.append(int(content))
            else:
                images.append(preprocess(Image.open(io.BytesIO(content)).convert("RGB")))
    with torch.no_grad():
        pixels = torch.stack(images)
        output = clip.visual(pixels) if features == "pooled" else clip.encode_image(pixels, normalize=True)
    return output.numpy(), np.array(labels)


@pytest.mark.parametrize(("features", "c"), [("pooled", None), ("embedding", "10")])
def test_accuracies_are_those_of_scikit_learn_on_open_clips_features(model, sets, tmp_path, features, c):
    document = probed(model, sets, tmp_path / "out.json", features=features, c=c)
    (train, known), (test, wanted) = (stock_features(model, shard, features) for shard in sets)
    judge = LogisticRegression(C=0.316 if c is None else float(c), max_iter=1000).fit(train, known)
    scores = judge.decision_function(test)
    right = judge.predict(test) == wanted
    places = (-scores).argsort(axis=1).argsort(axis=1)[np.arange(len(wanted)), wanted]

    measured = document["test"]
    assert measured["samples"] == 63
    assert round(measured["top1"] * 63) == right.sum()
    assert round(measured["top5"] * 63) == (places < 5).sum()
    assert 1 / CLASSES < measured["top1"] < measured["top5"] < 1
    assert measured["per_class"] == pytest.approx([right[wanted == n].mean() for n in range(CLASSES)])
    low, high = measured["intervals"]["top1"]
    assert low < measured["top1"] < high
    assert document["converged"]
    assert document["settings"] == {
        "features": features,
        "c": 0.316 if c is None else 10.0,
        "swept": False,
        "max_iter": 1000,
    }


def test_two_classes_are_scored_like_scikit_learn(tmp_path):
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 80)
    features = (random.normal(0, 1, (80, 5)) + 0.7 * labels[:, None]).astype(np.float32)
    train, test = torch.from_numpy(features[:50]), torch.from_numpy(features[50:])
    fitted = fit(train, torch.from_numpy(labels[:50]), test, LogisticRecipe())
    judge = LogisticRegression(C=0.316, max_iter=1000).fit(features[:50], labels[:50])
    assert fitted.logits.shape == (30, 2)
    assert (fitted.logits.argmax(dim=1).numpy() == judge.predict(features[50:])).all()
    assert fitted.converged


def test_missing_convergence_is_logged(caplog):
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    fitted = fit(features, torch.arange(40) % 4, features, LogisticRecipe(c=1e4, max_iter=3))
    assert (fitted.iterations, fitted.converged) == (3, False)
    assert "had not converged after 3 iterations" in caplog.text


ON_TENSORS = """
import torch
from flipscale.transfer import logistic_probe as linear_probe
linear_probe.enable_gpu_fits()
random = torch.Generator().manual_seed(0)
train, test = torch.randn(300, 16, generator=random), torch.randn(500, 16, generator=random)
truth = torch.randn(16, 6, generator=random)
labels = (train @ truth + torch.randn(300, 6, generator=random)).argmax(dim=1)
fits = []
for tensors in (False, True):
    linear_probe._stays_on_device = lambda features: tensors
    fits.append(linear_probe.fit(train, labels, test, linear_probe.LogisticRecipe()))
numpy, tensor = fits
assert (numpy.logits.argmax(dim=1) == tensor.logits.argmax(dim=1)).all()
torch.testing.assert_close(numpy.logits, tensor.logits, rtol=0, atol=1e-3)
"""


@pytest.mark.slow
def test_fits_on_tensors_equal_fits_on_arrays(tmp_path):
    """GPUs fit tensors: fp32 sums in another order, hence a tolerance of 1e-3 for logits of about 5.

    It runs in a process of its own, since scipy reads the setting only once.
    """
    import sklearn

    if tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 9):
        pytest.skip("this scikit-learn fits only NumPy arrays")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ON_TENSORS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("peak", [-6.0, -5.9, -1.3, 0.0, 2.05, 6.0])
def test_search_finds_the_best_of_all_strengths(peak):
    """There are 97 strengths, an eighth of a decade apart; accuracy falls on both sides of one peak."""
    tried: list[float] = []

    def accuracy(c: float) -> float:
        tried.append(c)
        return -abs(np.log10(c) - peak)

    grid = np.arange(-48, 49) / 8
    assert np.log10(best_strength(accuracy)) == pytest.approx(min(grid, key=lambda power: abs(power - peak)))
    assert len(tried) == len(set(tried)) <= LogisticRecipe(c=None).most_fits == 15


def test_strongest_penalty_wins_among_equals():
    assert best_strength(lambda c: 0.5) == pytest.approx(1e-6)


def test_tenth_of_each_class_is_held_out():
    labels = np.repeat([0, 1, 2, 3], [40, 2, 19, 7])[np.random.default_rng(0).permutation(68)]
    held = held_out(labels, 0)
    assert np.bincount(labels[held]).tolist() == [4, 1, 1, 1]
    assert (held == held_out(labels, 0)).all()
    assert (held != held_out(labels, 1)).any()
    with pytest.raises(UserError, match="class 1 has one training image, and a sweep needs two or more; add"):
        held_out(np.array([0, 0, 1]), 0)


def test_sweep_fits_all_images_with_the_best_strength(model, sets, tmp_path):
    document = probed(model, sets, tmp_path / "a.json", c="sweep")
    assert document["settings"]["swept"]
    again = probed(model, sets, tmp_path / "b.json", c=str(document["settings"]["c"]))
    assert again["test"] == document["test"]


def test_options_and_sets_that_do_not_fit_are_reported(model, sets, tmp_path):
    train = sets[0]
    other = labelled_tar(tmp_path / "other.tar", CLASSES + 1, 1)
    folder = labelled_folder(tmp_path / "folder", ["a", "b"], 1)
    pictures = [("0.png", b"broken"), ("0.cls", b"0"), ("1.png", b"broken"), ("1.cls", b"1")]
    broken = str(write_tar(tmp_path / "broken.tar", pictures))
    for pair, changes, message in (
        (sets, {"method": "sgd"}, "--method is 'sgd'; give lbfgs or lars"),
        (
            sets,
            {"features": "pool"},
            "--features is 'pool'; give pooled or embedding",
        ),
        (sets, {"c": "big"}, "--c is 'big'; give a number above 0"),
        (sets, {"epochs": 3}, "belong to --method lars; leave them out"),
        (sets, {"method": "lars", "c": "1"}, "--c belongs to --method lbfgs"),
        (sets, {"method": "lars"}, "has 70 images, fewer than a batch of 16,384"),
        ((train, other), {}, "has 7 classes and .*other.tar has 8"),
        ((train, folder), {}, "has 7 classes and .*folder has 2"),
        (
            (broken, broken),
            {},
            "broken.tar holds no usable image of 2 of its 2 classes, the first being 0",
        ),
    ):
        with pytest.raises(UserError, match=message):
            probed(model, pair, tmp_path / "out.json", **changes)


@pytest.mark.parametrize("c", ["0", "-1", "nan", "inf"])
def test_invalid_strength_is_reported_before_anything_is_read(tmp_path, c):
    with pytest.raises(UserError, match=f"--c is {c}; give a number above 0, such as 0.316, or `sweep`"):
        probed(tmp_path / "no model", ("no.tar", "no.tar"), tmp_path / "out.json", c=c)


def test_unwritable_results_are_reported_before_anything_is_read(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out, reason in ((tmp_path, "Is a directory"), (tmp_path / "file" / "out.json", "Not a directory")):
        with pytest.raises(UserError, match=rf"{out} cannot be written \({reason}\)"):
            probed(tmp_path / "no model", ("no.tar", "no.tar"), out)


def test_infinite_features_are_refused(model, sets, tmp_path):
    weights = "open_clip_model.safetensors"
    tensors = load_file(model / weights)
    tensors["visual.ln_post.weight"][:] = 3e38  # finite, and too large for the product with the projection
    for path in model.iterdir():
        if path.is_file() and path.name != weights:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file(tensors, tmp_path / weights)
    with pytest.raises(UserError, match="70 of 70 image features are NaN or infinite"):
        probed(tmp_path, sets, tmp_path / "out.json")
