# The demo: Mask R-CNN with PartialNet-T0 from random weights, on the drawn data set of
# tools/dataset_tools/make_shapes.py, in minutes on a CPU.
_base_ = [
    '../_base_/models/mask_rcnn_partialnet_light.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/runtime/detection.py',
]

model = dict(
    roi_head=dict(
        # One box regression for all classes is trained on more boxes.
        bbox_head=dict(num_classes=3, reg_class_agnostic=True),
        mask_head=dict(num_classes=3)))

data_root = 'data/shapes/'
metainfo = dict(classes=('disc', 'box', 'triangle'), palette=[(220, 20, 60), (0, 130, 200), (60, 180, 75)])
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # The size of the images: mmdet's heads need the scale factor that Resize records.
    dict(type='Resize', scale=(256, 256), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]
train_dataloader = dict(
    # With 4 processes a batch of 16.
    batch_size=4,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        metainfo=metainfo,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        metainfo=metainfo,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

# Random weights learn faster at a higher rate and with a shorter warm-up than pretrained ones.
max_epochs = 22
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, eta_min=1e-5, convert_to_iter_based=True)
]
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.05), clip_grad=dict(max_norm=10.0))
train_cfg = dict(max_epochs=max_epochs, val_interval=11)
auto_scale_lr = dict(base_batch_size=16)

default_hooks = dict(
    logger=dict(interval=5),
    checkpoint=dict(interval=11, max_keep_ckpts=2),
    visualization=dict(score_thr=0.5))
log_processor = dict(window_size=5)
randomness = dict(seed=0)
