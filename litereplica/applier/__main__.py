"""``python -m litereplica.applier DESCRIPTOR MOUNT PARENT``: the child process; started by link.py only."""

import os
import sys

# Before numpy is imported: a pool of BLAS threads with their buffers would cost more memory than the rest together.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

from litereplica.applier.child import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
