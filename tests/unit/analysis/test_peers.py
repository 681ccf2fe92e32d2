# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Networks by name, and the form that they are timed in."""
import pytest
import torch
from torch import nn

from partialnet_mm.analysis import peers
from partialnet_mm.analysis.peers import MergedNorms, build_network, check_name, merge_network
from tests.helpers.libraries import ROOT
from tests.helpers.tiny_models import write_config

for library in (*peers.LIBRARIES, 'torchvision'):
    pytest.importorskip(library)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_network(name)


# Parameters (M), and batch norms: PartialNet has 5 in a block of stages 1-3, 3 in one of stage 4, 4 in stem and
# mergings. RepVGG has some that no convolution is before, and merges them itself.
NETWORKS = {
    'partialnet_t0': (4.29, 61),
    'partialnet_t0-appendix': (3.56, 65),
    'fasternet_t0': (3.9, 17),
    'timm:mobilenetv2_100': (3.5, 52),
    'efficientvit_b1': (9.1, 35),
    'mobilevitv2_050': (1.37, 25),
    'torchvision:shufflenet_v2_x1_0': (2.28, 56),
    'mmpretrain:shufflenet-v2-1x_16xb64_in1k': (2.28, 56),
    'repvgg_a0': (9.1, 61),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_all_batch_norms_are_merged(name):
    params, norms = NETWORKS[name]
    model = build(name)
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params, abs=0.01)
    assert merge_network(model, (64, 64)) == MergedNorms(norms, 0)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_a_config_is_a_network(tmp_path):
    config = tmp_path / 'mine.py'
    config.write_text(f"_base_ = '{ROOT / 'configs/cifar10/partialnet_t0_cifar10.py'}'\n"
                      'model = dict(backbone=dict(split_ratio=0.5))\n')
    model = build(str(config))
    assert model.backbone.stages[0][0].token_mixer.conv.in_channels == 16
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    with pytest.raises(ValueError, match="there is no config 'other.py'"):
        check_name('other.py')


def test_a_detector_is_a_network_without_its_post_processing(tmp_path, tiny_arch):
    model = build(str(write_config('detector', tmp_path / 'mine.py', tiny_arch)))
    # Merged: five norms per block of stages 1 to 3, three per block of stage 4, one each of stem and merging layers.
    # Left: those of the outputs, for the next stage gets the same feature maps without the norm.
    assert merge_network(model, (64, 96)) == MergedNorms(4 * 5 + 3 + 4, 4)
    with torch.no_grad():
        (scores, _), (_, boxes, masks) = model(torch.zeros(2, 3, 64, 96))
    assert [tuple(score.shape[2:]) for score in scores] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert len(boxes) == 2 * 1000 and masks.shape[-2:] == (28, 28)
    with pytest.raises(ValueError, match="there is no config 'mmdet:nowhere.py'"):
        check_name('mmdet:nowhere.py')


def test_what_cannot_be_merged_is_counted():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    assert merge_network(model, (8, 8)) == MergedNorms(1, 1)


def test_a_wrong_merge_is_an_error(monkeypatch):
    def forget(model, forward):
        model[1] = nn.Identity()

    monkeypatch.setattr(peers, 'fold_batch_norms', forget)
    with pytest.raises(RuntimeError, match='Sequential computes something else: its output differs by'):
        merge_network(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), (8, 8))


@pytest.mark.parametrize('name, message', [
    ('partialnet_x', r"there is no network 'partialnet_x' in timm; near it are .*'partialnet_\w+'"),
    ('resnet5000', "there is no network 'resnet5000' in timm; near it are .*'resnet50'"),
    ('torchvision:shufflenet', "there is no network 'shufflenet' in torchvision"),
    ('keras:resnet', "is of the library 'keras'; allowed are timm, torchvision, mmpretrain"),
])
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        check_name(name)
    with pytest.raises(ValueError, match=message):
        build(name)


def test_a_library_that_is_missing(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match="network 'resnet50' needs timm, which is not installed"):
        check_name('resnet50')
