"""The data directory: database files, the LTX log, page checksums, and the way back after a crash."""
