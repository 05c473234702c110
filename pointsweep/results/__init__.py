"""Record, trial directory, history, index."""
