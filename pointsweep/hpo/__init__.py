"""Optuna studies behind a sweep's searches."""
