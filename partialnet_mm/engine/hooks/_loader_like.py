# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A data loader like another one, with other batches."""
from typing import Any

import torch
from torch.utils.data import DataLoader


def loader_like(loader: DataLoader,
                batch_sampler: Any,
                dataset: Any = None,
                persistent_workers: bool = False,
                generator: torch.Generator | None = None) -> DataLoader:
    """A loader with another batch sampler, else the same.

    Args:
        loader: The one to be like.
        batch_sampler: Gives what each batch is read from.
        dataset: Another data set; None for the same.
            Defaults to None.
        persistent_workers: Whether workers stay from pass to pass.
            Defaults to False.
        generator: What workers' seeds are drawn
            from; None for torch's own. Defaults to None.

    Returns:
        DataLoader: A new one.
    """
    return DataLoader(
        loader.dataset if dataset is None else dataset,
        batch_sampler=batch_sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=persistent_workers,
        generator=generator)
