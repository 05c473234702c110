"""Readers of clouds from files."""
