# Table 13: FasterNet-S under PartialNet-S's recipe: partial convolution as token mixer, no attention.
_base_ = '../pretrain/partialnet_s_in1k.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dim=128, depths=(1, 2, 13, 2), num_heads=1, act_cfg=dict(type='ReLU')),
        token_mixers='partial_conv',
        mixer_residual=False,
        spatial_attention='none'),
    head=dict(in_channels=1024))
