# Mask R-CNN with PartialNet-T0 on COCO-format data of your own, with boxes and masks, on a GPU or a CPU:
#
#   python tools/train.py configs/mask_rcnn/partialnet_t0_custom.py --cfg-options \
#       data_root=my_data "classes=['cat','dog']" checkpoint=partialnet_t0_in1k.pth
#
# data_root contains images/ and annotations/instances_{train,val}.json. docs/own_data.md describes the settings.
_base_ = [
    '../_base_/models/mask_rcnn_partialnet_light.py',
    '../_base_/datasets/own_coco_instance.py',
    '../_base_/runtime/own_detection.py',
    '../_base_/schedules/adamw_own_data.py',
]
