"""Tests of pipeline/dictionaries."""
