# Table 3, F-P-P: channel attention over all channels.
_base_ = '../pretrain/partialnet_t2_in1k.py'

model = dict(backbone=dict(token_mixers=('full_ch', 'full_ch', 'full_ch', 'pat_sf')))
