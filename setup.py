"""Native libraries of cyclip_ext; everything else is in pyproject.toml.

What is built, and why something is not, is decided in csrc/build_support. Environment variables:
CXX, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS, CYCLIP_BUILD_CUDA, FORCE_CUDA, CYCLIP_WERROR
(docs/install.md).
"""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "csrc"))  # for `python setup.py`; pip has it there

from build_support.commands import commands_for, options_for
from build_support.plan import make_plan

plan = make_plan()
setup(ext_modules=plan.extensions(), cmdclass=commands_for(plan), options=options_for(plan))
