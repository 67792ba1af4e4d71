"""The checks between sections; those within one section stand beside its fields."""
