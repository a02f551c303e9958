"""The minimal API of a host: every call, every record and the process specification, and nothing else.

`agent` and `deployer` meet only here. A call travels as one msgpack map in an HTTP request body (`POST /v1/call`, an
`Envelope`); an answer is a msgpack map as well: the call's result, or a `Refusal` with a 4xx or 5xx status.

Each module builds on those before it:

- `base`: what every structure is, the bounded types, the one encoding that digests are taken of
- `processes`: what a process is, and its version
- `calls`: what a host can be asked to do; `answers`: what came of it
- `facts`: what a host tells of itself and of what it runs; `journal`: the chain of what it has done
- `neighbours`: the hosts that it may exchange blobs with
- `blobs`: what is asked about blobs before they move; `fetching`: how they come in pieces
- `words`: word of a release, for hosts that were away; `records`: what hosts of other versions read as bytes
- `routes`: where each question is put

Hosts and operators of different versions talk to each other, and digests last: a field is added as `base.Struct` says,
and nothing else of what is here is ever changed.
"""
