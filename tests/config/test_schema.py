"""The JSON Schema of job files: every field is in it, and it accepts what a file may say."""

from __future__ import annotations

from typing import Any

import yaml

from flipscale.config import Site, job_schema
from flipscale.config.site import SiteNetwork
from flipscale.config.values import Strict

EXAMPLE = """\
name: vith14
output: /runs/vith14
model: {preset: vit_h14, image_size: 224, patch_size: 14}
seed: 3
data:
  train: /data/{000000..231349}.tar::/more/{0..9}.tar
  tokenizer: {kind: wordpiece, vocab: bert-base-uncased, context_length: 32}
  lanes: 1024
  window: 4k
  index: /data/index
  workers: 8
  augmentation: {crop_area: [0.5, 1.0], flip: false, interpolation: bilinear}
  max_image_pixels: 50M
phases:
  - {name: masked, samples: 25.6B, mask_ratio: 0.5, batch_size: 65536, base_lr: 2.0e-6, warmup: 256M}
  - {name: unmasked, samples: 128M, mask_ratio: 0.0, batch_size: 32768, base_lr: 4.0e-8, warmup: 25.6M,
     fresh_optimizer: true}
optimizer: {betas: [0.9, 0.95], eps: 1.0e-6, weight_decay: 0.1, clip_grad_norm: 1.0}
sharding: {strategy: ddp, precision: bf16}
checkpoint: {every: [20M samples, 30min, 1k steps], keep_last: 3, keep_every: 1.28B}
logging: {every: 100k samples, tensorboard: false}
evaluation:
  zero_shot:
    imagenet: {data: /data/val, classnames: imagenet, templates: openai80}
  retrieval: {coco: "/data/coco/{0..4}.tar"}
cluster: {nodes: 32, gpus_per_node: 8, timeout: 24h}
"""

TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def test_every_field_is_in_the_schema():
    schema = job_schema()
    parts = {block.__name__: block for block in Strict.__subclasses__() if block not in (Site, SiteNetwork)}
    described: dict[str, Any] = {"Job": schema, **schema["$defs"]}
    described["Model"] = described["Model"]["anyOf"][1]

    assert {"Data", "Phase", "Cluster", "ZeroShot"} <= parts.keys()
    for name, model in parts.items():
        assert described[name]["additionalProperties"] is False
        fields = set(model.model_fields) | ({"extends"} if name == "Job" else set())
        assert set(described[name]["properties"]) == fields
        for field, entry in described[name]["properties"].items():
            block = schema["$defs"].get(entry.get("$ref", "").removeprefix("#/$defs/"), {})
            assert entry.get("description", block.get("description")), f"{name}.{field}"


def accepts(schema: dict[str, Any], value: Any, node: dict[str, Any] | None = None) -> bool:
    """Return whether a schema accepts a value, by the keywords that job_schema uses; others fail the test."""
    node = schema if node is None else node
    if "type" in node:
        wanted = [node["type"]] if isinstance(node["type"], str) else node["type"]
        if not any(isinstance(value, TYPES[kind]) for kind in wanted):
            return False
    return all(_keyword_accepts(schema, value, node, keyword) for keyword in node)


def _keyword_accepts(schema: dict[str, Any], value: Any, node: dict[str, Any], keyword: str) -> bool:
    argument = node[keyword]
    match keyword:
        case "title" | "description" | "default" | "$defs" | "type":
            return True
        case "pattern":
            return True  # test_job.py has the names that do not match
        case "$ref":
            return accepts(schema, value, schema["$defs"][argument.removeprefix("#/$defs/")])
        case "anyOf":
            return any(accepts(schema, value, option) for option in argument)
        case "enum":
            return value in argument
        case "const":
            return value == argument
        case "properties":
            return all(accepts(schema, value[key], argument[key]) for key in value.keys() & argument.keys())
        case "additionalProperties":
            rest = [item for key, item in value.items() if key not in node.get("properties", {})]
            return not rest if argument is False else all(accepts(schema, item, argument) for item in rest)
        case "required":
            return all(key in value for key in argument)
        case "items":
            return all(accepts(schema, item, argument) for item in value)
        case "prefixItems":
            return all(accepts(schema, *pair) for pair in zip(value, argument, strict=True))
        case "minItems" | "maxItems":
            return len(value) >= argument if keyword == "minItems" else len(value) <= argument
    if isinstance(value, str):
        return True  # a number with its unit
    bounds = {
        "minimum": value >= argument,
        "maximum": value <= argument,
        "exclusiveMinimum": value > argument,
        "exclusiveMaximum": value < argument,
    }
    return bounds[keyword]


def test_schema_accepts_what_files_say():
    schema = job_schema()
    paper: dict[str, Any] = yaml.safe_load(EXAMPLE)

    assert accepts(schema, paper)
    assert accepts(schema, {"extends": "base.yaml", "data": {"lanes": 64}, "checkpoint": {"every": "30min"}})
    assert accepts(schema, {**paper, "model": "vit_b16", "logging": {"every": 4096}})
    assert not accepts(schema, {**paper, "sed": 1})
    assert not accepts(schema, {**paper, "model": 5})
    assert not accepts(schema, {**paper, "data": {"lane": 64}})
    assert not accepts(schema, {**paper, "phases": [{"name": "x"}]})
    assert not accepts(schema, {**paper, "cluster": {"nodes": 0}})
