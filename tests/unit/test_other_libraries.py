# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The snippets of docs/zoo.md for libraries outside the two sets of packages: run where one of them is installed."""
import importlib
import re

import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

import partialnet_mm
from tests.helpers.libraries import ROOT, build_model, parameters_without_gradient, shipped_config
from tests.helpers.snippets import load_snippet

# Snippet: library, the shipped config that it starts from.
SNIPPETS = {
    'my_rotated_detector.py': ('mmrotate', 'oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py'),
    'my_pose_estimator.py': (
        'mmpose', 'body_2d_keypoint/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192.py'),
    'my_3d_detector.py': ('mmdet3d', 'fcos3d/fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d.py'),
    'my_yolo.py': ('mmyolo', 'yolov5/yolov5_s-v61_syncbn_8xb16-300e_coco.py'),
}


@pytest.fixture
def snippet_config(tmp_path, request):
    """A snippet of the page; skips where its library is missing or does not import."""
    library, base = SNIPPETS[request.param]
    shipped_config(library, base)
    try:
        importlib.import_module(f'{library}.models')
    except (ImportError, AssertionError) as error:  # each asserts the version of mmcv
        pytest.skip(f'{library} does not import here: {error}')
    return load_snippet(tmp_path, request.param, page_snippets()[request.param], library, base)


def page_snippets():
    return dict(re.findall(r'```python\n# (my_\w+\.py)\n(.*?)```', (ROOT / 'docs' / 'zoo.md').read_text(), re.DOTALL))


def rotated_loss(model):
    from mmdet.structures import DetDataSample
    from mmrotate.structures import RotatedBoxes
    samples = []
    for _ in range(2):
        boxes = RotatedBoxes(torch.tensor([[60., 60., 50., 30., 0.3], [90., 40., 20., 40., -0.5]]))
        samples.append(DetDataSample(
            metainfo=dict(img_shape=(128, 128), pad_shape=(128, 128), scale_factor=(1, 1)),
            gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([0, 3])), ignored_instances=InstanceData(
                bboxes=RotatedBoxes(torch.zeros(0, 5)), labels=torch.zeros(0, dtype=torch.long))))
    return model.loss(torch.randn(2, 3, 128, 128), samples)


def pose_loss(model):
    from mmpose.testing import get_packed_inputs
    return model(**model.data_preprocessor(get_packed_inputs(2), True), mode='loss')


def outputs_3d(model):
    outputs = model(dict(imgs=torch.randn(2, 3, 128, 128)), mode='tensor')
    return {f'loss_{i}': sum(o.pow(2).mean() for o in level) for i, level in enumerate(outputs)}


def yolo_loss(model):
    boxes = torch.tensor([[0, 3, 20., 20., 90., 100.], [1, 7, 5., 40., 70., 80.]])
    metas = [dict(img_shape=(128, 128), batch_input_shape=(128, 128))] * 2
    return model.loss(torch.randn(2, 3, 128, 128), dict(bboxes_labels=boxes, img_metas=metas))


LOSSES = {'my_rotated_detector.py': rotated_loss, 'my_pose_estimator.py': pose_loss, 'my_3d_detector.py': outputs_3d,
          'my_yolo.py': yolo_loss}


def test_page_has_a_snippet_for_each():
    assert set(SNIPPETS) < set(page_snippets())


@pytest.mark.parametrize(('snippet_config', 'loss'), LOSSES.items(), indirect=['snippet_config'])
def test_snippet_trains_every_parameter(snippet_config, loss):
    model = build_model(snippet_config).train()
    assert type(model.backbone) is partialnet_mm.PartialNet
    with DefaultScope.overwrite_default_scope(snippet_config.default_scope):
        total, _ = model.parse_losses(loss(model))
    total.backward()
    assert parameters_without_gradient(model.backbone) == []
