"""One launch: sessions, launchers, budget, progress, outcomes."""
