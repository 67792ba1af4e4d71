"""The step loop, optimisers, schedules, dead features and checkpoints."""
