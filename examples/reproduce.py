"""Ten objectives with three seeds, and the margin's weight over temperatures.

    python examples/reproduce.py           under 2 hours on 2 cores: writes docs/reproduction.md
    python examples/reproduce.py --help    Ctrl-C saves all states; the same command continues

The code is in cyclip_ext/studies.
"""

import sys

from cyclip_ext.studies.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))
