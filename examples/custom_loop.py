"""The loss in your own training loop, without any other part of the package."""

import torch

from cyclip_ext import CyCLIPLoss

torch.manual_seed(0)
image_tower, text_tower = torch.nn.Linear(32, 16), torch.nn.Linear(24, 16)  # yours go here
log_scale = torch.nn.Parameter(torch.tensor(1 / 0.07).log())
parameters = [*image_tower.parameters(), *text_tower.parameters(), log_scale]
optimizer = torch.optim.AdamW(parameters, lr=1e-2)
criterion = CyCLIPLoss(in_modal=0.25, cross_modal=0.25)
images, texts = torch.randn(256, 32), torch.randn(256, 24)

for step in range(100):
    loss = criterion(image_tower(images), text_tower(texts), log_scale.exp())  # raw features
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step:3d}  loss {loss.item():.3f}")
