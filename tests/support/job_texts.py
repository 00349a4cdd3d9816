"""Texts of job files, the smallest one and one with every block."""

from __future__ import annotations

BASE = """\
name: run
model: vit_b16
data:
  train: /data/{000..009}.tar
  tokenizer: {vocab: vocab.txt}
phases:
  - {name: masked, samples: 12.8B, mask_ratio: 0.5, batch_size: 65536, base_lr: 4e-6, warmup: 51.2M}
"""
PAPER = """\
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
optimizer: {betas: [0.9, 0.95], eps: 1e-6, weight_decay: 0.1, clip_grad_norm: 1.0}
sharding: {strategy: ddp, precision: bf16}
checkpoint: {every: [20M samples, 30min, 1k steps], keep_last: 3, keep_every: 1.28B}
logging: {every: 100k samples, tensorboard: false}
evaluation:
  zero_shot:
    imagenet: {data: /data/val, classnames: imagenet, templates: openai80}
  retrieval: {coco: "/data/coco/{0..4}.tar"}
cluster: {nodes: 32, gpus_per_node: 8, timeout: 24h}
"""
