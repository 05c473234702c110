"""The commands: what parses arguments."""
