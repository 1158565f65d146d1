"""The HTTP proxy in front of an application: a process of its own, which knows its node only over HTTP and the mount.

The only user of aiohttp. Nothing here is imported by the daemon.
"""
