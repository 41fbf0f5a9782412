"""Train ten objectives with three seeds, and CLIP with several weights of the margin.

    python examples/reproduce.py                     under 2 hours on 2 cores: docs/reproduction.md
    python examples/reproduce.py data-size           accuracy by the size of the data
    python examples/reproduce.py batch-temperature   accuracy by batch size and temperature

Ctrl-C saves all states; the same command continues. Settings: --help after the name of a study. The
code is in examples/reproduction.
"""

import sys

from reproduction.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
