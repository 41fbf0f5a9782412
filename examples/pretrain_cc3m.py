"""Pretrain CLIP-style towers with CyCLIP's losses, evaluate them, and write a report.

    python examples/pretrain_cc3m.py                          emoji images, 5 minutes on 2 cores
    python examples/pretrain_cc3m.py --compare --seeds 0 1 2  CLIP, CyCLIP and two others
    python examples/pretrain_cc3m.py --train-data PATH        CC3M: tar shards, TSV or CSV
    python examples/pretrain_cc3m.py --resume logs/NAME       continue after Ctrl-C
    torchrun --nproc-per-node 2 examples/pretrain_cc3m.py     the same on two processes

Settings: --help. The code is in cyclip_ext/training; the installed command is cyclip-train.
"""

import sys

from cyclip_ext.training.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
