"""The schema of a trial and its validation."""
