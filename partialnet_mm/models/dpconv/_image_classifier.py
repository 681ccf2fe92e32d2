# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A classifier that learns the split ratios of its backbone. Importing this needs mmpretrain."""
from mmpretrain.models import ImageClassifier
from torch import Tensor

from .._arguments import named_arguments
from .objective import Losses, SearchObjective


class DPConvClassifier(ImageClassifier):
    """mmpretrain's classifier, trained to find split ratios within a budget (Sec. 3.2 of the paper).

    Its loss is that of :class:`SearchObjective`, term by term.

    Args:
        backbone: Network with DPConv layers, such as a PartialNet of ``token_mixers='dpconv'``.
        kappa, cost_exponent, order_weight, warmup_epochs: As in :class:`SearchObjective`; epochs with fixed ratios need
            :class:`RatioHook`.
        start_kappa: Budget whose ratio all layers start at; None for ``kappa``, 1 for all channels. Defaults to None.
        neck, head, pretrained, train_cfg, data_preprocessor, init_cfg: As in mmpretrain's ImageClassifier.

    Raises:
        ValueError: If an argument is outside its range or the network has no DPConv.
        TypeError: If an argument is unknown.
    """

    @named_arguments
    def __init__(self, backbone: dict, neck: dict | None = None, head: dict | None = None, kappa: float = 4.,
                 cost_exponent: float = -0.01, order_weight: float = 0.9, warmup_epochs: int = 0,
                 start_kappa: float | None = None, pretrained: str | None = None, train_cfg: dict | None = None,
                 data_preprocessor: dict | None = None, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(backbone, neck, head, pretrained, train_cfg, data_preprocessor, init_cfg)
        self.objective = SearchObjective(self, kappa, cost_exponent, order_weight, warmup_epochs)
        self.objective.start_at_budget(start_kappa)

    def loss(self, inputs: Tensor, data_samples: list) -> Losses:
        """The terms of the search's loss: see :meth:`SearchObjective.weigh`."""
        self.objective.prepare()
        return self.objective.weigh(super().loss(inputs, data_samples))
