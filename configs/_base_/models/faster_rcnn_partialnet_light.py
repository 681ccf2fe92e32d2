# Faster R-CNN with PartialNet-T0, for small data sets and for CPUs: the light Mask R-CNN without the mask head.
_base_ = './mask_rcnn_partialnet_light.py'

without_masks = {key: value for key, value in _base_.model.roi_head.items() if not key.startswith('mask')}
model = dict(
    type='FasterRCNN',
    data_preprocessor=dict(pad_mask=False),
    roi_head=dict(_delete_=True, **without_masks))
