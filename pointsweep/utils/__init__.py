"""Provenance, energy, caches, streams, masking."""
