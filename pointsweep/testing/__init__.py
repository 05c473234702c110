"""Chaos: a sweep killed and cut off again and again, and what must hold."""
