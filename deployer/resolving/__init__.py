"""From a definition to what hosts run: every name becomes a digest, every process a specification."""
