# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The search's loss in two processes."""
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from partialnet_mm.models import DPConv, SearchObjective


class Toy(nn.Module):
    """Two layers to be searched and a linear one, without batch statistics: any split of a batch is as good."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(DPConv(16, 16, 3, padding=1, bias=False) for _ in range(2)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(16, 3)
        self.objective = SearchObjective(self, 2, -1., warmup_epochs=1)

    def forward(self, x, label):
        self.objective.prepare()
        losses = self.objective.weigh(dict(loss=F.cross_entropy(self.head(self.features(x)), label)))
        return sum(value for name, value in losses.items() if 'loss' in name)


def train_toy(rank, processes, folder):
    """25 steps, of which 5 are warm-up, on this process' share of each batch; writes the gates of each step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = toy = Toy()
    if processes > 1:
        dist.init_process_group('gloo', f'file://{folder}/meeting', rank=rank, world_size=processes)
        model = nn.parallel.DistributedDataParallel(toy)
    gates = [p for name, p in toy.named_parameters() if 'split_gates' in name]
    others = [p for name, p in toy.named_parameters() if 'split_gates' not in name]
    optimizer = torch.optim.SGD([dict(params=gates, lr=0.8), dict(params=others, lr=0.1)], momentum=0.9)
    history = []
    generator = torch.Generator().manual_seed(1)
    for step in range(25):
        x, label = torch.randn(8, 16, 4, 4, generator=generator), torch.randint(3, (8, ), generator=generator)
        share = slice(rank * 8 // processes, (rank + 1) * 8 // processes)
        toy.objective.set_epoch(step // 5)
        optimizer.zero_grad()
        model(x[share], label[share]).backward()
        optimizer.step()
        history.append(torch.cat([p.detach().clone() for p in gates]))
    torch.save(torch.stack(history), os.path.join(folder, f'gates_{processes}_{rank}.pth'))
    if processes > 1:
        dist.destroy_process_group()


@pytest.mark.two_processes
def test_gates_are_the_same_in_two_processes_and_in_one(tmp_path):
    train_toy(0, 1, tmp_path)
    mp.spawn(train_toy, (2, str(tmp_path)), nprocs=2)
    one, first, second = (torch.load(tmp_path / f'gates_{name}.pth') for name in ('1_0', '2_0', '2_1'))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, one, rtol=1e-4, atol=1e-5)
    assert torch.equal(one[0], one[4]) and (one[-1] != one[4]).all()  # fixed in the warm-up, then learned
    assert ((one > 0) != (one[0] > 0)).any()
