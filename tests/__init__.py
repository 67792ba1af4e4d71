"""The tests; they mirror pipeline/ and stages/."""
