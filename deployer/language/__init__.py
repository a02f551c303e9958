"""What may stand in a definition: the schema, and the way from files with positions to a checked definition."""
