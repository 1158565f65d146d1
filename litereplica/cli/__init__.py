"""The command line, one file a command.

Knows arguments, tables and exit codes. Does not know how a node works: it starts one, or asks one over HTTP.
"""
