"""Blobs by hash: the store, its refs, and the stream that carries blobs from one store to another."""
