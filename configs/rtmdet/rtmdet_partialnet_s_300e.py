# RTMDet-m with PartialNet-S, RTMDet's own 300 epochs on COCO. Images are RGB, as in PartialNet's pretraining.
_base_ = [
    '../_base_/models/rtmdet_partialnet.py',
    '../_base_/datasets/coco_detection_mosaic.py',
    '../_base_/schedules/adamw_rtmdet_300e.py',
    '../_base_/runtime/coco_detection.py',
]

model = dict(
    backbone=dict(
        arch='s',
        drop_path_rate=0.15,
        # The checkpoint of configs/pretrain/partialnet_s_in1k.py after its 300 epochs.
        init_cfg=dict(
            type='Pretrained', checkpoint='work_dirs/partialnet_s_in1k/epoch_300.pth', prefix='backbone.')))

default_hooks = dict(checkpoint=dict(interval=10))
custom_hooks = [
    # before the checkpoint hook, which then saves the averaged weights
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, update_buffers=True, priority=49),
    dict(
        type='PipelineSwitchHook',
        switch_epoch=_base_.max_epochs - _base_.stage2_num_epochs,
        switch_pipeline=_base_.train_pipeline_stage2)
]
