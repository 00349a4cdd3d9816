"""Fine-tuning: the parts of the recipe against their definitions, and resuming to the bit."""

import json
import random
import resource
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.classifier_samples import exported_model, labelled_folder, labelled_tar

from flipscale.cli.finetune import FinetuneOptions
from flipscale.cli.finetune import finetune as finetune_command
from flipscale.distributed.world import World
from flipscale.errors import RunError, UserError
from flipscale.models.flip import build_model
from flipscale.models.presets import preset
from flipscale.third_party import import_timm
from flipscale.transfer.finetune_recipe import FinetuneRecipe
from flipscale.transfer.rand_augment import RandAugment, rand_augment
from flipscale.transfer.tower_classifier import TowerClassifier, layer_decayed

SPEC = preset("vit_micro_p8", vocab_size=40, context_length=16)
DEEP = replace(SPEC, vision=replace(SPEC.vision, layers=4))


def classifier(spec=SPEC, drop_path: float = 0.2) -> TowerClassifier:
    return TowerClassifier(build_model(spec, seed=1), 5, drop_path, seed=0)


def test_each_layer_has_its_rate_and_only_matrices_decay():
    """MAE's code: 0.75^(L - i) for block i of L, one power more before the blocks, and none after them."""
    model = classifier(DEEP)
    optimizer = layer_decayed(model, FinetuneRecipe())
    names = {parameter: name for name, parameter in model.named_parameters()}
    group_of = {names[p]: group for group in optimizer.param_groups for p in group["params"]}
    assert set(group_of) == set(names.values()) - {"visual.proj"}
    for name, group in group_of.items():
        if "resblocks" in name:
            power = 4 - int(name.split(".")[3])
        else:
            power = 0 if name.startswith(("head", "visual.ln_post")) else 5
        assert group["lr_scale"] == pytest.approx(0.75**power), name
        vector = model.get_parameter(name).ndim == 1
        assert group["weight_decay"] == (0.0 if vector else 0.05), name


def test_learned_positions_do_not_decay():
    spec = preset("clip_micro_p8")
    model = TowerClassifier(build_model(spec), 5, 0.2, seed=0)
    groups = layer_decayed(model, FinetuneRecipe()).param_groups
    (group,) = (g for g in groups if any(p is model.visual.positional_embedding for p in g["params"]))
    assert (group["weight_decay"], group["lr_scale"]) == (0.0, 0.75 ** (spec.vision.layers + 1))


def test_fresh_classifier_does_not_change_the_tower():
    tower = build_model(SPEC, seed=1)
    names = {f"visual.{name}" for name in tower.visual.state_dict()}
    model = classifier()
    assert set(model.state_dict()) == names | {"head.weight", "head.bias"}
    images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits = model.eval()(images)
    wanted = tower.visual.pooled(tower.visual.tokens(images)) @ model.head.weight.T
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-7)
    torch.testing.assert_close(model(model.normalized(images)), logits, rtol=0, atol=1e-6)
    assert model.head.weight.std().item() == pytest.approx(2e-5, rel=0.2)


def test_branches_are_dropped_with_their_chance():
    """Chances are 0, 1/3, 2/3 and 1 times the last block's, per image; kept branches are scaled up."""
    model = classifier(DEEP, drop_path=0.6)
    torch.manual_seed(0)
    tokens = torch.randn(1, 5, SPEC.vision.width).expand(4000, -1, -1)
    for number, block in enumerate(model.visual.transformer.resblocks):
        chance = 0.6 * number / 3
        for branch in (block.get_submodule("attn"), block.get_submodule("mlp")):
            kept = branch.eval()(tokens[:1])
            dropped = branch.train()(tokens)
            gone = (dropped == 0).flatten(1).all(dim=1)
            assert gone.float().mean().item() == pytest.approx(chance, abs=0.04)  # 5 sigma
            torch.testing.assert_close(
                dropped[~gone], (kept / (1 - chance)).expand_as(dropped[~gone]), rtol=1e-4, atol=1e-5
            )


def test_random_augmentation_never_fails():
    """Pillow 12 refuses the strongest posterizing, which a few in 1,000 images draw."""
    change = rand_augment(FinetuneRecipe().rand_augment, build_model(SPEC, device="meta"))
    image = Image.effect_noise((32, 32), 90).convert("RGB")
    random.seed(0)
    np.random.seed(0)
    changed = [change(image) for _ in range(3000)]
    assert {view.size for view in changed} == {(32, 32)}
    assert sum(view.tobytes() != image.tobytes() for view in changed) > 1500  # 2033 on average, +- 26


def test_random_augmentation_equals_that_of_maes_code():
    """MAE's code takes timm's transform of training, bicubic; the same draws give the same pixels."""
    recipe = FinetuneRecipe()
    change = rand_augment(recipe.rand_augment, build_model(SPEC, device="meta"))
    whole = import_timm("timm.data").create_transform(
        SPEC.vision.image_size,
        is_training=True,
        auto_augment=recipe.rand_augment,
        interpolation="bicubic",
        mean=SPEC.mean,
    )
    (judge,) = (RandAugment(step) for step in whole.transforms if type(step).__name__ == "RandAugment")
    image = Image.effect_noise((32, 32), 90).convert("RGB")

    def drawn(transform: RandAugment, seed: int) -> bytes:
        random.seed(seed)
        np.random.seed(seed)
        return transform(image).tobytes()

    assert all(drawn(change, seed) == drawn(judge, seed) for seed in range(200))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return exported_model(tmp_path_factory.mktemp("finetune") / "model")


@pytest.fixture(scope="module")
def sets(model):
    train = labelled_tar(model.parent / "train.tar", 3, 8)
    return train, labelled_tar(model.parent / "test.tar", 3, 4, first=8)


def tuned(model, sets, out, **changes) -> dict:
    train, test = sets
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 12, "base_lr": 0.02, "micro_batch": 4}
    settings |= {"as_json": True, **changes}
    finetune_command(FinetuneOptions(checkpoint=model, train=train, test=test, out=out, **settings))
    return json.loads((out / "results.json").read_text())


def test_interruption_does_not_change_the_result(model, sets, tmp_path, monkeypatch):
    whole = tuned(model, sets, tmp_path / "whole")
    assert whole["settings"]["mixup"] == 0.8
    assert (whole["test"]["samples"], whole["test"]["classes"]) == (12, 3)
    assert 0 <= whole["test"]["top1"] <= 1 == whole["test"]["top5"]

    from flipscale.transfer.finetune_state import FinetuneState

    save = FinetuneState.save

    def save_and_die(self, model, optimizer, epochs):
        save(self, model, optimizer, epochs)
        raise KeyboardInterrupt

    monkeypatch.setattr(FinetuneState, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        tuned(model, sets, tmp_path / "parts")
    monkeypatch.undo()
    assert not (tmp_path / "parts" / "results.json").exists()
    assert tuned(model, sets, tmp_path / "parts")["test"] == whole["test"]
    ours, theirs = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("parts", "whole"))
    assert ours.keys() == theirs.keys() >= {"model.head.bias", "exp_avg.head.bias", "exp_avg_sq.head.bias"}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    # Begun again when it is done, it only scores.
    written = (tmp_path / "parts" / "checkpoint.safetensors").stat().st_mtime_ns
    assert tuned(model, sets, tmp_path / "parts")["test"] == whole["test"]
    assert (tmp_path / "parts" / "checkpoint.safetensors").stat().st_mtime_ns == written


def test_wrong_settings_and_directories_are_reported(model, sets, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    one_class = labelled_folder(tmp_path / "one", ["a"], 3)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="has 24 images, fewer than a batch of 1,024"):
        tuned(model, sets, out, batch_size=None)
    assert not out.exists()
    for changes, place, message in (
        ({}, "full", "full holds something else already; give --out a new directory"),
        ({}, "file", "file holds something else already"),
        ({}, "file/out", r"file/out cannot be used \(Not a directory\); give --out another"),
        ({"drop_path": 1.0}, "out", "--drop-path is 1; give a share from 0 to below 1"),
        ({"batch_size": 9}, "out", "a batch of 9 is not a multiple of 2; .* share in pairs"),
        ({"micro_batch": 3}, "out", "a micro-batch of 3 cannot be mixed in pairs"),
        ({"epochs": 0}, "out", "epochs and micro-batch must be 1 or more"),
    ):
        with pytest.raises(UserError, match=message):
            tuned(model, sets, tmp_path / place, **changes)
    with pytest.raises(UserError, match="has only one class"):
        tuned(model, (one_class, one_class), out)


def test_directory_of_another_run_or_a_damaged_one_is_refused(model, sets, tmp_path):
    out = tmp_path / "out"
    first = tuned(model, sets, out, epochs=1)
    with pytest.raises(UserError, match=r"holds another fine-tuning: its base_lr is 0\.02, not 0\.1; give"):
        tuned(model, sets, out, epochs=1, base_lr=0.1)
    path = out / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"checkpoint\.safetensors cannot be used .*; remove it to start"):
        tuned(model, sets, out, epochs=1)
    path.unlink()
    assert tuned(model, sets, out, epochs=1)["test"] == first["test"]


class OtherNode(World):
    """A single process that gathers from a second one, which finds nothing on its node."""

    def gather(self, value: Any, group: Any = None) -> list[Any]:
        return [value, 0]


def test_nodes_that_do_not_share_the_directory_are_reported(model, sets, tmp_path, monkeypatch):
    out = tmp_path / "out"
    tuned(model, sets, out, epochs=1)
    world = OtherNode(0, 1, 0, 1, torch.device("cpu"))
    monkeypatch.setattr("flipscale.distributed.world.join_world", lambda place, timeout: world)
    with pytest.raises(UserError, match=r"find from 0 to 1 epochs done in .*out, .*all nodes share"):
        tuned(model, sets, out, epochs=1)


def test_full_disk_is_reported(model, sets, tmp_path):
    """A limit on file sizes stands for a full disk: both fail inside the write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"checkpoint\.safetensors cannot be written after epoch 1 .*room"):
            tuned(model, sets, tmp_path / "out", epochs=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tuned(model, sets, tmp_path / "out", epochs=1)["test"]["samples"] == 12


def test_divergence_is_reported(model, sets, tmp_path):
    with pytest.raises(UserError, match="it diverged; give a smaller --base-lr"):
        tuned(model, sets, tmp_path / "out", base_lr=1e30)
