"""Tests of pipeline/losses."""
