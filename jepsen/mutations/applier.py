"""``python -m jepsen.mutations.applier DESCRIPTOR MOUNT PARENT``: the applier's process with a planted bug."""

import os
import sys

# As in litereplica/applier/__main__.py: before numpy is imported.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

from jepsen.mutations import VARIABLE, put_in_place
from litereplica.applier.child import main

if __name__ == "__main__":
    put_in_place(os.environ[VARIABLE])
    sys.exit(main(sys.argv[1:]))
