"""Decisions and messages between nodes, pure: time is an argument, nothing is opened, awaited or logged."""
