"""Classifiers that are trained on top of a model: linear probes and fine-tuning."""
