# Semantic FPN with PartialNet-T0 from random weights, on the demo's drawn images, in minutes on a CPU:
#
#   python tools/dataset_tools/make_shapes.py data/shapes
#   for split in train val; do
#       python tools/dataset_tools/coco_to_semantic.py data/shapes/annotations/instances_$split.json \
#           data/shapes/$split data/shapes_semantic $split
#   done
_base_ = [
    '../_base_/models/semantic_fpn_partialnet.py',
    '../_base_/schedules/adamw_80k.py',
    '../_base_/runtime/segmentation.py',
]

# SyncBN does not run on a CPU.
norm_cfg = dict(type='BN', requires_grad=True)
crop_size = (192, 192)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(arch='t0', norm_cfg=norm_cfg),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=64, num_classes=4, norm_cfg=norm_cfg))

dataset_type = 'BaseSegDataset'
data_root = 'data/shapes_semantic/'
metainfo = dict(
    classes=('background', 'disc', 'box', 'triangle'),
    palette=[(0, 0, 0), (220, 20, 60), (0, 130, 200), (60, 180, 75)])
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
train_dataloader = dict(
    # With 2 processes a batch of 16, as in the schedule.
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

# Random weights learn faster at a higher rate than pretrained ones.
max_iters = 500
train_cfg = dict(max_iters=max_iters, val_interval=100)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=20, end=max_iters, by_epoch=False)
]
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.05))

default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=100))
log_processor = dict(window_size=25)
randomness = dict(seed=0)
