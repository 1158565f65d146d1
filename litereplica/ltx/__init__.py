"""LTX records: the log's and the wire's one format, pure.

Knows bytes and values of a record, positions and page checksums.
Does not know where records are kept, who sends them, or what a transaction means to SQLite.
"""
