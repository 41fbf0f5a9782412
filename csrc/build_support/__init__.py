"""How the sources of csrc/ become the native libraries of the package.

    backend.py    PEP 517 hooks: builds against the torch of the target environment
    toolchain.py  finds the C++ compiler, the CUDA toolkit and torch, without importing torch
    plan.py       decides which libraries are built, and says why one is not
    commands.py   setuptools commands that compile the plan and record it

Runs at build time only and is not installed. It lives beside the sources it compiles and not in
`cyclip_ext`, because pip must be able to import it before anything of the package is there.
"""
