# The recipe of partialnet_t0_scratch.py for a CPU and few images in COCO format: 320 pixels, narrow heads, few regions,
# a short schedule. docs/coco.md has its results beside those of norm_eval=True.
_base_ = './partialnet_t0_scratch.py'

# As in partialnet_t0_custom.py.
own_data = True
data_root = 'data/custom/'
classes = None
checkpoint = None

size = (320, 320)
model = dict(
    data_preprocessor=dict(batch_augments=[dict(type='BatchFixedSizePad', size=size, pad_mask=True)]),
    neck=dict(out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, conv_out_channels=64, fc_out_channels=256, reg_class_agnostic=True),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)))

load, annotate, resize, crop, *rest = _base_.train_pipeline
train_pipeline = [
    load, annotate, dict(resize, scale=size, ratio_range=(0.5, 1.5)), dict(crop, crop_size=size), *rest
]
test_pipeline = [dict(step, scale=size) if step['type'] == 'Resize' else step for step in _base_.test_pipeline]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    # Each of the 6 epochs uses every image 16 times.
    dataset=dict(
        times=16,
        dataset=dict(
            ann_file='annotations/instances_train.json', data_prefix=dict(img='images/'), pipeline=train_pipeline)))
val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(ann_file='annotations/instances_val.json', data_prefix=dict(img='images/'), pipeline=test_pipeline))
test_dataloader = val_dataloader

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='MultiStepLR', begin=0, end=6, by_epoch=True, milestones=[4, 5], gamma=0.1)
]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=6, val_interval=2)
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=6))
randomness = dict(seed=0)
