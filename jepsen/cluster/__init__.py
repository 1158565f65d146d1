"""Real nodes, real Consul servers and a network between them, to be broken on purpose."""
