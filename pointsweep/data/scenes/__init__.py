"""Data sets of semantic segmentation: scenes cut into blocks, every point with its class."""
