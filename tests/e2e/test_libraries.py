# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The same backbone in mmpretrain, mmdet and mmseg, from configs that are not this project's."""
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

import partialnet_mm
from tests.helpers.libraries import (
    ROOT,
    build_model,
    parameters_without_gradient,
    readme_snippets,
    shipped_config,
    training_loss,
)

# Snippet of docs/use_in_your_config.md: library, the shipped config that it starts from.
SNIPPETS = {
    'my_detector.py': ('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'),
    'my_segmentor.py': ('mmseg', 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'),
    'my_classifier.py': ('mmpretrain', 'resnet/resnet50_8xb32_in1k.py'),
}


@pytest.fixture
def snippet_config(tmp_path, request):
    """A snippet in a folder of its own, beside the library's config that it changes."""
    library, base = SNIPPETS[request.param]
    path = shipped_config(library, base)
    (tmp_path / path.name).write_text(f'_base_ = {str(path)!r}\n')
    (tmp_path / request.param).write_text(readme_snippets()[request.param])
    cfg = Config.fromfile(tmp_path / request.param)
    assert cfg.model.backbone.init_cfg.type == 'Pretrained'
    del cfg.model.backbone.init_cfg  # there is no such checkpoint here
    return cfg


def test_readme_has_the_three_snippets():
    assert set(readme_snippets()) == set(SNIPPETS)


@pytest.mark.parametrize('snippet_config', SNIPPETS, indirect=True)
def test_readme_snippet_trains_every_parameter(snippet_config):
    model = build_model(snippet_config)
    backbone = model.backbone
    assert type(backbone) is partialnet_mm.PartialNet
    training_loss(snippet_config, model).backward()
    assert parameters_without_gradient(backbone) == []
    # norm{i} exist in dense prediction only
    has_norms = any(name.startswith('norm') for name, _ in backbone.named_parameters())
    assert has_norms == (snippet_config.default_scope != 'mmpretrain')


@pytest.mark.parametrize('snippet_config', SNIPPETS, indirect=True)
def test_a_training_step_changes_every_weight(snippet_config):
    model = build_model(snippet_config)
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    training_loss(snippet_config, model).backward()
    optimizer.step()
    assert [name for name, p in model.backbone.named_parameters() if torch.equal(before[name], p)] == []


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg', 'mmpretrain'])
def test_bare_type_resolves_in_every_scope(scope):
    if scope != 'mmengine':
        pytest.importorskip(scope)
    from mmengine.registry import DefaultScope, init_default_scope
    init_default_scope(scope)
    with DefaultScope.overwrite_default_scope(scope):
        backbone = MODELS.build(dict(type='PartialNet', arch='t0'))
    assert type(backbone) is partialnet_mm.PartialNet


def test_imports_without_the_three_libraries():
    """Neither importing nor building the backbone imports mmdet, mmseg or mmpretrain."""
    code = ("import sys\n"
            "for name in ('mmdet', 'mmseg', 'mmpretrain', 'mmcv.ops'):\n"
            "    sys.modules[name] = None\n"
            "import torch, partialnet_mm\n"
            "out = partialnet_mm.PartialNet('t0', out_indices=(0, 3)).eval()(torch.zeros(1, 3, 64, 64))\n"
            "print([tuple(o.shape) for o in out])\n")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '[(1, 32, 16, 16), (1, 256, 2, 2)]'


def test_misspelt_argument_in_a_config_names_itself():
    with pytest.raises(TypeError, match=r"no argument 'droppath_rate'.*did you mean 'drop_path_rate'"):
        MODELS.build(dict(type='PartialNet', arch='t0', droppath_rate=0.1))
