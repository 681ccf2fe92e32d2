# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The same backbone in mmpretrain, mmdet and mmseg, from configs that are not this project's."""
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

import partialnet_mm
from tests.helpers.batches import shrink
from tests.helpers.libraries import build_model, parameters_without_gradient, readme_snippets, training_loss
from tests.helpers.snippets import SNIPPETS, load_snippet


@pytest.fixture
def snippet_config(tmp_path, request):
    return load_snippet(tmp_path, request.param, readme_snippets()[request.param], *SNIPPETS[request.param])


def test_the_page_has_the_three_snippets():
    assert set(readme_snippets()) == set(SNIPPETS)


@pytest.mark.parametrize('snippet_config', SNIPPETS, indirect=True)
def test_a_training_step_changes_every_weight_of_a_snippet(snippet_config):
    shrink(snippet_config.model)
    model = build_model(snippet_config)
    backbone = model.backbone
    assert type(backbone) is partialnet_mm.PartialNet
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    # norm{i} exist in dense prediction only
    assert any(name.startswith('norm') for name in before) == (snippet_config.default_scope != 'mmpretrain')
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    training_loss(snippet_config, model).backward()
    assert parameters_without_gradient(backbone) == []
    optimizer.step()
    assert [name for name, p in backbone.named_parameters() if torch.equal(before[name], p)] == []


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg', 'mmpretrain'])
def test_bare_type_resolves_in_every_scope(scope):
    if scope != 'mmengine':
        pytest.importorskip(scope)
    with DefaultScope.overwrite_default_scope(scope):
        backbone = MODELS.build(dict(type='PartialNet', arch='t0'))
    assert type(backbone) is partialnet_mm.PartialNet


def test_misspelt_argument_in_a_config_names_itself():
    with pytest.raises(TypeError, match=r"no argument 'droppath_rate'.*did you mean 'drop_path_rate'"):
        MODELS.build(dict(type='PartialNet', arch='t0', droppath_rate=0.1))
