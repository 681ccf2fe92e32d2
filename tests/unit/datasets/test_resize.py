# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from partialnet_mm.analysis.data_pipeline import plain_pipeline
from partialnet_mm.datasets.transforms.planar import to_interleaved, to_planar
from partialnet_mm.datasets.transforms.resize import resize
from tests.helpers.photographs import decode, photographs

FILTERS = dict(bilinear=Image.Resampling.BILINEAR, bicubic=Image.Resampling.BICUBIC)


def build(*steps):
    from mmengine.dataset import Compose
    from mmpretrain.registry import TRANSFORMS
    init_default_scope('mmpretrain')
    return Compose([TRANSFORMS.build(step) for step in (*steps, dict(type='PackInputs'))])


def pillow(image, size, interpolation):
    """Resizes horizontally, then vertically: Pillow up to version 12 did, and version 13 chooses the order itself."""
    height, width = size
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(
        (width, image.shape[0]), FILTERS[interpolation]).resize((width, height), FILTERS[interpolation]))


def assert_like_pillow(ours, theirs, interpolation='bicubic'):
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 2 and (difference > 0).mean() < dict(bicubic=0.01, bilinear=0.07)[interpolation]


@pytest.fixture(scope='module')
def images():
    return [decode(content) for content in photographs('imagenet_sample.tar', 5)]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    for index, content in enumerate(photographs('imagenet_sample.tar', 5)):
        (folder / f'{index}.JPEG').write_bytes(content)
    return sorted(folder.iterdir())


@pytest.mark.parametrize('interpolation', FILTERS)
@pytest.mark.parametrize('box, size', [
    ((0, 0, 400, 400), (224, 224)), ((11, 7, 123, 201), (128, 128)), ((3, 50, 90, 60), (288, 288)),
    ((0, 0, 400, 400), (248, 330)), ((20, 20, 224, 100), (224, 96)), ((0, 0, 1, 1), (32, 32))])
def test_pixels_are_those_of_pillow(images, interpolation, box, size):
    top, left, height, width = box
    for image in images:
        crop = image[top:top + height, left:left + width]
        assert_like_pillow(resize(crop, size, interpolation), pillow(crop, size, interpolation), interpolation)


@pytest.mark.parametrize('size, flip_prob', [(32, 0), (128, 0.5), (288, 0.5)])
def test_the_crop_is_that_of_mmpretrain(files, size, flip_prob):
    """Crops and flips are those of mmpretrain's three steps, from the same random numbers, with the same metadata."""
    step = dict(type='FastRandomResizedCrop', scale=size, flip_prob=flip_prob)
    ours, theirs = build(step), build(*plain_pipeline([step]))
    flips = set()
    for seed, file in enumerate(files * 2):
        samples, states = [], []
        for pipeline in (ours, theirs):
            np.random.seed(seed)
            samples.append(pipeline(dict(img_path=str(file), gt_label=3, sample_idx=seed)))
            states.append(np.random.get_state()[2])
        mine, other = samples
        assert mine['data_samples'].metainfo == other['data_samples'].metainfo
        assert mine['data_samples'].gt_label == other['data_samples'].gt_label and states[0] == states[1]
        assert mine['inputs'].is_contiguous() and mine['inputs'].shape == (3, size, size)
        flips.add(mine['data_samples'].metainfo.get('flip'))
        # The crop of mmpretrain's own numbers, by Pillow.
        np.random.seed(seed)
        image = decode(file.read_bytes())
        top, left, height, width = ours.transforms[0].crop.rand_crop_params(image)
        expected = pillow(image[top:top + height, left:left + width], (size, size), 'bicubic')
        if mine['data_samples'].metainfo.get('flip'):
            expected = expected[:, ::-1]
        assert_like_pillow(mine['inputs'].permute(1, 2, 0).numpy(), expected)
        # Also by Pillow's own order of passes, within a level on average.
        assert (mine['inputs'].int() - other['inputs'].int()).abs().float().mean() < 1
    assert flips == ({True, False} if flip_prob else {None})


def test_an_image_that_is_there_is_not_read(images):
    np.random.seed(0)
    results = build(dict(type='FastRandomResizedCrop', scale=64)).transforms[0](dict(img=images[0], img_path='none'))
    assert results['img'].shape == (64, 64, 3) == results['img_shape'] and 'ori_shape' not in results


@pytest.mark.parametrize('size', [32, 64, 112])
def test_scaled_decoding_stays_near(files, size):
    """Against the whole image, cropped to the same whole pixels of the scaled one."""
    scaled = build(dict(type='FastRandomResizedCrop', scale=size, scaled_decoding=True)).transforms[0]
    used, means, qualities = set(), [], []
    for seed, file in enumerate(files * 2):
        np.random.seed(seed)
        image = decode(file.read_bytes())
        top, left, height, width = scaled.crop.rand_crop_params(image)
        factor = next(factor for factor in (8, 4, 2, 1) if min(height, width) >= factor * size or factor == 1)
        used.add(factor)
        outer = image[top // factor * factor:-(-(top + height) // factor) * factor,
                      left // factor * factor:-(-(left + width) // factor) * factor]
        expected = resize(outer, (size, size), 'bicubic')
        np.random.seed(seed)
        results = scaled(dict(img_path=str(file)))
        assert results['ori_shape'] == image.shape[:2]
        difference = results['img'].astype(int) - expected
        if factor == 1:
            assert not difference.any()
        else:
            means.append(np.abs(difference).mean())
            qualities.append(10 * np.log10(255**2 / (difference**2).mean()))
    assert len(used) > 1
    assert max(means) < 4 and min(qualities) > 30 and np.median(qualities) > 38


@pytest.mark.parametrize('kind', ['rotated', 'png'])
def test_scaled_decoding_leaves_other_files_whole(tmp_path, images, kind):
    file = tmp_path / f'image.{"png" if kind == "png" else "jpg"}'
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.fromarray(images[0]) as image:
        image.save(file, **(dict(exif=exif) if kind == 'rotated' else {}))
    results = []
    for scaled_decoding in (False, True):
        np.random.seed(1)
        step = build(dict(type='FastRandomResizedCrop', scale=32, scaled_decoding=scaled_decoding)).transforms[0]
        results.append(step(dict(img_path=str(file))))
    whole, scaled = results
    assert (whole['img'] == scaled['img']).all() and whole['ori_shape'] == scaled['ori_shape']
    assert whole['ori_shape'] == (images[0].shape[:2] if kind == 'png' else images[0].shape[1::-1])


@pytest.mark.parametrize('step, message', [
    (dict(type='FastRandomResizedCrop', scale=64, interpolation='nearest'), "one of bilinear, bicubic, got 'nearest'"),
    (dict(type='FastRandomResizedCrop', scale=64, flip_prob=2), 'probability from 0 to 1, got 2'),
    (dict(type='FastResizeEdge', scale=0), 'pixels from 1 up, got 0'),
    (dict(type='FastResizeEdge', scale=64, interpolation='area'), "one of bilinear, bicubic, got 'area'")])
def test_bad_arguments(step, message):
    with pytest.raises(ValueError, match=message):
        build(step)


def test_a_file_that_holds_no_image(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(b'nothing')
    for scaled_decoding in (False, True):
        step = build(dict(type='FastRandomResizedCrop', scale=64, scaled_decoding=scaled_decoding)).transforms[0]
        with pytest.raises(ValueError, match='a.jpg holds no image'):
            step(dict(img_path=str(tmp_path / 'a.jpg')))


def test_the_test_pipeline_is_that_of_mmpretrain(files, images):
    steps = [dict(type='LoadImageFromFile'), dict(type='FastResizeEdge', scale=248),
             dict(type='CenterCrop', crop_size=224)]
    ours, theirs = build(*steps), build(*plain_pipeline(steps))
    for file, image in zip(files, images):
        mine, other = (pipeline(dict(img_path=str(file))) for pipeline in (ours, theirs))
        assert mine['data_samples'].metainfo == other['data_samples'].metainfo
        height, width = (int(248 * side / min(image.shape[:2])) for side in image.shape[:2])
        expected = pillow(image, (height, width), 'bicubic')
        top, left = round((height - 224) / 2), round((width - 224) / 2)
        assert_like_pillow(mine['inputs'].permute(1, 2, 0).numpy(), expected[top:top + 224, left:left + 224])


@pytest.mark.parametrize('channels', [1, 3])
def test_planar_memory(channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    for view in (image, image[:, ::-1], image.transpose(2, 0, 1).copy().transpose(1, 2, 0)):
        planar, back = to_planar(view), to_interleaved(to_planar(view))
        assert (planar == view).all() and planar.transpose(2, 0, 1).flags.c_contiguous
        assert (back == view).all() and back.flags.c_contiguous
    assert (to_interleaved(image[:, ::-1]) == image[:, ::-1]).all()
    flat = image[..., 0]
    assert to_planar(flat) is flat and (to_interleaved(flat) == flat).all()
