"""`python -m vdqbench` is the console script."""

import sys

from vdqbench.cli import main

sys.exit(main())
