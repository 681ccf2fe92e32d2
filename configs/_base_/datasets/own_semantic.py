# Images and label images of your own for semantic segmentation. docs/own_data.md describes the settings.
#
# img_dir and ann_dir contain a folder train/ and a folder val/ each. A label image has the name of its image and one
# value per pixel: the number of its class in classes, or 255 where losses and metrics skip it.

# With own_data, the tools write these five settings wherever mmseg reads them, and replace 'auto' by what follows from
# the data and the machine.
own_data = True
img_dir = 'data/custom/img_dir'
ann_dir = 'data/custom/ann_dir'
classes = None  # names of the labels 0, 1, 2 and so on: required
palette = None  # one [red, green, blue] per class, or None for mmseg's colours
checkpoint = None  # a checkpoint of configs/pretrain, or None for random weights
# For scripts of other libraries, which do not know own_data: this runner does the same.
runner_type = 'CocoFormatRunner'

dataset_type = 'BaseSegDataset'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale='auto', ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size='auto', cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale='auto', keep_ratio=True),
    # After the resizing, since mmseg compares labels in the size of the image file.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
train_dataloader = dict(
    batch_size='auto',
    num_workers='auto',
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    # Small data sets need more steps, not more epochs: each epoch uses every image several times.
    dataset=dict(
        type='RepeatDataset',
        times='auto',
        dataset=dict(
            type=dataset_type,
            data_root=img_dir,
            data_prefix=dict(img_path='train', seg_map_path=ann_dir + '/train'),
            img_suffix='auto',
            seg_map_suffix='auto',
            pipeline=train_pipeline)))
val_dataloader = dict(
    batch_size=1,
    num_workers='auto',
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=img_dir,
        data_prefix=dict(img_path='val', seg_map_path=ann_dir + '/val'),
        img_suffix='auto',
        seg_map_suffix='auto',
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
