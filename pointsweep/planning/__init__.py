"""Plan of a launch: what would run, what it needs, what the design can resolve; the audit."""
