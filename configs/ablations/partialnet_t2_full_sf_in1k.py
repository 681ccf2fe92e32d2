# Table 3, P-P-F: self-attention over all channels.
_base_ = '../pretrain/partialnet_t2_in1k.py'

model = dict(backbone=dict(token_mixers=('pat_ch', 'pat_ch', 'pat_ch', 'full_sf')))
