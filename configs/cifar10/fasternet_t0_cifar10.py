# FasterNet-T0, PartialNet's baseline, on CIFAR-10: partial convolution as token mixer, no attention, FasterNet's sizes.
_base_ = './partialnet_t0_cifar10.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dim=40, depths=(1, 2, 8, 2), num_heads=1, act_cfg=dict(type='GELU')),
        token_mixers='partial_conv',
        spatial_attention='none'),
    head=dict(in_channels=320))
