"""The stream between a primary and its replicas, over TCP."""
