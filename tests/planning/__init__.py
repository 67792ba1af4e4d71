"""Tests of pipeline.planning."""
