# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""How two configs differ, so that a test can name all differences that are meant."""
from typing import Any

from mmengine.config import Config

from partialnet_mm.analysis.data_pipeline import plain_pipeline

#: What a training and a test read. Pipelines, data sets and their paths are part of the loaders.
SETTINGS = ('model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator',
            'train_cfg', 'val_cfg', 'test_cfg', 'param_scheduler', 'optim_wrapper', 'custom_hooks', 'auto_scale_lr')
MISSING = 'missing'
SGD_TO_ADAMW = {
    'optim_wrapper.optimizer.type': ('SGD', 'AdamW'),
    'optim_wrapper.optimizer.momentum': (0.9, MISSING),
}


def differences(theirs: Any, ours: Any, path: str = '') -> dict[str, tuple]:
    """Values that differ, as (theirs, ours) by their path; lists and tuples of the same items are equal."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        found = {}
        for key in {**theirs, **ours}:
            found.update(differences(theirs.get(key, MISSING), ours.get(key, MISSING), f'{path}.{key}'.lstrip('.')))
        return found
    if isinstance(theirs, (list, tuple)) and isinstance(ours, (list, tuple)):
        if len(theirs) == len(ours) and any(isinstance(item, (dict, list, tuple)) for item in [*theirs, *ours]):
            found = {}
            for i, (their, our) in enumerate(zip(theirs, ours)):
                found.update(differences(their, our, f'{path}[{i}]'))
            return found
        theirs, ours = list(theirs), list(ours)
    return {} if theirs == ours and type(theirs) is type(ours) else {path: (theirs, ours)}


def settings_of(cfg: Config) -> dict:
    settings = {name: cfg[name] for name in SETTINGS if name in cfg}
    settings['model'] = {name: part for name, part in cfg.model.items() if name != 'backbone'}
    return _with_plain_pipelines(settings)


def _with_plain_pipelines(node: Any) -> Any:
    """Settings with mmdet's steps in place of this package's; test_detection.py shows that they give the same."""
    if isinstance(node, dict):
        return {key: plain_pipeline(value) if key == 'pipeline' else _with_plain_pipelines(value)
                for key, value in node.items()}
    return node
