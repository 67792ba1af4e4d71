"""The file formats of dictionaries, each in a module of its own."""
