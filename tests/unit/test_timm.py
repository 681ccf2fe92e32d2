# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The classifiers in timm's registry, by the properties that timm's own tests of models assert."""
import copy

import pytest
import torch
from mmengine.config import Config

from partialnet_mm import PartialNet, config_path
from partialnet_mm.analysis.build import build_model
from tests.helpers.networks import ALL, relative_error

timm = pytest.importorskip('timm')
partialnet_timm = pytest.importorskip('partialnet_mm.timm')

ARCHS = ('t0', 't1', 't2', 's', 'm', 'l')
CHANNELS = [32, 64, 128, 256]


def create(**options):
    return timm.create_model('partialnet_t0', **options).eval()


@pytest.fixture(scope='module')
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope='module')
def model(images):
    """T0 for 10 classes whose norms have statistics; tests do not change it."""
    model = create(num_classes=10).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        model(images)
    return model.eval()


@pytest.mark.parametrize('arch', ARCHS)
def test_a_variant_is_its_config_of_the_pretraining(arch):
    with torch.device('meta'):
        model = timm.create_model(f'partialnet_{arch}')
        cfg = Config.fromfile(config_path(f'pretrain/partialnet_{arch}_in1k.py'))
        assert model.backbone.stages[-1][-1].drop_path.drop_prob == pytest.approx(cfg.model.backbone.drop_path_rate)
        assert type(model.head['layers'][0]['act']).__name__ == cfg.model.head.get('act_cfg', dict(type='ReLU'))['type']
        classifier = build_model(cfg)
    state = model.state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in classifier.state_dict().items()}
    for name in ('classifier', 'first_conv'):
        assert f'{model.default_cfg[name]}.weight' in state
    assert model.default_cfg['crop_pct'] == pytest.approx(224 / cfg.test_pipeline[1]['scale'], abs=0.01)
    assert model.default_cfg['mean'] == pytest.approx([mean / 255 for mean in cfg.data_preprocessor.mean], abs=1e-3)
    assert model.num_classes == 1000 and f'partialnet_{arch}' in timm.list_models('partialnet_*')


def test_logits_are_those_of_mmpretrain(model, images):
    cfg = Config.fromfile(config_path('pretrain/partialnet_t0_in1k.py'))
    cfg.model.head.num_classes = 10
    classifier = build_model(cfg).eval()
    classifier.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(images), classifier(images), rtol=1e-5, atol=1e-6)
    back = create(num_classes=10)
    back.load_state_dict(classifier.state_dict())
    assert torch.equal(back(images), model(images))


def test_head_and_pooling(model, images):
    model = copy.deepcopy(model)
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, 2, 3)
    hidden = model.forward_head(features, pre_logits=True)
    assert hidden.shape == (2, model.head_hidden_size) == (2, 1280)
    torch.testing.assert_close(model.get_classifier()(hidden), model(images))
    model.reset_classifier(0)
    assert model.num_classes == 0 and torch.equal(model(images), hidden)
    model.reset_classifier(0, '')
    assert model(images).shape == (2, 1280, 2, 3)
    model.reset_classifier(7, 'max')
    assert model(images).shape == (2, 7)
    assert create(num_classes=0, global_pool='')(images).shape == (2, 1280, 2, 3)
    with pytest.raises(ValueError, match="global_pool must be one of 'avg', .*, got 'catavgmax'"):
        model.reset_classifier(7, 'catavgmax')


def test_a_new_classifier_is_where_the_model_is(model):
    model = copy.deepcopy(model).to(device='meta', dtype=torch.float64).train()
    model.reset_classifier(0, 'max')
    model.reset_classifier(2)
    weight = model.get_classifier().weight
    assert (weight.device.type, weight.dtype) == ('meta', torch.float64)
    assert all(module.training for module in model.modules())
    assert {value.device.type for value in timm.create_model('partialnet_t0', device='meta').parameters()} == {'meta'}


@pytest.mark.parametrize('checkpointing', [False, True])
def test_every_parameter_gets_a_gradient(checkpointing, images):
    torch.manual_seed(0)
    model = create(num_classes=42, drop_rate=0.1, drop_path_rate=0.1, in_chans=1, layer_scale_init_value=0.1).train()
    model.set_grad_checkpointing(checkpointing)
    outputs = model(images[:, :1])
    assert outputs.shape == (2, 42) and outputs.isfinite().all()
    outputs.mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_checkpointing_changes_no_gradient(model, images):
    gradients = []
    for enable in (False, True):
        network = copy.deepcopy(model).train()
        network.set_grad_checkpointing(enable)
        network(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('options, stages', [
    (dict(), ALL), (dict(out_indices=(1, 3)), (1, 3)), (dict(out_indices=(-3, )), (1, )),
    (dict(out_indices=(0, 2), feature_cls='hook'), (0, 2))])
def test_features_are_those_of_the_backbone(model, images, options, stages):
    features = create(num_classes=10, features_only=True, **options)
    network = features['body'] if 'feature_cls' in options else features.model
    network.load_state_dict(model.state_dict(), strict=False)
    backbone = PartialNet('t0', out_indices=stages, out_norm=False).eval()
    backbone.load_state_dict(model.backbone.state_dict())
    assert relative_error(features(images), backbone(images)) < 1e-6
    assert features.feature_info.channels() == [CHANNELS[i] for i in stages]
    assert features.feature_info.reduction() == [4 << i for i in stages]


def test_intermediates(model, images):
    last, found = model.forward_intermediates(images)
    assert [out.shape[1] for out in found] == CHANNELS and torch.equal(last, found[-1])
    assert torch.equal(last, model.forward_features(images))
    early, (first, second) = model.forward_intermediates(images, [0, -3], stop_early=True)
    assert torch.equal(early, second) and torch.equal(first, found[0]) and torch.equal(second, found[1])
    assert torch.equal(model.forward_intermediates(images, 1, intermediates_only=True)[0], last)
    for indices in ([4], [-5], 0, 5, []):
        with pytest.raises(ValueError, match='indices must be a number from 1 to 4, or stages from -4 to 3, got'):
            model.forward_intermediates(images, indices)
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NLC'"):
        model.forward_intermediates(images, output_fmt='NLC')


def test_tracing_and_merging_change_no_output(model, images):
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
    expected = model(images)
    options = dict(tracer_kwargs=dict(leaf_modules=timm.models.get_notrace_modules(), param_shapes_constant=True))
    node = get_graph_node_names(model, **options)[1][-1]
    graph = create_feature_extractor(model, [node], **options).eval()
    assert torch.equal(graph(images)[node], expected)
    traced = torch.jit.trace(model, images, check_trace=False)
    torch.testing.assert_close(traced(images), expected)
    merged = timm.utils.reparameterize_model(model)
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in merged.modules()) == 0
    assert relative_error(merged(images), expected) < 1e-5


def test_groups_of_layers_are_those_of_the_backbone(model):
    groups = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    depths = {name: model.backbone.get_layer_depth(name, 'backbone.')[0] for name in groups if 'backbone.' in name}
    assert {name: layer for name, layer in groups.items() if name in depths} == depths
    coarse = timm.models.group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert coarse['backbone.stages.2.0.mlp.conv1.weight'] == coarse['backbone.downsample_layers.2.conv.weight']
    assert max(coarse.values()) < max(groups.values())


def test_weights_from_a_file(model, images, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    assert torch.equal(create(num_classes=10, checkpoint_path=path)(images), model(images))
    adapted = create(num_classes=5, in_chans=1, pretrained=True, pretrained_cfg_overlay=dict(file=str(path),
                                                                                            num_classes=10))
    assert torch.equal(adapted.state_dict()['backbone.stages.0.0.mlp.conv1.weight'],
                       model.state_dict()['backbone.stages.0.0.mlp.conv1.weight'])
    assert adapted(images[:, :1]).shape == (2, 5)
    features = create(features_only=True, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
    assert torch.equal(features(images)[-1], model.forward_features(images))
    torch.save(model.backbone.state_dict(), path)
    for options in (dict(num_classes=10), dict(features_only=True)):
        with pytest.raises(ValueError, match='another network: .* they begin with downsample_layers'):
            create(pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **options)


def test_the_arch_of_the_appendix():
    model = create(arch='t0-appendix', num_classes=2)
    assert [len(stage) for stage in model.backbone.stages] == [1, 2, 8, 2]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match='pretrained=True: partialnet_t0 has no published weights; checkpoint_path='):
        create(pretrained=True)
    with pytest.raises(TypeError, match="PartialNet has no argument 'img_size'"):
        create(img_size=224)
    with pytest.raises(ValueError, match="init_cfg of type 'Pretrained': .* by checkpoint_path=FILE"):
        create(init_cfg=dict(type='Pretrained', checkpoint='weights.pth'))
    with pytest.raises(ValueError, match="gate must be one of"):
        create(gate='unknown')
    with pytest.raises(ValueError, match=r'out_indices=\(0, 1\) needs features_only=True'):
        create(out_indices=(0, 1))
