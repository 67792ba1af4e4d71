"""The feature dashboard: a static folder that opens from disk, and one page that is a single file."""
