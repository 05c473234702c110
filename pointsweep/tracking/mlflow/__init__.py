"""MLflow: the tracker of every address that names no other one."""
