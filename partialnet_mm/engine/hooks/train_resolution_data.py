# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""How a batch's resolution reaches the random resized crop, in whichever process the image is read."""
from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ._batches import WrappedBatches, loader_like


class ResolutionBatchSampler(WrappedBatches):
    """Batches of another batch sampler, with the side of the batch beside each index.

    Args:
        batches: Gives lists of indices.
        size_at: The side of the images of an iteration.

    Attributes:
        first: Iteration of the first batch of the next pass.
    """

    def __init__(self, batches: Any, size_at: Callable[[int], int]) -> None:
        super().__init__(batches)
        self.size_at = size_at

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first, done = self.first, 0
        for batch in self.batches:
            size = self.size_at(first + done)
            done += 1
            yield [(index, size) for index in batch]
        # A loop over iterations goes on with the next pass.
        self.first = first + done


class ResolutionDataset(Dataset):
    """A data set that takes an index and a side, and crops to that side.

    It sets the side of the pipeline's random resized crop before it reads the
    image, so the crop is resampled once, from the image itself.

    Args:
        dataset: Any, wrappers included, whose pipelines hold one
            ``RandomResizedCrop`` each, mmpretrain's, torchvision's or
            :class:`FastRandomResizedCrop`.

    Raises:
        ValueError: If a pipeline holds none, or several.
    """

    def __init__(self, dataset: Sized) -> None:
        self.dataset = dataset
        random_resized_crops(dataset)

    @property
    def metainfo(self) -> Any:
        """As that of the data set."""
        return self.dataset.metainfo

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index_and_size: tuple[int, int]) -> Any:
        """Reads one sample.

        Raises:
            ValueError: If an image comes out with other sides, because the
                pipeline resizes it again after its random resized crop.
        """
        index, size = index_and_size
        # Looked for anew each time: mmpretrain's SwitchRecipeHook exchanges pipelines.
        for crop in random_resized_crops(self.dataset):
            setattr(crop, _attribute_of_size(crop), (size, size))
        sample = self.dataset[index]
        for image in images_of(sample):
            if tuple(image.shape[-2:]) != (size, size):
                raise ValueError(f'the training resolution is {size}, and the train pipeline gives images of '
                                 f'{tuple(image.shape[-2:])}: no step after RandomResizedCrop may change the size')
        return sample


def images_of(batch_or_sample: Any) -> list[torch.Tensor]:
    """The images of what a pipeline or a data loader gives.

    Args:
        batch_or_sample: A dict with ``inputs``, a tensor or nested
            sequences of them.

    Returns:
        list[Tensor]: Each (C, H, W) or (B, C, H, W).
    """
    inputs = [batch_or_sample['inputs']]
    while isinstance(inputs[0], (list, tuple)):
        inputs = [image for group in inputs for image in group]
    return inputs


def random_resized_crops(dataset: Any) -> list[Any]:
    """The random resized crop of each pipeline of a data set.

    Args:
        dataset: A data set with a pipeline, or a wrapper of some.

    Returns:
        list: One transform for each pipeline.

    Raises:
        ValueError: If a pipeline holds none, or several.
    """
    found = []
    for leaf in _leaves(dataset):
        steps = list(_steps(getattr(leaf, 'pipeline', None)))
        crops = {id(crop): crop for step in steps for crop in _crops_in(step)}
        if len(crops) != 1:
            names = [type(step).__name__ for step in steps]
            raise ValueError(f'a training resolution needs exactly one RandomResizedCrop in the train pipeline of '
                             f'{type(leaf).__name__}, mmpretrain\'s, torchvision\'s or FastRandomResizedCrop; it has '
                             f'{len(crops)}: {names}')
        found += crops.values()
    return found


def _leaves(dataset: Any) -> Iterator[Any]:
    # mmengine's num_batch_per_epoch keeps what it cuts in _dataset.
    for name in ('datasets', 'dataset', '_dataset'):
        inner = getattr(dataset, name, None)
        if inner is not None:
            for member in inner if name == 'datasets' else [inner]:
                yield from _leaves(member)
            return
    yield dataset


def _steps(node: Any) -> Iterator[Any]:
    """All transforms, those inside others too."""
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _steps(child)
    elif node is not None:
        inner = getattr(node, 'transforms', None)
        if inner is None:
            yield node
        else:
            yield from _steps(inner)


def _crops_in(step: Any) -> Iterator[Any]:
    # mmpretrain keeps a transform of torchvision's in t, FastRandomResizedCrop one of mmpretrain's in crop. The classes
    # go by name: mmpretrain need not be there.
    for crop in (step, getattr(step, 't', None), getattr(step, 'crop', None)):
        if any(base.__name__ == 'RandomResizedCrop' for base in type(crop).__mro__):
            yield crop


def _attribute_of_size(crop: Any) -> str:
    # torchvision calls the side size, and the range of areas scale; mmpretrain calls the side scale.
    return 'size' if hasattr(crop, 'size') else 'scale'


def with_resolution(loader: DataLoader, size_at: Callable[[int], int]) -> DataLoader:
    """A loader whose batches have the sides that a function returns.

    Args:
        loader: Of the training.
        size_at: The side of the images of an iteration.

    Returns:
        Otherwise the same.

    Raises:
        ValueError: If it does not make batches of indices, or a pipeline does
            not hold exactly one random resized crop.
    """
    if loader.batch_sampler is None:
        raise ValueError(f'a training resolution is drawn for each batch of indices, and the train_dataloader of '
                         f'{type(loader.dataset).__name__} has no batch sampler')
    return loader_like(loader, ResolutionBatchSampler(loader.batch_sampler, size_at), ResolutionDataset(loader.dataset))
