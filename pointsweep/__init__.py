"""pointsweep: a YAML file that is the paper's table, and the command that fills it."""

__version__ = "0.1.0"
