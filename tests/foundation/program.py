"""The program, with the toy classes known by their bare names: what `lightning` is to the real ones."""

import sys

import tests.foundation.toy  # noqa: F401
from foundation.cli import main

if __name__ == "__main__":
    sys.exit(main())
