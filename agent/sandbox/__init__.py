"""The guest's process: forked from a zygote, closed in by the kernel, running one program in the engine."""
