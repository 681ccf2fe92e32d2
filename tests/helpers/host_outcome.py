# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What the host libraries do with data: their data sets, pipelines and metrics, with perfect predictions."""
import contextlib
import io
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, MODELS, DefaultScope

from tests.helpers.coco_data import NAMES, REAL

WIDTH, HEIGHT = 128, 96
IMAGES = 4


def base_data() -> tuple[list[np.ndarray], dict]:
    """Images of 128 x 96 pixels and their annotations in COCO format: photographs where they are, otherwise drawn."""
    content = dict(info={}, licenses=[], categories=[dict(id=i + 1, name=name) for i, name in enumerate(NAMES)],
                   images=[dict(id=i + 1, file_name=f'{i + 1}.jpg', width=WIDTH, height=HEIGHT) for i in range(IMAGES)],
                   annotations=[])
    if REAL.is_dir():
        real = json.loads((REAL / 'annotations' / 'instances_train.json').read_text())
        chosen = sorted(real['images'], key=lambda image: image['file_name'])[:IMAGES]
        pixels = [cv2.resize(cv2.imread(str(REAL / 'images' / image['file_name'])), (WIDTH, HEIGHT))
                  for image in chosen]
        names = {category['id']: category['name'] for category in real['categories']}
        objects = []
        for number, image in enumerate(chosen, start=1):
            scale = np.array([WIDTH / image['width'], HEIGHT / image['height']])
            for a in [a for a in real['annotations'] if a['image_id'] == image['id']][:4]:
                polygons = [(np.reshape(p, (-1, 2)) * scale).round(2) for p in a['segmentation']]
                objects.append((number, NAMES.index(names[a['category_id']]) + 1, polygons))
    else:
        rng = np.random.default_rng(0)
        pixels = [rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(IMAGES)]
        objects = [(number, (number + i) % 3 + 1, [np.array([[x, 20.], [x + 30, 20], [x + 30, 60], [x, 70]])])
                   for number in range(1, IMAGES + 1) for i, x in enumerate((10, 70))]
    for image, category, polygons in objects:
        points = np.concatenate(polygons)
        low, high = points.min(0), points.max(0)
        content['annotations'].append(dict(
            id=len(content['annotations']) + 1, image_id=image, category_id=category, iscrowd=0,
            bbox=[*low.tolist(), *(high - low).round(2).tolist()], area=float(np.prod(high - low)),
            segmentation=[polygon.ravel().tolist() for polygon in polygons]))
    return pixels, content


def coco_config(root: Path) -> Config:
    """Training and validation on one annotation file, with boxes and masks."""
    data = dict(type='CocoDataset', data_root=f'{root}/', ann_file='a.json', data_prefix=dict(img='images/'),
                metainfo=dict(classes=NAMES), serialize_data=False)
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
    resize = dict(type='Resize', scale=(WIDTH, HEIGHT), keep_ratio=True)
    heads = dict(bbox_head=dict(num_classes=len(NAMES)), mask_head=dict(num_classes=len(NAMES)))
    return Config(dict(
        default_scope='mmdet',
        model=dict(data_preprocessor=dict(type='DetDataPreprocessor', mean=[1., 2., 3.], std=[1., 1., 1.],
                                          pad_mask=True), roi_head=heads),
        train_dataloader=dict(dataset=dict(data, filter_cfg=dict(filter_empty_gt=True, min_size=32), pipeline=[
            *load, resize, dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')])),
        val_dataloader=dict(dataset=dict(data, test_mode=True, pipeline=[
            load[0], resize, load[1], dict(type='PackDetInputs', meta_keys=(
                'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))])),
        val_evaluator=dict(type='CocoMetric', ann_file=f'{root}/a.json', metric=['bbox', 'segm'])))


def segmentation_config(root: Path) -> Config:
    """Training and validation on images with label images of three classes."""
    data = dict(type='BaseSegDataset', data_root=f'{root}/', data_prefix=dict(img_path='images', seg_map_path='labels'),
                metainfo=dict(classes=NAMES), serialize_data=False)
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    return Config(dict(
        default_scope='mmseg',
        model=dict(data_preprocessor=dict(type='SegDataPreProcessor', mean=[1., 2., 3.], std=[1., 1., 1.], size=(64, 64)
                                          ), decode_head=dict(num_classes=len(NAMES))),
        train_dataloader=dict(dataset=dict(data, pipeline=[
            *load, dict(type='RandomCrop', crop_size=(64, 64)), dict(type='PackSegInputs')])),
        val_dataloader=dict(dataset=dict(data, test_mode=True, pipeline=[
            load[0], dict(type='Resize', scale=(WIDTH, HEIGHT), keep_ratio=True), load[1],
            dict(type='PackSegInputs')])),
        val_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU'])))


def folder_config(root: Path) -> Config:
    """Training and validation on folders of three classes."""
    data = dict(type='CustomDataset', data_root=str(root), serialize_data=False, pipeline=[
        dict(type='LoadImageFromFile'), dict(type='Resize', scale=(32, 32)), dict(type='PackInputs')])
    return Config(dict(
        default_scope='mmpretrain',
        model=dict(head=dict(num_classes=3), data_preprocessor=dict(
            type='ClsDataPreprocessor', mean=[1., 2., 3.], std=[1., 1., 1.])),
        train_dataloader=dict(dataset=dict(data, data_prefix='train')),
        val_dataloader=dict(dataset=dict(data, data_prefix='val')), val_evaluator=dict(type='Accuracy', topk=(1, ))))


def host_outcome(cfg: Config) -> tuple[str, str]:
    """What a training and a validation come to.

    Returns:
        'ends', 'nothing to learn', 'spoiled' or 'fine', and the error or the metrics. A metric is spoiled where perfect
        predictions do not reach its best value.
    """
    run = dict(mmdet=_detection, mmseg=_segmentation, mmpretrain=_classification)[cfg.default_scope]
    with DefaultScope.overwrite_default_scope(cfg.default_scope), contextlib.redirect_stdout(io.StringIO()):
        try:
            learned, metrics = run(cfg)
        except Exception as error:
            return 'ends', f'{type(error).__name__}: {error}'
    if not learned:
        return 'nothing to learn', ''
    return 'spoiled' if not all(value >= 0.999 for value in metrics.values()) else 'fine', str(metrics)


def _items(cfg: Config, split: str) -> tuple:
    """A data set and its items, as the model gets them; no data ends a training."""
    dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
    assert len(dataset), 'the data set is empty'
    preprocessor = MODELS.build(cfg.model.data_preprocessor)

    def items():
        for i in range(len(dataset)):
            item = dataset[i]
            sample = item['data_samples']
            preprocessor(dict(inputs=[item['inputs']], data_samples=[sample]), training=split == 'train')
            yield sample
    return dataset, items()


def _measure(cfg: Config, dataset, predictions: list[dict]) -> dict:
    metric = METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    metric.process({}, predictions)
    return metric.evaluate(len(dataset))


def _detection(cfg: Config) -> tuple[int, dict]:
    learned, count = 0, cfg.model.roi_head.bbox_head.num_classes
    if cfg.get('train_dataloader'):
        learned += 'LoadEmptyAnnotations' in str(cfg.train_dataloader)  # from images alone
        for sample in _items(cfg, 'train')[1]:
            labels = sample.gt_instances.labels
            learned += len(labels)
            assert (labels < count).all(), 'a label beyond the classes of the head'
    if not cfg.get('val_evaluator'):
        return learned, {}
    dataset, items = _items(cfg, 'val')
    predictions = []
    for sample in items:
        found = sample.gt_instances
        height, width = sample.ori_shape
        boxes = found.bboxes.tensor if 'bboxes' in found else torch.zeros(0, 4)
        boxes = torch.stack((boxes[:, 0].clamp(0, width), boxes[:, 1].clamp(0, height), boxes[:, 2].clamp(0, width),
                             boxes[:, 3].clamp(0, height)), 1)  # as heads do
        # A detector that has not learned finds every class everywhere, with low scores.
        doubtful = torch.arange(count)
        boxes = torch.cat((boxes, torch.tensor([[0., 0., 1., 1.]]).repeat(count, 1)))
        labels = torch.cat((found.labels, doubtful)) if 'labels' in found else doubtful
        instances = dict(bboxes=boxes, labels=labels, scores=torch.cat((
            torch.ones(len(boxes) - count), torch.full((count, ), 0.01))))
        if 'masks' in found:
            masks = found.masks.to_tensor(torch.bool, 'cpu')
            instances['masks'] = torch.cat((masks, torch.zeros(count, height, width, dtype=torch.bool)))
        predictions.append(dict(sample.to_dict(), pred_instances=instances))
    results = _measure(cfg, dataset, predictions)
    return learned or not cfg.get('train_dataloader'), {name: value for name, value in results.items()
                                                        if name.endswith('_mAP')}


def _segmentation(cfg: Config) -> tuple[int, dict]:
    learned: set[int] = set()
    for sample in _items(cfg, 'train')[1]:
        labels = sample.gt_sem_seg.data.long()
        assert labels.shape[-2:] == sample.img_shape, 'labels and image differ in size'
        torch.nn.functional.cross_entropy(torch.zeros(1, cfg.model.decode_head.num_classes, *labels.shape[-2:]), labels,
                                          ignore_index=255)
        learned |= set(labels.unique().tolist()) - {255}
    dataset, items = _items(cfg, 'val')
    predictions = []
    for sample in items:
        labels = sample.gt_sem_seg.data
        assert labels.shape[-2:] == sample.ori_shape, 'labels and prediction differ in size'
        predictions.append(dict(pred_sem_seg=dict(data=labels.clamp(max=cfg.model.decode_head.num_classes - 1)),
                                gt_sem_seg=dict(data=labels)))
    results = _measure(cfg, dataset, predictions)
    return max(0, len(learned) - 1), {name: value / 100 for name, value in results.items() if name == 'aAcc'}


def _classification(cfg: Config) -> tuple[int, dict]:
    """A perfect classifier gives the label that the training has for the folder of an image."""
    dataset, items = _items(cfg, 'train')
    count, labels = cfg.model.head.num_classes, {}
    for sample in items:
        if 'gt_label' not in sample:
            return 1, {}  # learns without labels
        label = int(sample.gt_label)
        assert 0 <= label < count, 'a label beyond the classes of the head'
        labels[Path(sample.img_path).parent.name] = label
    dataset, items = _items(cfg, 'val')
    predictions = []
    for sample in items:
        scores = torch.zeros(count)
        scores[labels.get(Path(sample.img_path).parent.name, 0)] = 1
        predictions.append(dict(gt_label=sample.gt_label, pred_score=scores))
    results = _measure(cfg, dataset, predictions)
    return len(labels), {name: value / 100 for name, value in results.items()}
