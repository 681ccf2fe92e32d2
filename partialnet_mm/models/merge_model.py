# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The merged form of whole models."""

from torch import nn


def merge_model(model: nn.Module) -> list[str]:
    """Switches every part of a model that can be merged to its merged form.

    A part is a module with ``switch_to_deploy``, PartialNet among them; what
    is inside of it is its own business. The model is in evaluation mode
    afterwards. Parts that are merged already stay as they are.

    Args:
        model: A classifier, detector, segmentor or backbone, its
            weights loaded.

    Returns:
        list[str]: Names of the parts, e.g. ['backbone']; '' is the model
        itself.

    Raises:
        TypeError: If no part can be merged, or a part's norm cannot.
        ValueError: If a norm has no statistics to merge.
    """
    parts: list[str] = []
    for name, module in list(model.named_modules()):
        inside = any(part == '' or name.startswith(f'{part}.') for part in parts)
        if hasattr(module, 'switch_to_deploy') and not inside:
            module.switch_to_deploy()
            parts.append(name)
    if not parts:
        raise TypeError(f'{type(model).__name__} cannot be merged: none of its modules has switch_to_deploy()')
    model.eval()
    return parts
