"""Runs the command from wherever this folder lies; `python3 -I` looks for modules in the system's folders alone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hypervisor_network.command import main

if __name__ == "__main__":
    sys.exit(main())
