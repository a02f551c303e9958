"""A cloud's directory, its authority and operators, and where its history and blobs are."""
