# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Replaces the backbone of any mmdet, mmseg or mmpretrain config by PartialNet.

The steps in the order of this file: :func:`swap_backbone`; what the old backbone returns; which necks and heads read
it; which of PartialNet's stages replace its feature maps; what else in the config must change.
"""
import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope

from .config_types import complete_types, type_name
from .models import PartialNet

STRIDES = (4, 8, 16, 32)
#: Image sizes to run an old backbone on, in this order: the later ones are for backbones that accept one size only.
SIZES = (128, 224, 256, 299)
# The normalization of PartialNet's pretraining (configs/_base_/datasets/imagenet.py).
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
#: Necks whose outputs contain no feature map of the backbone itself.
KNOWN_NECKS = ('FPN', 'PAFPN', 'NASFPN', 'FPG', 'FPN_CARAFE', 'FPN_DropBlock', 'HRFPN', 'ChannelMapper', 'CSPNeXtPAFPN',
               'YOLOXPAFPN', 'YOLOV3Neck', 'DilatedEncoder', 'CTResNetNeck', 'HRFuseScales',
               'LinearNeck', 'NonLinearNeck', 'MoCoV2Neck', 'DenseCLNeck', 'SwAVNeck')
_EQUAL_SIZES = 'it rescales the equally sized feature maps of a plain vision transformer'
IMPOSSIBLE_NECKS = {
    'SSDNeck': "its first outputs are the backbone's own feature maps, which the head's in_channels name",
    'RFP': 'it runs a second backbone of the old type',
    'JPU': "it passes the backbone's own feature maps to the heads",
    'NASFCOS_FPN': 'it needs the feature map of stride 4 but does not read it, so that its norm gets no gradient',
    **dict.fromkeys(('MLANeck', 'MultiLevelNeck', 'Feature2Pyramid'), _EQUAL_SIZES),
}
IMPOSSIBLE_HEADS = {'DDRHead': 'it reads outputs that DDRNet has in training only',
                    'PIDHead': 'it reads outputs that PIDNet has in training only'}
BATCH_NORMS = ('BN', 'SyncBN')
#: Optimizer constructors that know the layers of a few backbones by name, and raise an error for others.
FOREIGN_LAYER_DECAY = ('LearningRateDecayOptimizerConstructor', 'LayerDecayOptimizerConstructor')


def swap_backbone(cfg: Config, arch: str | dict = 's', checkpoint: str | None = None,
                  backbone: dict | None = None) -> Config:
    """Replaces a config's backbone by PartialNet.

    The neck or the heads that read the backbone get PartialNet's channels. PartialNet returns exactly the stages that
    have the strides of the feature maps that were read. Images are normalized as in PartialNet's pretraining,
    pretrained weights of the old backbone and of the whole model are removed, and ``partialnet_mm`` is added to
    ``custom_imports``. Batch norms are synchronized if the model has synchronized ones. They keep the statistics of the
    checkpoint if the old ones were in evaluation mode and there is a checkpoint, except those of the returned feature
    maps, which no checkpoint of a pretraining has. The other options of the old backbone are removed.

    The old feature maps are measured: the old backbone is built once, with random weights, and run on a small image.
    What cannot be set is logged as a warning: a learning rate for another optimizer, settings for parameters that no
    longer exist, strides that change for a segmentor.

    Args:
        cfg: Config of a detector, segmentor or classifier of mmdet, mmseg or mmpretrain. It is not changed.
        arch: PartialNet's ``arch``. Defaults to 's'.
        checkpoint: Checkpoint of the pretraining, a classifier of configs/pretrain, or None for random weights.
            Defaults to None.
        backbone: Other arguments of :class:`PartialNet`, e.g. ``dict(drop_path_rate=0.15)``; they override what is
            chosen here. Defaults to None.

    Returns:
        A new config. ``Config.dump`` writes it to a file for tools/train.py.

    Raises:
        TypeError: If ``cfg`` is not a Config, or ``backbone`` has an argument that PartialNet does not have.
        ValueError: If the model has no backbone or one that cannot be built here, or reads its feature maps in a way
            that PartialNet cannot serve: R-CNN heads on a single feature map (C4, DC5), strides other than 4, 8, 16,
            32, several feature maps of one stride in a detector, SSD's neck and others that pass the backbone's feature
            maps on.

    Example:
        >>> from mmengine.config import Config
        >>> from partialnet_mm import swap_backbone
        >>> cfg = Config.fromfile('faster-rcnn_r50_fpn_1x_coco.py')
        >>> cfg = swap_backbone(cfg, 's', checkpoint='partialnet_s_in1k.pth')
        >>> cfg.dump('faster-rcnn_partialnet-s_fpn_1x_coco.py')
    """
    if not isinstance(cfg, Config):
        raise TypeError(f'cfg must be an mmengine Config, got {type(cfg).__name__}; Config.fromfile(path) reads one')
    cfg = copy.deepcopy(cfg)
    complete_types(cfg)
    model = _model_with_backbone(cfg)
    _check_model(model)
    scope = cfg.get('default_scope') or 'mmengine'
    old = model.backbone
    in_channels = (backbone or {}).get('in_channels', old.get('in_channels', 3))
    measured = measure_backbone(old, scope, old.get('in_channels', 3))

    classifies = 'head' in model or scope == 'mmpretrain'
    readers = _find_readers(model, measured.maps, classifies)
    read = sorted({i for reader in readers for i in reader.maps})
    stages = _choose_stages(_type_of(old), measured.maps, read, classifies, 'decode_head' in model)
    _check_sizes(readers, stages)
    # In dense prediction every feature map has a norm, also a single one.
    settings = dict(type='PartialNet', arch=arch, out_indices=tuple(stages.values()), out_norm=not classifies,
                    norm_cfg=dict(type='SyncBN' if _synchronizes(model) else 'BN'))
    if in_channels != 3:
        settings['in_channels'] = in_channels
    if checkpoint is not None:
        settings['init_cfg'] = dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')
        settings['norm_eval'] = bool(old.get('norm_eval', False))
    settings.update(backbone or {})
    with torch.random.fork_rng(devices=[]):
        # Wrong arguments raise here, not at the start of a training.
        new = PartialNet(**{key: value for key, value in settings.items() if key != 'type'})
    if tuple(new.out_indices) != tuple(stages.values()):
        raise ValueError(f'backbone.out_indices is {settings["out_indices"]}, but the neck and heads read stages '
                         f'{tuple(stages.values())}, which have the strides of the old feature maps: leave it out')
    for reader in readers:
        reader.write(new.channels, stages)
    _log_old_options(old, settings)
    model.backbone = settings
    _write_encoder(cfg.model, model)

    _drop_weights(cfg, model)
    _normalize_images(cfg, model, in_channels)
    _adapt_optimizer(cfg, measured.parameters, [name for name, _ in new.named_parameters()])
    _add_import(cfg)
    return cfg


class FeatureMap(NamedTuple):
    """One output of a backbone. Vectors, which have no position in the image, have stride 0."""

    channels: int
    stride: int


class MeasuredBackbone(NamedTuple):
    """The outputs of a backbone in order, and the names of its parameters."""

    maps: list[FeatureMap]
    parameters: list[str]


def measure_backbone(cfg: dict, scope: str = 'mmengine', in_channels: int = 3) -> MeasuredBackbone:
    """Builds a backbone of any library with random weights on the CPU and runs it once, or raises a ValueError.

    The state of the random number generator is restored.
    """
    with DefaultScope.overwrite_default_scope(scope), torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            settings = {key: value for key, value in cfg.items() if key not in ('init_cfg', 'pretrained')}
            backbone = MODELS.build(settings)
            backbone.eval()  # returns None in mmdet's ResNet
        except Exception as error:  # any, from any library
            cause = '' if scope != 'mmengine' or not isinstance(error, KeyError) else (
                ". The config has no default_scope, by which its types are found: set it to 'mmdet', 'mmseg' or "
                "'mmpretrain'")
            raise ValueError(f'the backbone {_type_of(cfg)} cannot be built: {error}{cause}') from error
        errors = []
        for size in SIZES:
            try:
                outputs = backbone(torch.zeros(1, in_channels, size, size))
            except Exception as error:
                errors.append(f'{size} x {size}: {error}')
                continue
            outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
            outputs = [output for output in outputs if output is not None]  # of a head for training only
            if any(not isinstance(output, torch.Tensor) or output.dim() not in (2, 3, 4) for output in outputs):
                raise ValueError(f'the backbone {_type_of(cfg)} returns something other than feature maps '
                                 '(B, C, H, W), vectors (B, C) and sequences of them (B, C, N)')
            maps = [FeatureMap(output.shape[1], round(size / output.shape[-1]) if output.dim() == 4 else 0)
                    for output in outputs]
            return MeasuredBackbone(maps, [name for name, _ in backbone.named_parameters()])
    raise ValueError(f'the backbone {_type_of(cfg)} cannot be run. ' + '; '.join(errors))


class _Reader(NamedTuple):
    """A neck or head that reads the backbone; ``maps`` are indices into the old feature maps."""

    where: str
    settings: dict
    maps: tuple[int, ...]
    key: str = 'in_channels'

    def write(self, channels: Sequence[int], stages: dict[int, int]) -> None:
        """Sets its channels and indices: ``stages`` holds PartialNet's stage for each old feature map that is read."""
        def like(key: str, values: list[int]) -> int | list[int]:
            return values if isinstance(self.settings[key], (list, tuple)) else values[0]

        if self.settings.get('num_convs') == 0 and self.settings.get('channels') == self.settings[self.key]:
            self.settings['channels'] = channels[stages[self.maps[0]]]  # an FCNHead that passes its input on
        self.settings[self.key] = like(self.key, [channels[stages[i]] for i in self.maps])
        if self.key != 'in_channels':
            return
        indices = list(stages)
        if 'in_index' in self.settings:
            self.settings['in_index'] = like('in_index', [indices.index(i) for i in self.maps])
        for key, value in (('start_level', 0), ('end_level', -1)):
            if key in self.settings:
                self.settings[key] = value
        for key in ('strides', 'feature_strides'):  # in heads of segmentors
            if isinstance(self.settings.get(key), (list, tuple)) and len(self.settings[key]) == len(self.maps):
                self.settings[key] = [STRIDES[stages[i]] for i in self.maps]


def _log(text: str, level: int = logging.WARNING) -> None:
    print_log(f'swap_backbone: {text}', logger='current', level=level)


def _type_of(settings: dict) -> str:
    return type_name(settings.get('type'))


def _synchronizes(node: Any) -> bool:
    """Whether a module in a tree of dicts and lists has synchronized batch norms."""
    if isinstance(node, dict):
        return _type_of(node).endswith('SyncBN') or any(map(_synchronizes, node.values()))
    return isinstance(node, (list, tuple)) and any(map(_synchronizes, node))


def _model_with_backbone(cfg: Config) -> dict:
    """The model, or the detector inside a tracker or a semi-supervised model, or a retriever's encoder and head."""
    model = cfg.get('model') or {}
    if model.get('image_encoder'):
        encoder = model.image_encoder
        first, *necks = encoder if isinstance(encoder, (list, tuple)) else (encoder.get('backbone'), )
        model = ConfigDict(type=model.get('type'), backbone=first, head=model.get('head'))
        if isinstance(encoder, dict):
            necks = encoder.get('neck')
        if necks:
            model.neck = necks
    while 'backbone' not in model and isinstance(model.get('detector'), dict):
        model = model.detector
    if not isinstance(model.get('backbone'), dict):
        raise ValueError(f'cfg.model of type {_type_of(model)} has no backbone to replace; it has {sorted(model)}')
    return model


def _write_encoder(whole: dict, model: dict) -> None:
    """Puts backbone and necks back to where :func:`_model_with_backbone` has taken them from in a retriever."""
    encoder = whole.get('image_encoder')
    if isinstance(encoder, dict):
        encoder.backbone = model.backbone
        if 'neck' in model:
            encoder.neck = model.neck
    elif encoder:
        necks = model.get('neck', [])
        whole.image_encoder = [model.backbone, *(necks if isinstance(necks, (list, tuple)) else [necks])]


def _log_old_options(old: dict, new: dict) -> None:
    """Logs what the old backbone had and PartialNet could have, and norms of another kind."""
    lost = {key: old[key] for key in ('with_cp', 'frozen_stages', 'drop_path_rate')
            if old.get(key) not in (None, False, -1, 0.) and key not in new}
    if lost:
        _log(f'options of the old backbone that PartialNet does not get: {lost}; to set them: backbone={lost}',
             logging.INFO)
    if old.get('norm_eval') and not new.get('norm_eval'):
        _log('norm_eval=True of the old backbone was removed: the norms of random weights must be trained',
             logging.INFO)
    norm, now = (type_name((settings.get('norm_cfg') or {}).get('type', 'BN')) for settings in (old, new))
    if norm.removeprefix('MM') not in BATCH_NORMS and now in BATCH_NORMS:
        _log(f'the norm of the backbone was {norm} and is a batch norm now; few images per GPU need norm_eval=True and '
             'a checkpoint')


def _heads(model: dict) -> list[tuple[str, dict]]:
    return [head for name in model if name.endswith('head') for head in _entries(f'model.{name}', model[name])]


def _check_model(model: dict) -> None:
    """Raises an error for a model that cannot read PartialNet, whatever its old backbone is."""
    necks = _entries('model.neck', model.get('neck'))
    for entries, impossible in ((necks, IMPOSSIBLE_NECKS), (_heads(model), IMPOSSIBLE_HEADS)):
        for where, settings in entries:
            if _type_of(settings) in impossible:
                raise ValueError(f'{where} of type {_type_of(settings)} cannot read PartialNet: '
                                 f'{impossible[_type_of(settings)]}')
    if not necks and 'roi_head' in model:
        raise ValueError(f'model of type {_type_of(model)} has no neck: its R-CNN heads, and a shared_head if there is '
                         'one, need a single feature map of the old backbone (C4, DC5). Start from a config with FPN')


def _find_readers(model: dict, maps: list[FeatureMap], classifies: bool) -> list[_Reader]:
    """All modules that read the backbone: the neck, or the heads if there is none."""
    necks = _entries('model.neck', model.get('neck'))
    if classifies and maps[-1].stride == 0:
        # The old backbone returned vectors; PartialNet returns a feature map.
        pooling = dict(type='GlobalAveragePooling')
        necks = [(where, neck) for where, neck in necks if _type_of(neck) != 'GlobalAveragePooling']
        model['neck'] = [pooling, *(neck for _, neck in necks)] if necks else pooling
        head = model.get('head')
        if isinstance(head, dict) and _type_of(head) == 'ClsHead' and not necks:
            # The old backbone had the classifier, whose outputs are as many as its classes.
            _log(f'model.head, a ClsHead, is a LinearClsHead of {maps[-1].channels} classes now', logging.INFO)
            head.update(type='LinearClsHead', num_classes=maps[-1].channels, in_channels=maps[-1].channels)
    for where, neck in necks:
        if 'in_channels' in neck:
            if _type_of(neck) not in KNOWN_NECKS:
                _log(f'{where} of type {_type_of(neck)} is unknown; only its in_channels were set')
            return [_reader_of_neck(where, neck, maps)]
    readers = [reader for where, head in _heads(model) for reader in _readers_of_heads(where, head, maps)]
    if not readers:
        raise ValueError(f'model of type {_type_of(model)}: neither a neck nor a head has in_channels')
    return readers


def _reader_of_neck(where: str, neck: dict, maps: list[FeatureMap]) -> _Reader:
    wanted = neck['in_channels']
    if not isinstance(wanted, (list, tuple)):
        return _verified(_Reader(where, neck, (len(maps) - 1, )), maps)
    every = tuple(range(len(maps)))
    if _type_of(neck) == 'YOLOV3Neck':
        every = every[::-1]  # its in_channels start with the coarsest feature map
    reader = _verified(_Reader(where, neck, every), maps)
    end = neck.get('end_level', -1)
    return reader._replace(maps=every[neck.get('start_level', 0):len(maps) if end == -1 else end + 1])


def _readers_of_heads(where: str, head: dict, maps: list[FeatureMap]) -> Iterator[_Reader]:
    if 'kernel_generate_head' in head:  # K-Net: only this head reads the backbone
        where, head = f'{where}.kernel_generate_head', head['kernel_generate_head']
    if 'in_channels' not in head:
        return
    if _type_of(head) == 'SETRUPHead' and len({old.stride for old in maps}) < len(maps):
        raise ValueError(f'{where} of type SETRUPHead cannot read PartialNet: it enlarges the equally sized feature '
                         'maps of a plain vision transformer')
    several = isinstance(head['in_channels'], (list, tuple))
    index = head.get('in_index', list(range(len(maps))) if several else -1)
    indices = index if isinstance(index, (list, tuple)) else [index]
    if _type_of(head) == 'EncHead' and not head.get('add_lateral'):  # it selects several feature maps, reads the last
        indices, head['in_index'], head['in_channels'] = indices[-1:], indices[-1:], head['in_channels'][-1:]
    if not all(-len(maps) <= i < len(maps) for i in indices):
        raise ValueError(f'{where}.in_index is {index!r}, but the backbone returns {len(maps)} feature maps')
    yield _verified(_Reader(where, head, tuple(i % len(maps) for i in indices)), maps)
    if head.get('c1_in_channels'):  # DeepLabV3+ reads the first feature map besides in_index
        yield _verified(_Reader(where, head, (0, ), 'c1_in_channels'), maps)


def _entries(where: str, settings: Any) -> list[tuple[str, dict]]:
    """The settings of a neck or head, or of each in a list, with their key in the config."""
    if isinstance(settings, (list, tuple)):
        return [(f'{where}[{i}]', entry) for i, entry in enumerate(settings) if isinstance(entry, dict)]
    return [(where, settings)] if isinstance(settings, dict) else []


def _verified(reader: _Reader, maps: list[FeatureMap]) -> _Reader:
    """Raises an error if the channels of a module are not those of the feature maps that it seems to read."""
    wanted = reader.settings[reader.key]
    wanted = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
    channels = [maps[i].channels for i in reader.maps]
    if wanted != channels:
        raise ValueError(f'{reader.where}.{reader.key} is {wanted}, but the feature maps that it should read have '
                         f'{channels} channels (all feature maps: {[m.channels for m in maps]}): how it reads the '
                         'backbone is unknown')
    return reader


def _choose_stages(kind: str, maps: list[FeatureMap], read: list[int], classifies: bool,
                   segments: bool) -> dict[int, int]:
    """PartialNet's stage, from 0, for each old feature map that is read, by its index.

    It is the stage of the same stride. The heads of segmentors do not depend on strides: their last feature map, and
    those of the same stride before it, which dilated backbones and plain transformers have, get the last stages. A
    classifier's only feature map is the last stage.
    """
    strides = [old.stride for old in maps]
    given = (f'model.backbone of type {kind} returns feature maps of strides {strides}, of which '
             f'{[strides[i] for i in read]} are read')
    if classifies and read == [len(maps) - 1]:
        if strides[-1] not in (0, 32):
            _log(f'the last feature map had stride {strides[-1]} and now has 32: use larger images')
        return {read[0]: 3}
    stages: dict[int, int] = {}
    for i in read:
        if strides[i] not in STRIDES:
            raise ValueError(f'{given}; PartialNet has 4, 8, 16 and 32')
        at_the_end = segments and set(strides[i:]) == {strides[-1]}
        stages[i] = 4 - (len(maps) - i) if at_the_end else STRIDES.index(strides[i])
    order = list(stages.values())
    if order != sorted(set(order)) or order[0] < 0:
        raise ValueError(f'{given}; PartialNet has one feature map per stride, in the order 4, 8, 16, 32')
    if order[-1] != 3:
        raise ValueError(f"{given}; without the one of stride 32, PartialNet's last stage would not be trained")
    changed = [(strides[i], STRIDES[stage]) for i, stage in stages.items() if strides[i] != STRIDES[stage]]
    if changed:
        _log('the strides of feature maps change: ' + ', '.join(f'{old} becomes {new}' for old, new in changed)
             + '. A head that combines several strides (semantic FPN, UPerNet, SegFormer) fits PartialNet better than '
             'one for a dilated backbone')
    return stages


def _check_sizes(readers: list[_Reader], stages: dict[int, int]) -> None:
    """Raises an error for an OCRHead whose feature map differs in size from the prediction of the head before it."""
    finest = {STRIDES[min(stages[i] for i in reader.maps)] for reader in readers
              if reader.where.startswith('model.decode_head[')}
    ocr = [reader.where for reader in readers if _type_of(reader.settings) == 'OCRHead']
    if ocr and len(finest) > 1:
        raise ValueError(f'{ocr[0]} of type OCRHead and the head before it need feature maps of one size, which a '
                         f'dilated backbone returns; from PartialNet they would read strides {sorted(finest)}')


def _drop_weights(cfg: Config, model: dict) -> None:
    """Removes pretrained weights of the old backbone and model."""
    for owner in (model, cfg.model):
        owner.pop('pretrained', None)
        weights = [init for _, init in _entries('', owner.get('init_cfg')) if _type_of(init) == 'Pretrained']
        if weights:
            _log(f'model.init_cfg, the weights of the whole old model, was removed: {weights[0].get("checkpoint")}')
            del owner['init_cfg']
    if cfg.get('load_from'):
        _log(f'load_from, the weights of the whole old model, was removed: {cfg.load_from}')
        cfg.load_from = None


def _normalize_images(cfg: Config, model: dict, in_channels: int) -> None:
    """Gives data preprocessors the mean, standard deviation and channel order of PartialNet's pretraining."""
    for owner in (cfg, cfg.model, model):
        settings = owner.get('data_preprocessor') or {}
        settings = settings.get('data_preprocessor', settings)  # in a semi-supervised model
        if 'mean' not in settings and 'type' not in settings:
            continue
        mean = settings.get('mean') or MEAN
        if in_channels != len(MEAN) or not isinstance(mean, (list, tuple)) or len(mean) != len(MEAN):
            _log(f'data_preprocessor.mean={settings.get("mean")} was left: the images are not RGB')
            continue
        to_rgb = 'to_rgb' if 'to_rgb' in settings or cfg.get('default_scope') == 'mmpretrain' else 'bgr_to_rgb'
        wanted = {'mean': MEAN, 'std': STD, to_rgb: True}
        if any(settings.get(key) != value for key, value in wanted.items()):
            _log(f"images are normalized as in PartialNet's pretraining: {wanted}", logging.INFO)
            settings.pop('rgb_to_bgr', None)
            settings.update(wanted)


def _adapt_optimizer(cfg: Config, old_names: list[str], new_names: list[str]) -> None:
    """Replaces settings that raise an error with PartialNet, and warns about those that do not fit it."""
    wrapper = cfg.get('optim_wrapper')
    if not wrapper:
        return
    optimizer = wrapper.get('optimizer') or {}
    if 'Adam' not in _type_of(optimizer):
        _log(f'optim_wrapper.optimizer is {_type_of(optimizer)} with lr={optimizer.get("lr")}; PartialNet was trained '
             'with AdamW: lr=2e-4 (S) or 1e-4 (M, L) and weight_decay=1e-4 for Mask R-CNN at batch 16')
    paramwise = wrapper.get('paramwise_cfg') or {}
    constructor = type_name(wrapper.get('constructor'))
    if constructor in FOREIGN_LAYER_DECAY:
        wrapper.paramwise_cfg = dict(
            decay_rate=paramwise.get('decay_rate'), norm_decay_mult=0., bias_decay_mult=0., flat_decay_mult=0.)
        _log(f'optim_wrapper.constructor {constructor} does not support PartialNet and was replaced by '
             f'PartialNetLayerDecayConstructor with {wrapper.paramwise_cfg}; each block is one layer')
        wrapper.constructor = 'PartialNetLayerDecayConstructor'
        return
    gone = [key for key in paramwise.get('custom_keys') or {}
            if _occurs(key, old_names) and not _occurs(key, new_names)]
    if gone:
        more = f' and {len(gone) - 5} more' if len(gone) > 5 else ''
        _log(f'optim_wrapper.paramwise_cfg.custom_keys names parameters of the old backbone only: {gone[:5]}{more}')


def _occurs(key: str, names: list[str]) -> bool:
    return any(key in f'backbone.{name}' for name in names)


def _add_import(cfg: Config) -> None:
    """Adds this package to the config's custom_imports."""
    imports = cfg.get('custom_imports') or {}
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    if 'partialnet_mm' not in names:
        names.append('partialnet_mm')
    cfg.custom_imports = dict(imports=names, allow_failed_imports=imports.get('allow_failed_imports', False))
