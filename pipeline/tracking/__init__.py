"""What a stage says of itself to MLflow; no result depends on it."""
