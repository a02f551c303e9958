"""What outlives the agent: listeners, answers to system calls, output, exit statuses (see `agent.runtime`)."""
