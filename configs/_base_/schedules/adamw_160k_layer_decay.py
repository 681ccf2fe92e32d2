# ConvNeXt's 160k iterations for UPerNet: AdamW, batch 16, linear decay after 1500 iterations of warm-up, mixed
# precision. Earlier blocks of the backbone learn more slowly: each at decay_rate times the rate of the next.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=1500, end=160000, by_epoch=False)
]
optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='PartialNetLayerDecayConstructor',
    # No weight decay for norms, biases and the tables of the position bias.
    paramwise_cfg=dict(
        decay_rate=0.9,
        norm_decay_mult=0.,
        bias_decay_mult=0.,
        flat_decay_mult=0.,
        custom_keys={'position_bias.table': dict(decay_mult=0.)}),
    loss_scale='dynamic')

auto_scale_lr = dict(enable=False, base_batch_size=16)
