# RTMDet with PartialNet-T0, neck and head as narrow as RTMDet-tiny's, on COCO-format data of your own, boxes only, on a
# GPU or a CPU:
#
#   python tools/train.py configs/rtmdet/rtmdet_partialnet_t0_custom.py --cfg-options \
#       data_root=my_data "classes=['cat','dog']" checkpoint=partialnet_t0_in1k.pth
#
# data_root contains images/ and annotations/instances_{train,val}.json. docs/own_data.md describes the settings.
_base_ = './rtmdet_partialnet_s_custom.py'

model = dict(
    backbone=dict(arch='t0', drop_path_rate=0.0),
    neck=dict(in_channels=[64, 128, 256], out_channels=96, num_csp_blocks=1),
    bbox_head=dict(in_channels=96, feat_channels=96, exp_on_reg=False))
