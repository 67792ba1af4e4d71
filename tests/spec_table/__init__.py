"""Every formula of the specification, a wrong form of it, and the tests that notice."""
