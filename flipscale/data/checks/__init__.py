"""Checks of a data set: scan, summary, clean shards and histograms."""
