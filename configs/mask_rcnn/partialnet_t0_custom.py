# Mask R-CNN with PartialNet-T0 on COCO-format data of your own, on a GPU or a CPU:
#
#   python tools/train.py configs/mask_rcnn/partialnet_t0_custom.py --cfg-options \
#       data_root=my_data "classes=['cat','dog']" checkpoint=partialnet_t0_in1k.pth
#
# data_root contains images/ and annotations/instances_{train,val}.json. To use other names, set
# train_dataloader.dataset.dataset.ann_file=..., .data_prefix.img=..., and the same of
# val_dataloader.dataset and test_dataloader.dataset.
_base_ = [
    '../_base_/models/mask_rcnn_partialnet_light.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/runtime/detection.py',
]

# With own_data, the tools write the three settings below wherever mmdet reads them: data_root into data sets and
# metrics, classes into data sets and (their number) into heads, checkpoint into the backbone. A config of your own
# needs no more than own_data = True and the three.
own_data = True
data_root = 'data/custom/'
classes = None  # a list of names, or None for all categories of the training annotations
checkpoint = None  # a checkpoint of configs/pretrain, or None for random weights
# For scripts of other libraries, which do not know own_data: this runner does the same.
runner_type = 'CocoFormatRunner'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='RandomChoiceResize',
        scales=[(700, 300), (700, 340), (700, 380), (700, 420)],
        keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(700, 380), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]
# Each epoch uses every image 8 times: small data sets need more steps, not more epochs.
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=8,
        dataset=dict(
            type='CocoDataset',
            data_root=data_root,
            ann_file='annotations/instances_train.json',
            data_prefix=dict(img='images/'),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=train_pipeline)))
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='images/'),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1)
]
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.05), clip_grad=dict(max_norm=10.0))
train_cfg = dict(val_interval=4)
auto_scale_lr = dict(base_batch_size=4)

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=4, max_keep_ckpts=2),
    visualization=dict(score_thr=0.5))
log_processor = dict(window_size=10)
randomness = dict(seed=0)
