"""The verbs: one module each, found by name (`tools.main`)."""
