"""Tests of pipeline/experiments."""
