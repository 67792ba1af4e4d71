"""Tests of pipeline.dashboard, some of them in a headless browser."""
