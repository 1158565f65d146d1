"""``python -m litereplica``: the same as the ``litereplica`` command.

Knows where the command line is; nothing else.
"""

from litereplica.cli.main import main

if __name__ == "__main__":
    main()
