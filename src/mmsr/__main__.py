"""`python -m mmsr` is the command `mmsr` (runs/command.py)."""

import sys

from mmsr.runs.command import main

if __name__ == "__main__":
    sys.exit(main())
