"""Carrying a plan out on real hosts: the fleet, blobs to hosts, calls, what came of them, what is still to do."""
