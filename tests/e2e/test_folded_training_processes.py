# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Training in the folded form in two processes over gloo: the gradients are those of the plain form in one."""
import pytest
import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from partialnet_mm.models import PartialNet
from tests.helpers.networks import ALL, relative_error

IMAGES = 2


def network(train_folded: bool, with_cp: bool) -> PartialNet:
    torch.manual_seed(0)
    arch = dict(embed_dim=8, depths=(1, 1, 1, 1), num_heads=2, act_cfg=dict(type='ReLU'))
    model = PartialNet(arch, out_indices=ALL, out_norm=False, norm_eval=True, train_folded=train_folded,
                       with_cp=with_cp)
    for norm in (module for module in model.modules() if isinstance(module, _BatchNorm)):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.bias)
    return model.double().train()


def backward(model: nn.Module, process: int) -> None:
    generator = torch.Generator().manual_seed(process)
    images = torch.randn(IMAGES, 3, 64, 96, dtype=torch.float64, generator=generator)
    sum((out * torch.randn(out.shape, dtype=out.dtype, generator=generator)).sum() for out in model(images)).backward()


def train(process: int, folder: str, with_cp: bool) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=process, world_size=2)
    model = network(True, with_cp)
    backward(DistributedDataParallel(model), process)
    torch.save({name: p.grad for name, p in model.named_parameters()}, f'{folder}/gradients{process}.pth')
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.two_processes
@pytest.mark.parametrize('with_cp', [False, True])
def test_gradients_of_two_processes(with_cp, tmp_path):
    torch.multiprocessing.spawn(train, (str(tmp_path), with_cp), nprocs=2)
    plain = network(False, with_cp)
    backward(plain, 0)
    backward(plain, 1)
    for process in (0, 1):
        gradients = torch.load(tmp_path / f'gradients{process}.pth')
        assert gradients.keys() == dict(plain.named_parameters()).keys()
        for name, parameter in plain.named_parameters():
            assert relative_error(gradients[name], parameter.grad / 2) < 1e-12, name
