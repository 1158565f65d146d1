"""Breaks litereplica on purpose, and checks what it promises. How to read a report: README.md beside this file."""
