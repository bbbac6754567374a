"""A training loop with all that real ones have, in one process or, by torchrun, in several."""

import argparse
import contextlib
import os
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import rbnorm

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--parts", type=int, default=2, help="forward passes of an optimiser step")
parser.add_argument("--compile", action="store_true")
parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
options = parser.parse_args()

parallel = "RANK" in os.environ  # started by torchrun
if parallel:
    distributed.init_process_group()
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.manual_seed(0)

model = nn.Sequential(  # your model, with BatchNorm
    nn.Conv2d(3, 16, 3, bias=False),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(16, 10),
)
rbnorm.convert_batchnorm(model, preserve=False)  # from scratch; leave preserve out to fine-tune
if parallel:
    rbnorm.convert_sync(model)  # one batch over all processes
model.to(device, memory_format=torch.channels_last)

# Convert before anything takes hold of the parameters: optimiser, average, DDP and compiler.
optimizer = torch.optim.SGD(
    rbnorm.parameter_groups(model, weight_decay=5e-4), lr=0.1, momentum=0.9, nesterov=True
)
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
first = 0
if options.checkpoint.exists():
    state = torch.load(options.checkpoint, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    first = state["epoch"]

trained = DistributedDataParallel(model) if parallel else model
if options.compile:
    trained = torch.compile(trained)

data = TensorDataset(torch.randn(128, 3, 16, 16), torch.randint(0, 10, (128,)))  # your data
sampler = DistributedSampler(data) if parallel else None
loader = DataLoader(data, batch_size=32, shuffle=sampler is None, sampler=sampler, drop_last=True)

for epoch in range(first, options.epochs):
    if sampler:
        sampler.set_epoch(epoch)
    for images, labels in loader:
        optimizer.zero_grad()
        x = images.to(device, memory_format=torch.channels_last).chunk(options.parts)
        parts = list(zip(x, labels.to(device).chunk(options.parts), strict=True))
        for part, (inputs, targets) in enumerate(parts, start=1):
            last = part == len(parts)  # gradients are exchanged once a step
            with contextlib.nullcontext() if last or not parallel else trained.no_sync():
                with torch.autocast(device.type, torch.bfloat16):
                    loss = nn.functional.cross_entropy(trained(inputs), targets) / len(parts)
                loss.backward()
        optimizer.step()
        average.update_parameters(model)
    if not parallel or distributed.get_rank() == 0:
        state = {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": epoch + 1,
        }
        torch.save(state, options.checkpoint.with_suffix(".new"))
        options.checkpoint.with_suffix(".new").replace(options.checkpoint)  # whole or not at all
        print(f"epoch {epoch + 1}: loss {len(parts) * loss.item():.3f}")

rbnorm.assert_intact(average.module)  # what is deployed still has its RBN layers
if parallel:
    # DDP keeps gloo's threads alive, and one that lets go of a gradient only when the interpreter
    # ends would abort the process: meet once more, with nothing in hand.
    distributed.barrier()
    distributed.destroy_process_group()
