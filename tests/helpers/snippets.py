# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The configs that the pages show, each beside the library's config that it changes."""
from pathlib import Path

from mmengine.config import Config

from tests.helpers.libraries import shipped_config

#: Snippets of docs/use_in_your_config.md: library, the shipped config that it starts from.
SNIPPETS = {
    'my_detector.py': ('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'),
    'my_segmentor.py': ('mmseg', 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'),
    'my_classifier.py': ('mmpretrain', 'resnet/resnet50_8xb32_in1k.py'),
}


def load_snippet(folder: Path, name: str, text: str, library: str, base: str) -> Config:
    """Writes a snippet into a folder and loads it, without its checkpoint; skips where the library is missing."""
    path = shipped_config(library, base)
    (folder / path.name).write_text(f'_base_ = {str(path)!r}\n')
    (folder / name).write_text(text)
    cfg = Config.fromfile(folder / name)
    assert cfg.model.backbone.init_cfg.type == 'Pretrained'
    del cfg.model.backbone.init_cfg  # the tests have no such checkpoint
    return cfg
