"""`python -m foundation`: the same program as `lightning`."""

import sys

from foundation.cli import main

sys.exit(main())
