# COCO 2017 instances with mmdet's large-scale jitter: each image at 0.1 to 2 times the size, cropped to 1024 x 1024.
# Each epoch uses every image four times.
_base_ = './coco_instance.py'

image_size = (1024, 1024)
train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(type='RandomResize', scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type='RandomCrop',
        crop_type='absolute_range',
        crop_size=image_size,
        recompute_bbox=True,
        allow_negative_crop=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2)),
    *_base_.train_pipeline[3:]
]
# 8 images on each of 8 GPUs: a batch of 64.
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    batch_sampler=None,
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=4,
        dataset=dict(_base_.train_dataloader.dataset, pipeline=train_pipeline)))
