# Mask R-CNN, PartialNet-S, 3x schedule on COCO with a shorter side of 640 to 800, like mmdet's multi-scale 3x: each of
# the 12 epochs uses every image three times.
_base_ = './partialnet_s_1x.py'

load_masks = dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False)
train_pipeline = [
    _base_.train_pipeline[0],
    load_masks,
    dict(type='RandomResize', scale=[(1333, 640), (1333, 800)], keep_ratio=True),
    *_base_.train_pipeline[3:]
]
test_pipeline = [*_base_.test_pipeline[:2], load_masks, _base_.test_pipeline[3]]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=3,
        dataset=dict(_base_.train_dataloader.dataset, pipeline=train_pipeline)))
val_dataloader = dict(batch_size=2, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], milestones=[9, 11])]
