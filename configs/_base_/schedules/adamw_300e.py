# Table 8 of the paper: AdamW, 300 epochs, cosine decay after 20 epochs of linear warm-up, mixed
# precision. Each variant sets its weight decay.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()

param_scheduler = [
    # from 1e-6 to 4e-3
    dict(type='LinearLR', start_factor=2.5e-4, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, end=300)
]
optim_wrapper = dict(
    type='AmpOptimWrapper', optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), weight_decay=0.005))

# For GPUs with less memory: a number of images per GPU, with accumulated steps that give the batch below. None leaves
# train_dataloader.batch_size as it is.
images_per_gpu = None
auto_scale_lr = dict(enable=False, base_batch_size=4096)
