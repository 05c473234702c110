"""Trackers: where runs are shown while they train. MLflow is one of them."""
