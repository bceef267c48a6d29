"""`python -m tests.mutants` from the root of a checkout."""

import sys

from tests.mutants.command import main

if __name__ == "__main__":
    sys.exit(main())
