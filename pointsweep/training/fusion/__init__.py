"""Packs: trials that train as one."""
