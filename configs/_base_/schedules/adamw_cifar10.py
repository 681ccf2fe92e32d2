# A short schedule for small images: AdamW, one epoch of linear warm-up, cosine decay. The rate is that of Table 8,
# scaled from its batch of 4096 by the square root: at 2e-3 PartialNet-T0 diverged in the second epoch.
epochs = 10
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True)
]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=7e-4, weight_decay=0.05))

auto_scale_lr = dict(enable=False, base_batch_size=128)
