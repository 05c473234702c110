"""Records -> tables in every format."""
