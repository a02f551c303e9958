"""From a definition file to hosts that run it, and back: resolve, plan, apply, roll back, audit."""
