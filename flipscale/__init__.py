"""FLIP at scale: masked contrastive language-image training with exact samples-seen budgets."""

__version__ = "0.2.0"
