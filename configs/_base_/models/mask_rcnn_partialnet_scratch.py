# Mask R-CNN with PartialNet from random weights. Neck and heads have the group norms of mmdet's own config for this,
# mask-rcnn_r50-scratch_fpn_gn-all_6x_coco. A merged PartialNet needs batch norms, so the backbone has these, trained,
# with their statistics gathered over all GPUs.
_base_ = './mask_rcnn_partialnet_fpn.py'

norm_cfg = dict(type='GN', num_groups=32, requires_grad=True)
model = dict(
    # Padded to the size of the random crops.
    data_preprocessor=dict(batch_augments=[dict(type='BatchFixedSizePad', size=(1024, 1024), pad_mask=True)]),
    # None of the base's settings for pretrained weights.
    backbone=dict(_delete_=True, type='PartialNet', out_indices=(0, 1, 2, 3), norm_cfg=dict(type='SyncBN')),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg)))
