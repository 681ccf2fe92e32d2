# The settings that all configs of this project share.
custom_imports = dict(imports=['partialnet_mm'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # docs/safety.md explains these four.
    checkpoint=dict(type='CrashSafeCheckpointHook', interval=1, max_keep_ckpts=3),
    preemption=dict(type='PreemptionHook'),
    epoch_data=dict(type='EpochDataHook'),
    finite=dict(type='FiniteHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'))

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))

vis_backends = [dict(type='LocalVisBackend')]
log_level = 'INFO'
load_from = None
resume = False
