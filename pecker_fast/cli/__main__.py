"""`python -m pecker_fast.cli`: the command line, for torchrun."""

import sys

from pecker_fast.__main__ import main

sys.exit(main())
