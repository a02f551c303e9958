"""Blobs from many hosts to many hosts: who is asked for what, decided without clock, chance or I/O.

`ranking` says who brings a blob into a region and whose neighbour a host is, from names alone. `wanted` are the blobs
and the forms in which each may come, `blob` what is known of one; `asking` decides who is asked what it has, `pieces`
which pieces are taken from whom, `patience` when a peer is left, `peer` what is known of one. `in_flight` is what was
asked for and has not been answered, `getting` what is asked for now, `inflow` how much of that may be from other
regions. `fetching` puts them together: events in, requests out, as `messages` defines.
"""
