"""litereplica: replicates SQLite databases between machines, underneath applications that are not changed.

Knows its own version, the one place where it is written. Imports nothing, so that every command starts quickly.
"""

__version__ = "0.1.0"
