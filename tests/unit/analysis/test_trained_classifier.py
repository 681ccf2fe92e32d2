# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A trained classifier with its test pipeline."""
import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config

from partialnet_mm.analysis.trained_classifier import find_class, load_classifier, prepare, seen_box
from tests.helpers.tiny_models import noise_images, write_small_classifier


@pytest.fixture
def images(tmp_path):
    return noise_images(tmp_path)


@pytest.fixture
def tiny(tmp_path, tiny_arch, randomize_norms):
    return write_small_classifier(tmp_path, tiny_arch, randomize_norms)


@pytest.mark.parametrize('steps, height, width, expected', [
    (["dict(type='Resize', scale=64)"], 32, 32, (0, 0, 32, 32)),
    (["dict(type='Resize', scale=(64, 48))"], 375, 500, (0, 0, 500, 375)),
    # The middle 224 of 248: 271 of 300 pixels.
    (["dict(type='ResizeEdge', scale=248, edge='short', backend='pillow', interpolation='bicubic')",
      "dict(type='CenterCrop', crop_size=224)"], 300, 500, (115, 15, 385, 285)),
    (["dict(type='CenterCrop', crop_size=(20, 40))"], 100, 100, (40, 30, 60, 70)),
])
def test_rectangle_that_the_network_sees(tiny, steps, height, width, expected):
    config, checkpoint = tiny
    pipeline = ', '.join(["dict(type='LoadImageFromFile')", *steps, "dict(type='PackInputs')"])
    config.write_text(config.read_text() + f'test_dataloader = dict(dataset=dict(pipeline=[{pipeline}]))\n')
    classifier = load_classifier(Config.fromfile(config), str(checkpoint))
    assert seen_box(classifier, height, width) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize('loader', ['LoadImageFromFile', 'mmcv.LoadImageFromFile', LoadImageFromFile])
def test_loaded_classifier_is_the_trained_one(tiny, images, loader):
    config, checkpoint = tiny
    cfg = Config.fromfile(config)
    cfg.test_dataloader.dataset.pipeline[0].type = loader
    classifier = load_classifier(cfg, str(checkpoint))
    assert tuple(classifier.classes) == ('blue', 'green', 'red') and not classifier.model.training
    saved = torch.load(checkpoint, weights_only=False)['state_dict']
    assert all(torch.equal(value, saved[name]) for name, value in classifier.model.state_dict().items())
    inputs = prepare(classifier, [str(images / 'a.png'), str(images / 'b.png')])
    picture = cv2.resize(cv2.imread(str(images / 'b.png')), (64, 64))[..., ::-1].astype(np.float32)
    expected = (picture - (123.675, 116.28, 103.53)) / (58.395, 57.12, 57.375)
    np.testing.assert_allclose(inputs[1].permute(1, 2, 0), expected, atol=1e-4)


@pytest.mark.parametrize('classes, given, expected', [
    (('cat', 'dog'), 'dog', 1), (('cat', 'dog'), '0', 0), (None, '1', 1), (('1', '0'), '1', 0)])
def test_find_class(classes, given, expected):
    assert find_class(classes, 2, given) == expected


@pytest.mark.parametrize('given, message', [
    ('dgo', r"class 'dgo' is unknown; allowed are 0 to 1 and names, such as \['dog'\]"),
    ('2', 'allowed are 0 to 1'), ('-1', 'allowed are 0 to 1')])
def test_find_class_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        find_class(('cat', 'dog'), 2, given)
