"""The loss in a LightningModule. With `devices=2`, it is that of the pairs of both processes."""

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from cyclip_ext import CyCLIPLoss


class DualEncoder(lightning.LightningModule):
    """Two towers and a temperature, trained with the pairs of all processes."""

    def __init__(self, image_tower: torch.nn.Module, text_tower: torch.nn.Module) -> None:
        super().__init__()
        self.image_tower, self.text_tower = image_tower, text_tower
        self.log_scale = torch.nn.Parameter(torch.tensor(1 / 0.07).log())
        # The group is looked up at each call: here, Lightning has not started it yet.
        self.criterion = CyCLIPLoss(in_modal=0.25, cross_modal=0.25, group="world")

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """Return the loss of a batch, and log its terms."""
        images, texts = batch
        features = self.image_tower(images), self.text_tower(texts)
        terms = self.criterion(*features, self.log_scale.exp(), output_dict=True)
        self.log_dict(terms)  # equal on all ranks
        return torch.stack(list(terms.values())).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def pairs(batch_size: int) -> DataLoader:
    """Return random images and texts; yours go here."""
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(256, 32), torch.randn(256, 24)), batch_size)


if __name__ == "__main__":
    model = DualEncoder(torch.nn.Linear(32, 16), torch.nn.Linear(24, 16))
    trainer = lightning.Trainer(max_epochs=10, log_every_n_steps=4)
    trainer.fit(model, pairs(batch_size=64))
    print({name: round(term.item(), 3) for name, term in trainer.logged_metrics.items()})
