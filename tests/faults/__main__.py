"""Runs the tests that take minutes: kills, full disks, damaged files, races, in their full numbers.

    python -m tests.faults                    # all of them
    python -m tests.faults -k cache -x        # other arguments are those of pytest

They are marked `faults`. `make test` leaves them out and runs short versions.
"""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(["-m", "faults", *sys.argv[1:]]))
