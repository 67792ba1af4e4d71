"""Reconstruction, sparsity and spliced language-model metrics."""
