"""What decides: the agent's service, its durable state, and the life of every process."""
