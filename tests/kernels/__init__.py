"""Tests of pipeline/kernels."""
