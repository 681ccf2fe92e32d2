# For short trainings on data of your own, counted in epochs.
_base_ = './segmentation.py'

default_hooks = dict(
    logger=dict(interval=10, log_metric_by_epoch=True),
    checkpoint=dict(by_epoch=True, interval=4, max_keep_ckpts=2))
log_processor = dict(by_epoch=True, window_size=10)
# All images may have sizes of their own.
env_cfg = dict(cudnn_benchmark=False)
randomness = dict(seed=0)
