"""One trial: loop, optimiser, checkpoints, supervisor."""
