"""One host. `api` is what the world sees; `daemon` decides, `supervisor` holds, `sandbox` is where a guest runs."""
