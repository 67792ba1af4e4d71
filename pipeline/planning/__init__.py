"""What a run will need: said, measured and refused before anything long starts. Nothing here changes a result."""
