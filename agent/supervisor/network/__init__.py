"""A network namespace for a guest: its interface, its addresses, and the rules that say who reaches it and whom it may
reach. Imported only where a guest is to have one (see `agent.supervisor.network.networks`)."""
