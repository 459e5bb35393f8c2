"""``python -m landscope``."""

import sys

if sys.path and not sys.flags.safe_path:
    sys.path.append(
        sys.path.pop(0)
    )  # the working directory comes last: a random.py in it is not the standard library's

from landscope.cli import main

main()
