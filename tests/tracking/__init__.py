"""Tests of tracking, metric names and provenance."""
