"""Embedding leaves the model as it was and returns unit rows."""

import torch
from torch import Tensor, nn

from cyclip_ext.evaluation import embed_images, embed_texts


class Towers(nn.Module):
    """Counts batches, and would give itself away by dropout in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.batches = 0

    def encode_image(self, image: Tensor) -> Tensor:
        self.batches += 1
        return self.dropout(3 * image.flatten(1))

    def encode_text(self, text: Tensor) -> Tensor:
        self.batches += 1
        return self.dropout(text.float())


def test_unit_rows_in_evaluation_mode_without_graph() -> None:
    model = Towers().train()
    images = torch.rand(5, 3, 2, 2) + 0.1
    features = embed_images(model, images.split(2))
    torch.testing.assert_close(features, nn.functional.normalize(images.flatten(1), dim=-1))
    assert model.training
    assert not features.requires_grad
    assert model.batches == 3


def test_texts_are_tokenized_in_batches() -> None:
    model = Towers()
    features = embed_texts(
        model,
        lambda texts: torch.tensor([[len(t), 1] for t in texts]),
        ["a", "bb", "ccc"],
        batch_size=2,
    )
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    assert model.batches == 2
    assert features[2, 0] / features[2, 1] == 3
