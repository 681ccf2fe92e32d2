# For short trainings on data of your own.
_base_ = './detection.py'

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=4, max_keep_ckpts=2),
    visualization=dict(score_thr=0.5))
log_processor = dict(window_size=10)
randomness = dict(seed=0)
