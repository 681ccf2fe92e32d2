# For data of your own: AdamW, 12 epochs, rate x 0.1 after epochs 8 and 11. Batch, warm-up, rate and the passes over the
# images in each epoch follow from the data and the machine.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=4)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end='auto'),
    dict(type='MultiStepLR', begin=0, end='auto', by_epoch=True, milestones='auto', gamma=0.1)
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr='auto', weight_decay=0.05),
    clip_grad=dict(max_norm=10.0))

auto_scale_lr = dict(enable=False, base_batch_size='auto')
