"""A component that opens one socket: what the engine's self-test runs.

Written against the text format of components; `run` answers 0 when the socket was opened, otherwise 1 + the number of
the `wasi:sockets` error code.
"""

from __future__ import annotations

_ERROR_CODES = [
    "unknown",
    "access-denied",
    "not-supported",
    "invalid-argument",
    "out-of-memory",
    "timeout",
    "concurrency-conflict",
    "not-in-progress",
    "would-block",
    "invalid-state",
    "new-socket-limit",
    "address-not-bindable",
    "address-in-use",
    "remote-unreachable",
    "connection-refused",
    "connection-reset",
    "connection-aborted",
    "datagram-too-large",
    "name-unresolvable",
    "temporary-resolver-failure",
    "permanent-resolver-failure",
]


def socket_component(protocol: str) -> str:
    """The component's text for `tcp` or `udp`."""
    errors = " ".join(f'"{code}"' for code in _ERROR_CODES)
    return f"""
(component
  (import "wasi:sockets/network@0.2.0" (instance $network
    (type $error (enum {errors}))
    (export "error-code" (type (eq $error)))
    (type $family (enum "ipv4" "ipv6"))
    (export "ip-address-family" (type (eq $family)))))
  (alias export $network "error-code" (type $error))
  (alias export $network "ip-address-family" (type $family))
  (import "wasi:sockets/{protocol}@0.2.0" (instance $sockets
    (export "{protocol}-socket" (type (sub resource)))))
  (alias export $sockets "{protocol}-socket" (type $socket))
  (import "wasi:sockets/{protocol}-create-socket@0.2.0" (instance $create
    (alias outer 1 $error (type $outer_error))
    (export "error-code" (type $e (eq $outer_error)))
    (alias outer 1 $family (type $outer_family))
    (export "ip-address-family" (type $f (eq $outer_family)))
    (alias outer 1 $socket (type $outer_socket))
    (export "{protocol}-socket" (type $s (eq $outer_socket)))
    (type $result (result (own $s) (error $e)))
    (export "create-{protocol}-socket" (func (param "address-family" $f) (result $result)))))
  (core module $memory (memory (export "memory") 1))
  (core instance $memory (instantiate $memory))
  (alias core export $memory "memory" (core memory $m))
  (core func $create (canon lower (func $create "create-{protocol}-socket") (memory $m)))
  (core module $main
    (import "host" "create" (func $create (param i32 i32)))
    (import "host" "memory" (memory 1))
    (func (export "run") (result i32)
      (call $create (i32.const 0) (i32.const 0))
      (if (result i32) (i32.load8_u (i32.const 0))
        (then (i32.add (i32.const 1) (i32.load8_u (i32.const 4))))
        (else (i32.const 0)))))
  (core instance $main (instantiate $main
    (with "host" (instance (export "create" (func $create)) (export "memory" (memory $m))))))
  (func (export "run") (result u32) (canon lift (core func $main "run"))))
"""
