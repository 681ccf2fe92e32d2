# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What tests of networks share."""
from collections.abc import Sequence

import torch
from torch import Tensor

#: ``out_indices`` of all stages.
ALL = (0, 1, 2, 3)


def relative_error(outs: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> float:
    """Largest difference of any feature map, over its largest value; NaN if one has a NaN; shapes must be equal."""
    if isinstance(outs, Tensor):
        outs, expected = [outs], [expected]
    assert [out.shape for out in outs] == [want.shape for want in expected]
    # Unlike Python's, torch's maximum is NaN where any is.
    return torch.stack([(out.double() - want.double()).abs().max() / want.abs().max()
                        for out, want in zip(outs, expected)]).max().item()


def random_loss(outs: Sequence[Tensor]) -> Tensor:
    """A loss that no norm makes independent of what comes before it."""
    return sum((out.float() * torch.randn(out.shape)).sum() for out in outs)
