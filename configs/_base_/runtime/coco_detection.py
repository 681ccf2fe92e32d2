_base_ = './detection.py'

default_hooks = dict(
    # The paper does not say whether it reports the last epoch or the best, and the official code tests the best. Both
    # remain: analyze_logs.py table shows both.
    checkpoint=dict(save_best='coco/bbox_mAP', rule='greater'),
    # The norms of the returned feature maps train on the images of their own process. After each epoch all processes
    # get the mean of their statistics, so a validation on 8 GPUs measures the network that the checkpoint has.
    sync_buffers=dict(type='SyncBuffersHook'))
