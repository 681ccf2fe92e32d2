# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The pipeline of test-time augmentation."""
import pytest
from mmengine.config import Config

from partialnet_mm.engine.runners.config_file import ConfigError
from partialnet_mm.engine.runners.tta import augment_test, augmented

LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackDetInputs', meta_keys=('img_id', 'flip'))
ANNOTATIONS = dict(type='LoadAnnotations', with_bbox=True)
FLIPS = [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0., 1.)]
PACKED = dict(type='PackDetInputs', meta_keys=('img_id', 'flip', 'flip_direction'))


@pytest.mark.parametrize('steps, versions, after', [
    ([ANNOTATIONS], [], [ANNOTATIONS]),
    ([dict(type='Resize', scale=(8, 6)), ANNOTATIONS, dict(type='Pad', size=(8, 8))],
     [[dict(type='Resize', scale=(4, 3)), dict(type='Resize', scale=(16, 12))]],
     [ANNOTATIONS, dict(type='Pad', size=(16, 16))]),
    ([ANNOTATIONS, dict(type='Crop'), dict(type='mmdet.Resize', scale_factor=1.5)],
     [[dict(type='Crop')], [dict(type='mmdet.Resize', scale_factor=0.75), dict(type='mmdet.Resize', scale_factor=3.)]],
     [ANNOTATIONS]),
])
def test_versions_of_an_image(steps, versions, after):
    """Sizes, then mirror images, then padding and annotations, which stay as they are."""
    given = [LOAD, *steps, PACK]
    load, augmentation = augmented(given, (0.5, 2))
    assert load == LOAD and augmentation['type'] == 'TestTimeAug'
    assert augmentation['transforms'] == [*versions, FLIPS, *([step] for step in after), [PACKED]]
    assert given == [LOAD, *steps, dict(PACK, meta_keys=('img_id', 'flip'))]


def config(**changes):
    return Config(dict(dict(model=dict(type='A'), default_scope='mmdet', test_evaluator=dict(metric='bbox'),
                            test_dataloader=dict(dataset=dict(dataset=dict(pipeline=[LOAD, PACK])))), **changes))


def test_the_configs_own_augmentation_comes_first():
    cfg = config(tta_model=dict(type='Mine'), tta_pipeline=[dict(type='Steps')])
    assert list(augment_test(cfg)) == []
    assert cfg.model == dict(type='Mine', module=dict(type='A'))
    assert cfg.test_dataloader.dataset.dataset.pipeline == [dict(type='Steps')]


@pytest.mark.parametrize('changes, message', [
    (dict(default_scope='mmpose'), "default_scope is 'mmpose'"),
    (dict(test_dataloader=dict(dataset=dict(type='A'))), 'has no pipeline'),
    (dict(test_dataloader=dict(dataset=dict(pipeline=[dict(type='Crop'), LOAD, PACK]))), 'does not begin with')])
def test_what_cannot_be_augmented(changes, message):
    with pytest.raises(ConfigError, match=message):
        list(augment_test(config(**changes)))
