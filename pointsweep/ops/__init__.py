"""Farthest points, neighbours, joined layers: tensors in, tensors out."""
