"""The delta kernel: C sources, compiled to `delta.wasm` when the package is built."""
