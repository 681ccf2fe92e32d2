# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Models by name: in mmpretrain, and by path in mmdet and mmseg; nothing predicts without weights unless asked."""
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

import partialnet_mm
from partialnet_mm import config_path, list_configs, zoo
from tests.helpers.libraries import ROOT, build_model

NAME = 'partialnet-t0_in1k'
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def mmpretrain():
    return pytest.importorskip('mmpretrain')


@pytest.fixture(scope='module')
def checkpoint(mmpretrain, tmp_path_factory):
    """Weights of PartialNet-T0 that predict class 7 for every image."""
    model = mmpretrain.get_model(NAME)
    torch.nn.init.constant_(model.head.layers[-1].fc.bias[7:8], 100.)
    path = tmp_path_factory.mktemp('weights') / 't0.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


def test_mmpretrain_lists_the_classifiers_beside_its_own(mmpretrain):
    listed = mmpretrain.list_models('partialnet*')
    assert {f'partialnet-{arch}_in1k' for arch in ('t0', 't1', 't2', 's', 'm', 'l')} < set(listed)
    assert listed == list_configs('partialnet*')
    assert mmpretrain.ImageClassificationInferencer.list_models('partialnet*') == listed
    assert {f'fasternet-{size}_partialnet-recipe_in1k' for size in ('t0', 't1', 't2', 's', 'm', 'l')} < set(
        mmpretrain.list_models('fasternet*'))
    assert 'resnet50_8xb32_in1k' in mmpretrain.list_models('resnet50*')
    # mmpretrain builds no detectors
    assert mmpretrain.list_models('mask-rcnn_partialnet*') == []


@pytest.mark.parametrize(('arch', 'width'), [('t0', 32), ('t2', 64), ('s', 96)])
def test_get_model_builds_the_named_variant(mmpretrain, arch, width):
    model = mmpretrain.get_model(f'partialnet-{arch}_in1k', backbone=dict(out_indices=(1, 3)))
    assert type(model.backbone) is partialnet_mm.PartialNet
    feats = model.extract_feat(torch.rand(2, 3, 64, 64), stage='backbone')
    assert [tuple(f.shape) for f in feats] == [(2, 2 * width, 8, 8), (2, 8 * width, 2, 2)]


@pytest.mark.parametrize('pretrained', ['file', False])
def test_get_model_loads_what_is_asked_for(mmpretrain, checkpoint, pretrained):
    model = mmpretrain.get_model(NAME, pretrained=pretrained and checkpoint)
    arrived = all(torch.equal(value, model.state_dict()[name])
                  for name, value in torch.load(checkpoint)['state_dict'].items())
    assert arrived == bool(pretrained)
    assert not model.training


def test_classifying_and_features_by_name(mmpretrain, checkpoint):
    result = mmpretrain.inference_model(NAME, IMAGE, pretrained=checkpoint)
    assert result['pred_label'] == 7
    assert result['pred_score'] == pytest.approx(1)
    assert result['pred_class'] == mmpretrain.get_model(NAME)._dataset_meta['classes'][7]
    inferencer = mmpretrain.ImageClassificationInferencer(NAME, pretrained=checkpoint)
    assert [r['pred_label'] for r in inferencer([IMAGE, IMAGE[::-1]], batch_size=2)] == [7, 7]
    extractor = mmpretrain.FeatureExtractor(NAME, pretrained=checkpoint)
    feats, = extractor(IMAGE)
    data = extractor.model.data_preprocessor(next(extractor.preprocess([IMAGE])), False)
    with torch.no_grad():
        torch.testing.assert_close(feats[0], inferencer.model.extract_feat(data['inputs'])[0][0])


@pytest.mark.parametrize('use', [
    lambda lib: lib.get_model(NAME, pretrained=True),
    lambda lib: lib.inference_model(NAME, IMAGE),
    lambda lib: lib.ImageClassificationInferencer(NAME),
    lambda lib: lib.FeatureExtractor(NAME),
], ids=['get_model', 'inference_model', 'inferencer', 'feature_extractor'])
def test_asking_for_weights_that_do_not_exist_says_so(mmpretrain, use):
    with pytest.raises(FileNotFoundError) as error:
        use(mmpretrain)
    message = str(error.value)
    assert f"this project has no weights of '{NAME}'" in message
    assert 'pretrained=FILE' in message
    assert config_path('pretrain/partialnet_t0_in1k.py') in message


def test_registering_again_changes_nothing(mmpretrain):
    from mmpretrain.apis.model import ModelHub
    before = dict(ModelHub._models_dict)
    assert zoo.register_with_mmpretrain()
    assert ModelHub._models_dict == before


def test_an_entry_of_others_stays(mmpretrain, monkeypatch):
    from mmpretrain.apis.model import ModelHub
    monkeypatch.setattr(ModelHub, '_models_dict', {NAME: 'theirs'})
    assert zoo.register_with_mmpretrain()
    assert ModelHub._models_dict[NAME] == 'theirs'
    assert 'partialnet-t0_none_cifar10' in ModelHub._models_dict


def test_works_without_mmpretrain(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmpretrain', None)
    assert not zoo.register_with_mmpretrain()


def test_an_mmpretrain_that_does_not_import_is_a_warning(mmpretrain, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, 'mmpretrain.apis.model', None)
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        assert not zoo.register_with_mmpretrain()
    finally:
        logger.removeHandler(caplog.handler)
    assert [r.levelname for r in caplog.records] == ['WARNING']
    assert 'mmpretrain does not import' in caplog.text


def test_configs_that_the_page_names_are_there():
    page = (ROOT / 'docs' / 'zoo.md').read_text()
    # mim also takes a file's name only if a single folder has it
    named = re.findall(r"config_path\('([^']+)'\)|mim train partialnet_mm (\w+\.py)", page)
    named = [path or file_name for path, file_name in named]
    assert len(named) > 5
    assert [name for name in named if not Path(config_path(name)).is_file()] == []


@pytest.mark.parametrize('name', [
    'mask_rcnn/partialnet_m_1x.py', 'mask_rcnn/partialnet_m_1x', 'mask-rcnn_partialnet-m_fpn_1x_coco',
    'Mask-RCNN_PartialNet-M_FPN_1x_COCO', 'partialnet_m_1x.py', 'partialnet_m_1x'
])
def test_config_path_takes_names_and_paths(name):
    path = Path(config_path(name))
    assert path.is_absolute()
    assert path.samefile(ROOT / 'configs' / 'mask_rcnn' / 'partialnet_m_1x.py')


def test_config_path_finds_fragments_by_path_only():
    name = 'mask_rcnn_partialnet_fpn.py'
    assert Path(config_path(f'_base_/models/{name}')).samefile(ROOT / 'configs' / '_base_' / 'models' / name)
    with pytest.raises(ValueError, match='there is no config'):
        config_path(name)


def test_config_path_names_what_is_near():
    with pytest.raises(ValueError, match=r"no config 'mask_rcnn/partialnet_xs_1x\.py'.*mask_rcnn/partialnet_s_1x\.py"):
        config_path('mask_rcnn/partialnet_xs_1x.py')


@pytest.fixture
def other_root(tmp_path, monkeypatch):
    """A package without configs in another folder."""
    (tmp_path / 'partialnet_mm').mkdir()
    monkeypatch.setattr(zoo, '__file__', str(tmp_path / 'partialnet_mm' / 'zoo.py'))
    return tmp_path / 'partialnet_mm' / '.mim'


def test_config_path_asks_which_of_several(other_root):
    for folder in ('a', 'b', '_base_', *zoo.CLASSIFIER_FOLDERS):
        (other_root / 'configs' / folder).mkdir(parents=True)
    for folder in ('a', 'b', '_base_'):
        (other_root / 'configs' / folder / 'same.py').touch()
    for folder in zoo.CLASSIFIER_FOLDERS:
        (other_root / 'configs' / folder / 'metafile.yml').touch()
    (other_root / 'model-index.yml').write_text('Import: []\n')
    with pytest.raises(ValueError, match=r"in several folders; name one of \['a/same\.py', 'b/same\.py'\]"):
        config_path('same')


def test_a_package_without_configs_imports_and_says_so_when_asked(other_root):
    (other_root.parents[1] / 'configs').mkdir()  # those of another project
    (other_root.parents[1] / 'model-index.yml').touch()
    assert not zoo.register_with_mmpretrain()
    with pytest.raises(FileNotFoundError, match='has no configs: install the package again'):
        config_path(NAME)


def test_a_config_elsewhere_takes_one_of_these_as_base(tmp_path):
    pytest.importorskip('mmdet')
    base = "__import__('partialnet_mm').config_path('mask_rcnn/partialnet_t0_shapes.py')"
    assert "_base_ = __import__('partialnet_mm').config_path(" in (ROOT / 'docs' / 'zoo.md').read_text()
    (tmp_path / 'mine.py').write_text(f'_base_ = {base}\nmodel = dict(backbone=dict(frozen_stages=1))\n')
    cfg = Config.fromfile(tmp_path / 'mine.py')
    assert '_scope_' not in cfg.model
    model = build_model(cfg)
    assert type(model).__name__ == 'MaskRCNN'
    trained = {name.split('.')[0] for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert 'stages' in trained
    assert not any(p.requires_grad for p in model.backbone.stages[0].parameters())


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """Path of the demo's config, and weights for it."""
    pytest.importorskip('mmdet')
    path = config_path('mask-rcnn_partialnet-t0_fpn_shapes')
    model = build_model(Config.fromfile(path))
    with torch.no_grad():  # confident, so that there are detections to compare
        model.roi_head.bbox_head.fc_cls.bias[:3] += torch.tensor([3., 2., 1.])
    checkpoint = tmp_path_factory.mktemp('detector') / 'weights.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=('disc', 'box', 'triangle')))),
               checkpoint)
    return path, str(checkpoint)


def test_detecting_by_name_gives_the_same_by_either_way_and_merged(detector):
    from mmdet.apis import DetInferencer, inference_detector, init_detector
    path, weights = detector
    inferencer = DetInferencer(path, weights=weights, device='cpu', show_progress=False)
    found = inferencer(IMAGE)['predictions'][0]
    assert len(found['scores']) > 10
    assert inferencer.model.dataset_meta['classes'] == ('disc', 'box', 'triangle')
    instances = inference_detector(init_detector(path, weights, device='cpu'), IMAGE).pred_instances
    assert instances.scores.tolist() == pytest.approx(found['scores'])
    assert np.allclose(instances.bboxes.numpy(), found['bboxes'])
    inferencer.model.backbone.switch_to_deploy()
    merged = inferencer(IMAGE)['predictions'][0]
    assert merged['scores'] == pytest.approx(found['scores'], abs=1e-4)
    assert np.allclose(merged['bboxes'], found['bboxes'], atol=1e-2)


def test_segmenting_by_name(tmp_path):
    """With weights that predict class 2 for every pixel."""
    pytest.importorskip('mmseg')
    from mmseg.apis import MMSegInferencer
    path = config_path('semantic_fpn/semantic_fpn_partialnet_t0_shapes.py')
    model = build_model(Config.fromfile(path))
    torch.nn.init.constant_(model.decode_head.conv_seg.bias[2:3], 100.)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    inferencer = MMSegInferencer(path, weights=str(tmp_path / 'weights.pth'), device='cpu')
    found = inferencer(IMAGE)['predictions']
    assert found.shape == IMAGE.shape[:2]
    assert (found == 2).all()


def test_detectors_without_weights_warn(detector):
    from mmdet.apis import DetInferencer
    with pytest.warns(UserWarning, match='randomly initialized'):
        DetInferencer(detector[0], device='cpu', show_progress=False)


def test_mmdet_does_not_know_the_name_alone(detector):
    from mmdet.apis import DetInferencer
    with pytest.raises(ValueError, match='Cannot find model'):
        DetInferencer('mask-rcnn_partialnet-t0_fpn_shapes', device='cpu')


def test_mmengine_has_no_scheme_for_this_package(tmp_path):
    """docs/zoo.md says so; if this fails, mmengine supports it and the page must change."""
    (tmp_path / 'mine.py').write_text("_base_ = 'partialnet_mm::mask_rcnn/partialnet_s_1x.py'\n")
    with pytest.raises(AssertionError, match='does not support to load partialnet_mm'):
        Config.fromfile(tmp_path / 'mine.py')
