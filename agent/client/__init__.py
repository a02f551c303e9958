"""How anything talks to a host's agent: one connection pool, every answer bounded, every failure one of three.

`client` has a method for each question of the API. `connections` is how any of them is put: what is tried again, how
much an answer may have, how long it is waited for. `errors` are the ways in which that can end badly.
"""
