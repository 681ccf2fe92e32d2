# Faster R-CNN with FPN: the base of Mask R-CNN without the mask head.
_base_ = './mask_rcnn_partialnet_fpn.py'

without_masks = {key: value for key, value in _base_.model.roi_head.items() if not key.startswith('mask')}
model = dict(
    type='FasterRCNN',
    data_preprocessor=dict(pad_mask=False),
    roi_head=dict(_delete_=True, **without_masks))
