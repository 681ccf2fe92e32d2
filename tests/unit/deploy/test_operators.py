# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Operators that exporters of detectors share: the same as the host's on single images, for batches."""
import pytest
import torch

from partialnet_mm.deploy.operators import UNUSED, answers, clip_boxes, read_nms, suppress, top_rows

mmcv_ops = pytest.importorskip('mmcv.ops')


def random_boxes(batch, number):
    corners = torch.rand(batch, number, 2, generator=torch.Generator().manual_seed(1)) * 60
    sides = 5 + torch.rand(batch, number, 2, generator=torch.Generator().manual_seed(2)) * 30
    return torch.cat([corners, corners + sides], -1), torch.rand(batch, number,
                                                                 generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize('agnostic', [False, True])
@pytest.mark.parametrize('most', [7, None])
def test_suppress_does_what_batched_nms_does_image_by_image(agnostic, most):
    boxes, scores = random_boxes(3, 50)
    groups = torch.arange(50).expand(3, 50) % 3
    scores[0, 20:] = UNUSED
    scores[2] = UNUSED  # an image without any object
    found, rows = suppress(boxes, scores, None if agnostic else groups, 0.5, most)
    numbers = []
    for image in range(3):
        kept = (scores[image] > UNUSED).nonzero().flatten()
        if len(kept):
            _, order = mmcv_ops.batched_nms(boxes[image][kept], scores[image][kept], groups[image][kept],
                                            dict(type='nms', iou_threshold=0.5), class_agnostic=agnostic)
            kept = kept[order][:most]
        numbers.append(len(kept))
        assert rows[image][:len(kept)].tolist() == kept.tolist()
        assert torch.equal(found[image][:len(kept)], scores[image][kept])
        assert (found[image][len(kept):] == UNUSED).all()
    assert numbers[2] == 0 < numbers[1] and found.shape == rows.shape == (3, max(numbers))


def test_suppress_keeps_columns_where_nothing_is_left():
    boxes, _ = random_boxes(2, 5)
    scores = torch.full((2, 5), UNUSED)
    assert suppress(boxes, scores, None, 0.5, 3)[0].shape == (2, 0)
    found, rows = suppress(boxes, scores, None, 0.5, 3, least=1)
    assert found.tolist() == [[UNUSED], [UNUSED]] and rows.shape == (2, 1)


def test_unused_answers_are_zero_with_the_label_minus_one():
    boxes, scores, labels = answers(torch.ones(1, 2, 4), torch.tensor([[0.5, UNUSED]]), torch.tensor([[3, 2]]))
    assert boxes[0, 1].tolist() == [0] * 4 and scores.tolist() == [[0.5, 0]] and labels.tolist() == [[3, -1]]


def test_top_rows_are_at_most_all():
    scores = torch.tensor([[0.1, 0.3, 0.2]])
    assert top_rows(scores, 2)[1].tolist() == [[1, 2]]
    assert top_rows(scores, 9)[1].tolist() == top_rows(scores, None)[1].tolist() == [[1, 2, 0]]


def test_boxes_are_clipped_to_height_and_width():
    box = torch.tensor([[-3., -4., 50., 60.]])
    assert clip_boxes(box, torch.tensor([20., 30.])).tolist() == [[0, 0, 30, 20]]


def test_read_nms():
    assert read_nms(dict(type='nms', iou_threshold=0.7, split_thr=5)) == (0.7, False)
    assert read_nms(dict(iou_threshold=0.5, class_agnostic=True, max_num=-1)) == (0.5, True)


@pytest.mark.parametrize('cfg, named', [
    (None, 'has no nms'), (dict(type='soft_nms', iou_threshold=0.5), 'soft_nms'), (dict(type='nms'), 'iou_threshold'),
    (dict(iou_threshold=0.5, max_num=10), 'max_num'), (dict(iou_threshold=0.5, offset=1), 'offset')])
def test_nms_that_onnx_has_not_is_refused_by_name(cfg, named):
    with pytest.raises(ValueError, match=named):
        read_nms(cfg)
