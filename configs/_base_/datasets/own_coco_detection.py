# Data of your own in COCO format, boxes only. docs/own_data.md describes the settings.
#
# data_root contains images/ and annotations/instances_{train,val}.json. To use other names, set
# train_dataloader.dataset.dataset.ann_file=..., .data_prefix.img=..., and the same of
# val_dataloader.dataset and test_dataloader.dataset.

# With own_data, the tools write the three settings below wherever mmdet reads them: data_root into data sets and
# metrics, classes into data sets and (their number) into heads, checkpoint into the backbone. They replace 'auto' by
# what follows from the data and the machine. A config of your own needs no more than own_data = True and the three.
own_data = True
data_root = 'data/custom/'
classes = None  # a list of names, or None for all categories of the training annotations
checkpoint = None  # a checkpoint of configs/pretrain, or None for random weights
# For scripts of other libraries, which do not know own_data: this runner does the same.
runner_type = 'CocoFormatRunner'

dataset_type = 'CocoDataset'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomChoiceResize', scales='auto', keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale='auto', keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]
train_dataloader = dict(
    batch_size='auto',
    num_workers='auto',
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    # Small data sets need more steps, not more epochs: each epoch uses every image several times.
    dataset=dict(
        type='RepeatDataset',
        times='auto',
        dataset=dict(
            type=dataset_type,
            data_root=data_root,
            ann_file='annotations/instances_train.json',
            data_prefix=dict(img='images/'),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=train_pipeline)))
val_dataloader = dict(
    batch_size=1,
    num_workers='auto',
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='images/'),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric', ann_file=data_root + 'annotations/instances_val.json', metric='bbox', format_only=False)
test_evaluator = val_evaluator
