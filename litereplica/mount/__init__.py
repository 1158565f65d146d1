"""The mounted directory: what an application's system calls become."""
