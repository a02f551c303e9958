"""Blobs between hosts: what this host has for others, what it takes from them, and whom it knows.

`shelf` finds the pieces that others ask for, `serving` gives them out over HTTP within limits (`limits`); `driver`
carries out what `cas.swarm` decides, over `links` to the neighbours that `acquaintance` remembers; `errands` are the
wishes that outlive their caller; `service` is all of it together.
"""
