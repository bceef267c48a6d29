"""`python -m traces`."""

import sys

from traces.cli.commands import main

sys.exit(main())
