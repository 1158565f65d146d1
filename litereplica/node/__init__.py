"""A node: every part built, wired, started and stopped."""
