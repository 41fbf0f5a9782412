"""The native libraries of cyclip_ext; everything else is in pyproject.toml.

csrc/build_support decides which libraries are built. Environment variables: CXX, CUDA_HOME,
TORCH_CUDA_ARCH_LIST, MAX_JOBS, CYCLIP_BUILD_CUDA, FORCE_CUDA, CYCLIP_WERROR (docs/install.md).
"""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "csrc"))  # for `python setup.py`; pip adds it

from build_support.commands import commands_for, options_for
from build_support.plan import make_plan

plan = make_plan()
setup(ext_modules=plan.extensions(), cmdclass=commands_for(plan), options=options_for(plan))
