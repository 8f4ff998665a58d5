"""What changed between two runs: `python -m harness.compare A B`. The work is done by `reports.compare`."""

import sys

from records.terminal import until_closed
from reports.compare import main

if __name__ == "__main__":
    sys.exit(until_closed(main))
