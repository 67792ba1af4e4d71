"""The activation store: schema, writer, reader and shuffling."""
