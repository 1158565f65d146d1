"""The applier: a child process that writes received transactions into the mount, and the daemon's link to it.

Imports nothing here: the child loads only what it needs, and the daemon only the link.
"""
