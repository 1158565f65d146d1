"""SQLite's own formats, pure.

Knows the bytes of the database header, the WAL, the wal-index and their checksums, and which write commits.
Does not know files, locks being taken, our log or any other node.
"""
