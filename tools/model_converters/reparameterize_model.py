# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Converts a checkpoint of a classifier, detector or segmentor into the merged form, for inference.

The merged weights are loaded into the model that the config builds with deploy=True, and its maps compared with those
of the given one, before anything is written. What is written holds weights, classes and config: no optimizer.
"""
import argparse
import io
import os
from collections.abc import Iterator

import torch
from mmengine.config import Config, DictAction
from torch import Tensor, nn

from partialnet_mm.analysis.build import build_model
from partialnet_mm.checkpoint.atomic import write_atomically
from partialnet_mm.checkpoint.reader import read_checkpoint
from partialnet_mm.converters.publish import strip_checkpoint
from partialnet_mm.models import merge_model

TOLERANCE = 1e-5


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of the checkpoint')
    parser.add_argument('checkpoint', help='trained checkpoint; one of a training with EMA gives its averaged weights')
    parser.add_argument('out', help='merged checkpoint to write')
    parser.add_argument('--force', action='store_true', help='overwrite the file if it exists')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config')
    return parser, parser.parse_args()


def deploy_config(cfg: Config, parts: list[str]) -> Config:
    """The same config, with ``deploy=True`` in the parts of the model of these names.

    Raises:
        ValueError: If the config has no such part, or has it merged already.
    """
    cfg = Config(cfg.to_dict())
    for name in parts:
        node = cfg.model
        for word in name.split('.'):
            node = node.get(word) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ValueError(f'the model merges {name!r}, and the config has no model.{name} to set deploy=True in')
        if node.get('deploy'):
            raise ValueError(f'model.{name}.deploy is True in the config already: the checkpoint is merged')
        node.deploy = True
    return cfg


def load(model: nn.Module, state: dict[str, Tensor], checkpoint: str) -> None:
    """Loads weights that must fit without rest.

    Raises:
        ValueError: If they do not.
    """
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f'checkpoint {checkpoint!r} does not fit the config: it belongs to another network or other '
                         f'classes, or is merged already. {str(error)[:1500]}') from error


def tensors_in(outputs: object) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    else:
        for output in outputs:
            yield from tensors_in(output)


@torch.no_grad()
def deviation(merged: nn.Module, model: nn.Module, channels: int) -> float:
    """Largest difference between the two models' maps of two random images, over the largest value of the map."""
    images = torch.randn(2, channels, 224, 224, generator=torch.Generator().manual_seed(0))
    pairs = zip(tensors_in(merged.eval().extract_feat(images)), tensors_in(model.eval().extract_feat(images)))
    # Unlike Python's, torch's maximum is NaN where any is.
    return torch.stack([(out - want).abs().max() / want.abs().max() for out, want in pairs]).max().item()


def convert(cfg: Config, content: dict, checkpoint: str) -> tuple[dict, list[str], float]:
    """Merges a checkpoint.

    Args:
        cfg: Of the checkpoint.
        content: What the checkpoint holds.
        checkpoint: How messages call it.

    Returns:
        tuple[dict, list[str], float]: The merged checkpoint, the names of the
        merged parts, and the largest relative difference of the maps.

    Raises:
        TypeError: If there is nothing that can be merged, or a norm cannot.
        ValueError: If the checkpoint does not fit or is not finite, or a norm
            has no statistics.
    """
    stripped = strip_checkpoint(content)
    state = {name[len('module.'):] if name.startswith('module.') else name: value
             for name, value in stripped['state_dict'].items()}
    model, source = build_model(cfg), build_model(cfg)
    load(model, state, checkpoint)
    load(source, state, checkpoint)
    parts = merge_model(source)
    cfg = deploy_config(cfg, parts)
    merged = build_model(cfg)
    merged.load_state_dict(source.state_dict(), strict=True)
    difference = deviation(merged, model, cfg.model.get('backbone', {}).get('in_channels', 3))
    meta = dict(stripped['meta'], cfg=cfg.pretty_text)
    return dict(meta=meta, state_dict=merged.state_dict()), parts, difference


def main() -> None:
    parser, args = parse_args()
    if not os.path.isfile(args.config):
        parser.error(f'config {args.config!r} does not exist')
    if os.path.exists(args.out) and not args.force:
        parser.error(f'{args.out!r} exists: name another file, or overwrite it with --force')
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    try:
        content = read_checkpoint(args.checkpoint)
        merged, parts, difference = convert(cfg, content, args.checkpoint)
    except (FileNotFoundError, TypeError, ValueError) as error:
        parser.exit(1, f'nothing was written: {error}\n')
    if not difference < TOLERANCE:
        parser.exit(1, f'nothing was written: the maps of the merged model differ by {difference:.1e} of their largest '
                    f'value, more than {TOLERANCE:.0e}\n')
    buffer = io.BytesIO()
    torch.save(merged, buffer)
    write_atomically(buffer.getvalue(), args.out)
    if 'ema_state_dict' in content:
        print("the training averaged its weights (EMA): the averaged ones, which are the checkpoint's state_dict, were "
              'merged')
    options = ' '.join(f'model.{part}.deploy=True' for part in parts)
    print(f'{args.out}: merged {", ".join(parts)}; largest difference of the maps of random images {difference:.1e} of '
          f'their largest value, as allowed up to {TOLERANCE:.0e}\n'
          f'load it with: {args.config} --cfg-options {options}')


if __name__ == '__main__':
    main()
