# mmdet's lsj-100e in AdamW: 25 epochs, of which each uses every image four times, rate x 0.1 at epochs 22 and 24,
# mixed precision. Rate, weight decay and clipping are this project's, and were not tuned: Table 7's rate of 2e-4 for a
# batch of 16, times the root of 64 / 16, and the weight decay that Table 8 has at most. No weight decay for norms, as
# in mmdet's scratch configs.
max_epochs = 25
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=0.067, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[22, 24], gamma=0.1)
]
optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.),
    clip_grad=dict(max_norm=10.0))

auto_scale_lr = dict(enable=False, base_batch_size=64)
