"""`pecker-fast` for torchrun, with a fault in one process of the first attempt.

torchrun ... fault_main.py RANK FAULT ARGUMENT...        FAULT: a name of fault_jobs.py
"""

import os
import sys

from fault_jobs import FAULTS

from pecker_fast import cli

rank, fault, *arguments = sys.argv[1:]
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == rank:
    FAULTS[fault]()
sys.exit(cli.main(arguments))
