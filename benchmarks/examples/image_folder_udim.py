"""Training with UDIM: ``python -m benchmarks.examples.image_folder_udim FOLDER``, one subfolder per class."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from uumamba.domain_generalization import UDIM, InputPerturbation
from uumamba.optim import SAM

folder = Path(sys.argv[1])
files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in {".png", ".jpg", ".jpeg"}]
names = [file.relative_to(folder).parts[0] for file in files]
pixels = np.stack([np.asarray(Image.open(file).convert("RGB").resize((32, 32)), np.float32) for file in files])
images = torch.from_numpy(pixels).movedim(3, 1) / 255
labels = torch.tensor([sorted(set(names)).index(name) for name in names])

blocks = [nn.Conv2d(3, 32, 3, stride=2), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2), nn.ReLU()]  # or another network
net = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, len(set(names))))
udim = UDIM(net, cross_entropy, InputPerturbation(radius=0.3))
optimizer = SAM(net.parameters(), partial(torch.optim.AdamW, lr=3e-3), net=net)


def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return optimizer.step(lambda: cross_entropy(net(x), y), at_weights=udim.at_weights(x, y))


for epoch in range(30):
    losses = [step(images[batch], labels[batch]) for batch in torch.randperm(len(files)).split(32)]
    print(f"epoch {epoch}: loss {torch.stack(losses).mean():.3f}")
