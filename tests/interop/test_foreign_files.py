"""Weights and configurations of others: what stock OpenCLIP loads is read, and the rest is one sentence."""

from __future__ import annotations

import copy
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.stock_comparison import FLIP_SPEC, PIECES, perturbed

from flipscale.data.text.tokenizer import WordPieceTokenizer
from flipscale.distributed.placement import Placement
from flipscale.distributed.world import join_world
from flipscale.errors import UserError
from flipscale.interop.import_source import find_import_source
from flipscale.interop.load_model import is_model, load_model
from flipscale.interop.openclip_directory import BIAS_KEY, CONFIG, finished_config
from flipscale.interop.openclip_export import export_openclip
from flipscale.interop.openclip_import import convert_openclip, import_openclip
from flipscale.interop.stock import load_stock
from flipscale.interop.tensor_files import read_header
from flipscale.interop.weights import WEIGHTS, read_weights
from flipscale.third_party import import_open_clip

open_clip = import_open_clip()
CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 50, "width": 64, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"},
}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of flipscale, with a patch bias in the header of its weights."""
    directory = tmp_path_factory.mktemp("export")
    tokenizer = WordPieceTokenizer(PIECES, FLIP_SPEC.text.context_length)
    export_openclip(perturbed(FLIP_SPEC), FLIP_SPEC, directory, tokenizer=tokenizer)
    return directory


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that stock OpenCLIP could have written."""
    directory = tmp_path_factory.mktemp("small")
    (directory / CONFIG).write_text(json.dumps(SMALL))
    save_file(open_clip.CLIP(**SMALL["model_cfg"]).state_dict(), directory / WEIGHTS)
    return directory


def copied(source: Path, target: Path, config: Any = None) -> Path:
    """Return a copy of an OpenCLIP directory with another configuration."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        (target / name).unlink(missing_ok=True)
        (target / name).hardlink_to(source / name)
    if config is not None:
        (target / CONFIG).unlink()
        (target / CONFIG).write_text(config if isinstance(config, str) else json.dumps(config))
    return target


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pointer.bin": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"),
        "is a pointer of Git LFS and not the file itself; fetch it with `git lfs pull`",
    ),
    "pointer.safetensors": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"),
        "is a pointer of Git LFS",
    ),
    "page.pt": (lambda path: path.write_text("\n<!DOCTYPE html><html>404</html>"), "is a web page"),
    "page.safetensors": (lambda path: path.write_text("<html>login</html>"), "is a web page"),
    "other_name.bin": (
        lambda path: save_file({"a": torch.ones(2)}, path),
        "is a safetensors file, under a name of the other kind; rename it to other_name.safetensors",
    ),
    "pickle.safetensors": (
        lambda path: torch.save({"a": torch.ones(2)}, path),
        "is a zip archive, as torch.save writes it, under a name of the other kind; rename it to pickle.bin",
    ),
    "old.safetensors": (
        lambda path: torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False),
        "is a pickle, as torch.save wrote it before",
    ),
    "empty.safetensors": (lambda path: path.write_bytes(b""), "is empty"),
    "text.pt": (lambda path: path.write_text("no weights"), "is neither a safetensors file nor one of"),
    "zeros.bin": (lambda path: path.write_bytes(bytes(9999)), "is neither a safetensors file nor one of"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_called_by_what_they_are(name: str, tmp_path: Path) -> None:
    """They were said to run code, or to be damaged."""
    write, message = FILES[name]
    write(tmp_path / name)
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class Wrapper(torch.Tensor):
    """A tensor without storage of its own."""

    @staticmethod
    def __new__(cls) -> Wrapper:
        return torch.Tensor._make_wrapper_subclass(cls, (2,))

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:  # pyrefly: ignore[bad-override]: it is never called
        raise NotImplementedError


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "meta": (lambda: torch.ones(2, device="meta"), "holds no plain numbers in 'x'"),
    "sparse": (lambda: torch.ones(2, 2).to_sparse(), "holds no plain numbers in 'x'"),
    "complex": (lambda: torch.ones(2, dtype=torch.complex64), "holds no plain numbers in 'x'"),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "holds no plain numbers",
    ),
    "expanded": (lambda: torch.ones(1).half().expand(10**6, 10**6), "holds fewer numbers than 'x' has"),
    "nan": (lambda: torch.tensor([1.0, float("nan")]), "has a number that is not finite in 'x'"),
    "inf": (lambda: torch.tensor([1.0, float("inf")]).half(), "has a number that is not finite in 'x'"),
    "number": (lambda: 3, "holds no state dict"),
    "list": (lambda: [torch.ones(2)], "holds no state dict"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", HOSTILE)
def test_tensors_that_are_not_plain_finite_numbers_are_refused(kind: str, tmp_path: Path) -> None:
    make, message = HOSTILE[kind]
    torch.save({"state_dict": {"a": torch.ones(2), "x": make()}}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "w.pt")


def test_subclasses_and_empty_state_dicts_are_refused(tmp_path: Path) -> None:
    for content in ({}, {"state_dict": {}}, {"state_dict": None}, [], None, {"x": {"y": torch.ones(2)}}):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(UserError, match="holds no state dict"):
            read_weights(tmp_path / "w.pt")

    torch.save({"x": Wrapper()}, tmp_path / "w.pt")
    with pytest.raises(UserError):
        read_weights(tmp_path / "w.pt")


def test_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1 << 23)}, tmp_path / "whole.pt")
    packed = zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(UserError, match="is a compressed archive"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "header", ["!", "AAAA", "AAA", "A", "\u00e4", "AACAfw==" * 64, "0" * 4 * 128, ""], ids=range(8)
)
def test_damaged_patch_bias_is_named(header: str, export: Path, tmp_path: Path) -> None:
    directory = copied(export, tmp_path / "copy")
    tensors = load_file(export / WEIGHTS)
    (directory / WEIGHTS).unlink()
    save_file(tensors, directory / WEIGHTS, metadata={**read_header(export / WEIGHTS), BIAS_KEY: header})
    if header:
        with pytest.raises(UserError, match=rf"the header {BIAS_KEY} of the weights is damaged"):
            import_openclip(directory)
    else:
        assert import_openclip(directory)[0] == FLIP_SPEC


VALUES = [
    None, True, -1, 0, 3, 10**9, 10**400, -0.5, 1e300, float("nan"), "", "x" * 200, [], [1, 2], {}, {"a": 1},
]  # fmt: skip


def refusal(read: Callable[..., object], *arguments: object) -> str:
    """Return the sentence by which an input is refused, or an empty text if it is read."""
    try:
        read(*arguments)
    except UserError as error:
        return str(error)
    return ""


def places(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every block and value of a configuration."""
    for key, value in node.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def damaged_configs(config: dict[str, Any]) -> list[Any]:
    """Return configurations with one value replaced or removed, and documents of other shapes."""
    config = copy.deepcopy(config)
    config["model_cfg"] |= {"quick_gelu": False, "init_logit_bias": None, "flipscale": None}
    config["model_cfg"]["text_cfg"] |= {
        "norm_kwargs": {"eps": 1e-5},
        "act_kwargs": {},
        "tokenizer_kwargs": {},
    }
    del config["model_cfg"]["flipscale"]
    config["flipscale"] = {"model": "m"}

    damaged: list[Any] = [
        "[" * 100_000,
        "[]",
        "null",
        "{",
        "\ud800".encode("utf-8", "replace").decode(),
        "{}",
    ]
    for path in places(config):
        for value in [*VALUES, ...]:
            other = copy.deepcopy(config)
            block: Any = other
            for key in path[:-1]:
                block = block[key]
            if value is ...:
                del block[path[-1]]
            else:
                block[path[-1]] = value
            damaged.append(other)
    return damaged


@pytest.mark.parametrize("chosen", [60, pytest.param(None, marks=pytest.mark.slow)])
def test_configurations_are_read_or_refused_in_one_sentence(
    chosen: int | None, small: Path, tmp_path: Path
) -> None:
    """Each value of a configuration is replaced by each of sixteen others, and removed."""
    weights = read_weights(small / WEIGHTS)
    configs = damaged_configs(SMALL)
    if chosen is not None:
        configs = random.Random(0).sample(configs, chosen)

    def read(config: Any) -> None:
        directory = copied(small, tmp_path / "copy", config)
        convert_openclip(finished_config(directory), weights, "small")

    sentences = [refusal(read, config) for config in configs]
    refused = [sentence for sentence in sentences if sentence]
    assert len(configs) // 10 < len(refused) < len(configs)
    assert max(map(len, refused)) < 1000
    assert not any("\n" in sentence for sentence in refused)


def test_stock_open_clip_never_sees_a_configuration_out_of_range(small: Path, tmp_path: Path) -> None:
    """It builds a model of 10^9 layers without an end."""
    for block, key in (("vision_cfg", "layers"), ("vision_cfg", "width"), ("text_cfg", "vocab_size")):
        for value in (0, 10**9):
            config = copy.deepcopy(SMALL)
            config["model_cfg"][block][key] = value
            directory = copied(small, tmp_path / "copy", config)
            with pytest.raises(UserError, match=rf"{block}\.{key} is {value}, but a model needs"):
                load_stock(f"local-dir:{directory}", CPU)

    for config in random.Random(0).sample(damaged_configs(SMALL), 12):
        directory = copied(small, tmp_path / "copy", config)
        assert "\n" not in refusal(load_stock, f"local-dir:{directory}", CPU)


PREPROCESSING = [
    {},
    {"mean": None, "std": None, "interpolation": None, "resize_mode": None},
    {"mean": 0.5, "std": 0.25},
    {"mean": [0.5], "std": [0.25]},
    {"mean": 0, "std": 0.0},
    {"interpolation": "random", "fill_color": 0, "size": 32, "mode": "RGB", "unknown": {}},
    {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]},
]


@pytest.mark.parametrize("preprocess", [None, *PREPROCESSING], ids=range(8))
def test_preprocessing_is_that_of_stock_open_clip(preprocess: Any, small: Path, tmp_path: Path) -> None:
    directory = copied(small, tmp_path / "copy", {**SMALL, "preprocess_cfg": preprocess})
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    normalize = transform.transforms[-1]
    pixels = torch.rand(3, 4, 4)

    spec, _ = import_openclip(directory)
    stock = load_stock(f"local-dir:{directory}", CPU)
    assert stock.resizing is None
    for mean, std in ((spec.mean, spec.std), (stock.model._mean, stock.model._std)):
        ours = (pixels - torch.as_tensor(mean).view(3, 1, 1)) / torch.as_tensor(std).view(3, 1, 1)
        torch.testing.assert_close(ours, normalize(pixels))


@pytest.mark.parametrize(
    "preprocess", [{"mean": "x"}, {"std": [1, 2]}, {"std": -1}, {"interpolation": 7}, 3, [1]]
)
def test_preprocessing_that_stock_open_clip_refuses(preprocess: Any, small: Path, tmp_path: Path) -> None:
    directory = copied(small, tmp_path / "copy", {**SMALL, "preprocess_cfg": preprocess})
    with pytest.raises(UserError, match="preprocess_cfg"):
        import_openclip(directory)
    with pytest.raises(UserError, match="preprocess_cfg"):
        load_stock(f"local-dir:{directory}", CPU)


def test_prefix_of_directories_is_understood_everywhere(export: Path) -> None:
    named = f"local-dir:{export}"
    assert is_model(Path(named))
    assert load_model(Path(named), join_world(Placement())).model.spec == FLIP_SPEC
    assert find_import_source(named, None, None, False).stock == f"local-dir:{export.resolve()}"
    with pytest.raises(UserError, match="there is no directory nowhere"):
        find_import_source("local-dir:nowhere", None, None, False)


@pytest.mark.parametrize("asked", [True, False])
def test_code_of_a_tokenizer_is_never_run(asked: bool, small: Path, tmp_path: Path) -> None:
    """The transformers library runs code next to a configuration that says so; OpenCLIP passes that on."""
    config = copy.deepcopy(SMALL)
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "mine"
    if asked:
        config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    directory = copied(small, tmp_path / "copy", config)
    harm = tmp_path / "harm"
    (directory / "mine.py").write_text(f"open({str(harm)!r}, 'w').close()\nclass Mine: ...\n")
    document = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(document))

    of_transformers = "contains custom code|requires you to execute the configuration file"  # by its version
    message = "trust_remote_code could run code" if asked else of_transformers
    with pytest.raises(UserError, match=message):
        load_stock(f"local-dir:{directory}", CPU)
    if asked:
        with pytest.raises(UserError, match=message):
            import_openclip(directory)
    assert not harm.exists()


def test_tokenizer_with_more_ids_than_the_model_is_refused(export: Path, tmp_path: Path) -> None:
    """Its captions would ask for embeddings that are not there."""
    directory = copied(export, tmp_path / "copy")
    (directory / "vocab.txt").write_text("\n".join([*PIECES, "more"]))
    with pytest.raises(UserError, match=rf"gives {len(PIECES) + 1} ids, but the model takes {len(PIECES)}"):
        load_model(directory, join_world(Placement()))
