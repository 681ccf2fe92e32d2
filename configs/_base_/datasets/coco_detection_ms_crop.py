# COCO 2017 boxes with DETR's augmentation: shorter side 480 to 800, half of the images cropped before.
_base_ = './coco_detection.py'

resize = dict(
    type='RandomChoiceResize',
    scales=[(size, 1333) for size in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)],
    keep_ratio=True)
train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [resize],
            [
                dict(type='RandomChoiceResize', scales=[(400, 4200), (500, 4200), (600, 4200)], keep_ratio=True),
                dict(
                    type='RandomCrop',
                    crop_type='absolute_range',
                    crop_size=(384, 600),
                    allow_negative_crop=True),
                resize,
            ]
        ]),
    dict(type='PackDetInputs')
]
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False), pipeline=train_pipeline))
