"""A campaign of faults: damaged files, senseless parameters, killed processes."""
