"""Scores of a trained model: zero-shot classification and retrieval."""
