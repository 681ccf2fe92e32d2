# Table 6, depthwise: a depthwise 3x3 convolution instead of PAT_ch, widened to the latency of the others. The paper
# does not state the width; 74 is nearest to its 15.8 M parameters and 1.28 G multiply-adds.
_base_ = '../pretrain/partialnet_t2_in1k.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True, embed_dim=74, depths=(2, 2, 6, 4), num_heads=6, act_cfg=dict(type='ReLU', inplace=True)),
        token_mixers=('depthwise_conv', 'depthwise_conv', 'depthwise_conv', 'pat_sf')),
    head=dict(in_channels=592))
