"""The build of the native libraries from the sources in csrc/.

    backend.py    PEP 517 hooks: build against the torch of the target environment
    toolchain.py  finds the C++ compiler, the CUDA toolkit and torch, without importing torch
    plan.py       decides which libraries are built, and records the reason if one is not
    commands.py   setuptools commands that compile the planned libraries and write the record

This package runs at build time only and is not installed. It is not part of `cyclip_ext` because
pip imports it before `cyclip_ext` exists.
"""
