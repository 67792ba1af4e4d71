"""The stages of dvc.yaml, one click script each."""
