# Mask R-CNN, ConvNeXt-T with PATConv for its depthwise 7x7 convolutions, 1x schedule on COCO.
# The optimizer is that of mmdet's ConvNeXt-T, which trains for 3x on random scales and crops.
_base_ = [
    '../_base_/models/mask_rcnn_partialnet_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/runtime/coco_detection.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='PATConvNeXt',
        arch='tiny',
        out_indices=[0, 1, 2, 3],
        drop_path_rate=0.4,
        layer_scale_init_value=1.0,
        gap_before_final_norm=False,
        # The only batch norms of a ConvNeXt: at 2 images per GPU they keep the statistics of the pretraining.
        patconv_cfg=dict(norm_eval=True),
        # The checkpoint of configs/patconv/convnext_t_patconv_in1k.py after its 300 epochs.
        init_cfg=dict(
            type='Pretrained', checkpoint='work_dirs/convnext_t_patconv_in1k/epoch_300.pth', prefix='backbone.')),
    neck=dict(in_channels=[96, 192, 384, 768]))

optim_wrapper = dict(
    type='AmpOptimWrapper',
    constructor='LearningRateDecayOptimizerConstructor',
    paramwise_cfg=dict(decay_rate=0.95, decay_type='layer_wise', num_layers=6),
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05))
