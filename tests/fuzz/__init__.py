"""Documents that are nearly right: made from whole ones by structured changes, for every reader of files that others may write."""
