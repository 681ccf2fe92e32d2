# Table 7 of the paper: AdamW, 12 epochs, rate x 0.1 at epochs 8 and 11, linear warm-up over 500
# iterations, no gradient clipping. Each variant sets its learning rate.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1)
]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4))

auto_scale_lr = dict(enable=False, base_batch_size=16)
