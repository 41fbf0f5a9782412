"""import cyclip_ext needs torch alone; the losses work where torchvision does not import."""

from __future__ import annotations

import sys

import cyclip_ext

from .programs import run_program


def test_losses_without_torchvision_and_open_clip() -> None:
    """Wrong: the losses cannot be used beside a torchvision that does not fit the torch."""
    run_program(
        "import sys\n"
        "for name in 'torchvision', 'open_clip', 'timm', 'PIL':\n"
        "    sys.modules[name] = None  # import raises ImportError\n"
        "import torch, cyclip_ext\n"
        "x, y = torch.randn(2, 4, 3).requires_grad_()\n"
        "cyclip_ext.CyCLIPLoss(margin=0.1, hinge=0.1)(x, y, torch.tensor(10.0)).backward()\n"
    )


def test_import_loads_torch_alone() -> None:
    """Wrong: importing the package drags in what only training or data need."""
    loaded = run_program(
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import cyclip_ext\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))\n"
    ).split()
    # triton belongs to torch, whose FLOP counter imports it.
    foreign = set(loaded) - set(sys.stdlib_module_names) - {"cyclip_ext", "torch", "triton"}
    assert not foreign


def test_public_names() -> None:
    """Wrong: a documented name is missing from the package."""
    for name in (
        "CLIPLoss",
        "CyCLIPLoss",
        "SigLIPLoss",
        "contrastive_loss",
        "cycle_consistency",
        "margin_loss",
        "hinge_margin_loss",
        "sigmoid_loss",
    ):
        assert callable(getattr(cyclip_ext, name))
        assert getattr(cyclip_ext, name).__doc__
