"""Configurations of flipscale's models in OpenCLIP's terms, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from flipscale.errors import UserError
from flipscale.interop.config_limits import check_config
from flipscale.interop.openclip_state import POSITIONS, folded_bias
from flipscale.interop.preprocessing import Preprocessing, read_preprocessing
from flipscale.models.initialization import SIGMOID_BIAS
from flipscale.models.presets import ModelSpec, TextSpec, VisionSpec
from flipscale.models.vision import sincos_positions

# Every key that can be imported, with OpenCLIP's default (CLIPVisionCfg, CLIPTextCfg).
_TOWER_DEFAULTS: dict[str, Any] = {"mlp_ratio": 4.0, "norm_kwargs": {}, "act_kwargs": {}}
_VISION_DEFAULTS: dict[str, Any] = {
    **_TOWER_DEFAULTS,
    "image_size": 224,
    "layers": 12,
    "width": 768,
    "head_width": 64,
    "patch_size": 16,
    "patch_dropout": 0.0,
    "no_ln_pre": False,
    "pool_type": "tok",
    "final_ln_after_pool": False,
    "pos_embed_type": "learnable",
}
_TEXT_DEFAULTS: dict[str, Any] = {
    **_TOWER_DEFAULTS,
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "hf_tokenizer_name": None,
    "tokenizer_kwargs": {},
}
_MODEL_DEFAULTS: dict[str, Any] = {
    "embed_dim": 512,
    "quick_gelu": False,
    "custom_text": False,
    "init_logit_scale": None,  # only an initial value: the trained one is in the weights
    "init_logit_bias": None,
}

_GELUS = ("none", "tanh")


# The types of values that a setting takes, by the type of its default.
_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "a word"),
    dict: ((dict, type(None)), "an object"),
    type(None): ((object,), "anything"),
}

_VISION_POOLS = {"patch_mean": "avg", "class_token": "tok"}


def open_clip_model_cfg(spec: ModelSpec) -> dict[str, Any]:
    """Return the `model_cfg` block from which stock OpenCLIP (>= 2.23) builds a model."""
    vision = spec.vision
    text = spec.text
    quick = vision.gelu == "quick"  # OpenCLIP has one such setting for both towers
    assert quick == (text.gelu == "quick")

    return {
        "embed_dim": spec.embed_dim,
        **({"quick_gelu": True} if quick else {}),
        # OpenCLIP makes the parameter only if it is given an initial value.
        **({"init_logit_bias": SIGMOID_BIAS} if spec.logit_bias else {}),
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.layers,
            "width": vision.width,
            "head_width": vision.width // vision.heads,
            "patch_size": vision.patch_size,
            "no_ln_pre": not vision.norm_before,
            "pool_type": _VISION_POOLS[vision.pool],
            "final_ln_after_pool": False,
            "pos_embed_type": "sin_cos_2d" if vision.positions == "sincos" else "learnable",
            "norm_kwargs": {"eps": vision.norm_eps},
            **({} if quick else {"act_kwargs": {"approximate": vision.gelu}}),
        },
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "no_causal_mask": not text.causal,
            "pool_type": text.pool,
            "norm_kwargs": {"eps": text.norm_eps},
            **({} if quick else {"act_kwargs": {"approximate": text.gelu}}),
        },
    }


def spec_of_open_clip(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor] | None, patch_bias: Tensor | None, name: str
) -> ModelSpec:
    """Return the spec of a model of OpenCLIP (CLIP class, native towers).

    Positions are fixed ones if they equal the sin-cos table plus the patch bias. Without a stored patch bias,
    this is tried only if the configuration calls the positions fixed; the bias, which may be zero, is then
    taken from them. All other positions are learned ones.

    Args:
        config: The parsed `open_clip_config.json`.
        tensors: The model's weights; None for initial ones.
        patch_bias: The bias (width,) of the patch convolution, if it was stored next to the weights.
        name: The name for the spec.

    Raises:
        UserError: If the model has a feature that flipscale's towers lack.
    """
    check_config(config)
    model = _settings(config["model_cfg"], {**_MODEL_DEFAULTS, "vision_cfg": {}, "text_cfg": {}}, "model_cfg")
    vision = _settings(model["vision_cfg"], _VISION_DEFAULTS, "vision_cfg")
    text = _settings(model["text_cfg"], _TEXT_DEFAULTS, "text_cfg")
    preprocessing = read_preprocessing(config)
    _check_features(model, vision, text, preprocessing)

    pools = {pool: ours for ours, pool in _VISION_POOLS.items()}
    learned = VisionSpec(
        **_tower(vision, vision["width"] // vision["head_width"], model["quick_gelu"]),
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        pool=cast("Any", pools[vision["pool_type"]]),
        positions="learned",
        patch_bias=False,
        norm_before=not vision["no_ln_pre"],
    )
    fixed = vision["pos_embed_type"] == "sin_cos_2d"

    return ModelSpec(
        name=name,
        family="flip" if text["pool_type"] == "first" else "clip",
        embed_dim=model["embed_dim"],
        vision=_with_fixed_positions(learned, fixed, tensors, patch_bias),
        text=TextSpec(
            **_tower(text, text["heads"], model["quick_gelu"]),
            context_length=text["context_length"],
            vocab_size=text["vocab_size"],
            causal=not text["no_causal_mask"],
            pool=text["pool_type"],
        ),
        mean=preprocessing.mean,
        std=preprocessing.std,
        logit_bias=model["init_logit_bias"] is not None,
    )


def _check_features(
    model: Mapping[str, Any],
    vision: Mapping[str, Any],
    text: Mapping[str, Any],
    preprocessing: Preprocessing,
) -> None:
    """Raise UserError for a setting of OpenCLIP that flipscale's towers or its preprocessing lack."""
    both_gelus = bool(model["quick_gelu"] and (vision["act_kwargs"] or text["act_kwargs"]))
    norm_after_mean = vision["final_ln_after_pool"] and vision["pool_type"] == "avg"

    for value, allowed, key in (
        (vision["pool_type"], tuple(_VISION_POOLS.values()), "vision_cfg.pool_type"),
        (text["pool_type"], ("first", "argmax"), "text_cfg.pool_type"),
        (norm_after_mean, (False,), "vision_cfg.final_ln_after_pool"),
        (both_gelus, (False,), "act_kwargs"),
        (model["custom_text"], (False,), "custom_text"),
        (vision["mlp_ratio"], (4,), "vision_cfg.mlp_ratio"),
        (text["mlp_ratio"], (4,), "text_cfg.mlp_ratio"),
        (preprocessing.resize_mode, ("shortest",), "preprocess_cfg.resize_mode"),
        (preprocessing.interpolation, ("bicubic",), "preprocess_cfg.interpolation"),
    ):
        if value not in allowed:
            shown = repr(value)[:80]
            raise UserError(f"{key} {shown} cannot be imported; what can: {', '.join(map(str, allowed))}")

    for value, divisor, key in (
        (vision["width"], vision["head_width"], "vision_cfg.width is {} and not a multiple of head_width {}"),
        (text["width"], text["heads"], "text_cfg.width is {} and not a multiple of {} heads"),
        (
            vision["image_size"],
            vision["patch_size"],
            "vision_cfg.image_size is {}, no multiple of patch_size {}",
        ),
    ):
        if value % divisor:
            reason: str = key.format(value, divisor)
            raise UserError(f"{reason}; correct one of them")


def _with_fixed_positions(
    vision: VisionSpec, fixed: bool, tensors: Mapping[str, Tensor] | None, patch_bias: Tensor | None
) -> VisionSpec:
    """Return the spec with sin-cos positions if the weights hold those, else as it is."""
    if vision.width % 4:
        return vision
    if tensors is None:
        return replace(vision, positions="sincos", patch_bias=True) if fixed else vision

    positions = tensors.get(POSITIONS)
    if positions is None or positions.shape != (1 + vision.patches, vision.width):
        return vision
    if patch_bias is None and fixed:
        patch_bias = folded_bias(positions)
    if patch_bias is not None and patch_bias.shape != (vision.width,):
        return vision

    table = sincos_positions(vision.width, vision.grid)
    if patch_bias is not None:
        table[1:] += patch_bias
    # Sines differ in the last bit between machines; a trained table differs by far more.
    if not torch.allclose(positions.float(), table, rtol=0.0, atol=1e-6):
        return vision
    return replace(vision, positions="sincos", patch_bias=patch_bias is not None)


def _tower(settings: Mapping[str, Any], heads: int, quick_gelu: bool) -> dict[str, Any]:
    norm = _settings(settings["norm_kwargs"] or {}, {"eps": 1e-5}, "norm_kwargs")
    activation = _settings(settings["act_kwargs"] or {}, {"approximate": "none"}, "act_kwargs")
    if activation["approximate"] not in _GELUS:
        raise UserError(f"act_kwargs.approximate is not one of {', '.join(_GELUS)}")

    return {
        "width": settings["width"],
        "layers": settings["layers"],
        "heads": heads,
        "norm_eps": norm["eps"],
        "gelu": "quick" if quick_gelu else activation["approximate"],
    }


def _settings(block: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the settings of a block over the defaults.

    Raises:
        UserError: If a key is unknown, or a value has another type than its default.
    """
    for key, value in block.items():
        if key not in defaults:
            raise UserError(f"{name}.{key[:80]} is a feature of OpenCLIP that flipscale's towers do not have")

        types, noun = _KINDS[type(defaults[key])]
        if not isinstance(value, types) or (type(value) is bool and int in types):
            raise UserError(f"{name}.{key} is {repr(value)[:80]}, but flipscale's towers need {noun} there")
        if float in types and not 0.0 <= value < 1e6:
            raise UserError(f"{name}.{key} is {value}, which is not a setting of a model; correct it")

    return {**defaults, **block}
