"""The offline report page."""
