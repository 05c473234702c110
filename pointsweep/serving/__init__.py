"""The sweeps of a store in the browser, live and read-only."""
