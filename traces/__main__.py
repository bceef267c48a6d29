"""`python -m traces`."""

from traces.cli import main

raise SystemExit(main())
