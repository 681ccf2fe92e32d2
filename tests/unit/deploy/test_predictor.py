# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The predictor without torch, held against OpenCV, mmcv, mmdet and pycocotools."""
import json
import re

import cv2
import mmcv
import numpy as np
import onnx
import pytest
import torch
from mmcv.transforms import CenterCrop, Pad, Resize
from PIL import Image
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from partialnet_mm.deploy import Predictor
from partialnet_mm.deploy.__main__ import main
from partialnet_mm.deploy._coco import encode_mask
from partialnet_mm.deploy._drawing import colours_of
from partialnet_mm.deploy._images import Prepared, make_step, read_picture, resize
from partialnet_mm.deploy.predictor import paste_mask
from tests.helpers.photographs import DATA
from tests.helpers.whole_models import write_whole_model

CODES = dict(nearest=cv2.INTER_NEAREST, bilinear=cv2.INTER_LINEAR, bicubic=cv2.INTER_CUBIC)
BOXES = [(10, 20, 50, 60, 0.9, 1), (0, 0, 30, 30, 0.6, 0), (5, 5, 9, 9, 0.2, 2), (0, 0, 0, 0, 0, -1)]


def picture(height, width, seed=0):
    """Smooth colours with sharp edges, and a little noise."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    image[height // 3:height // 2, width // 4:] = rng.integers(0, 256, 3)
    return cv2.add(image, rng.integers(0, 9, image.shape, dtype=np.uint8))


@pytest.mark.parametrize('old, new', [
    ((60, 80), (107, 80)), ((600, 800), (480, 360)), ((120, 160), (80, 60)), ((37, 53), (333, 200)), ((1, 1), (7, 5)),
    ((300, 301), (64, 64)), ((2, 3), (1, 1)), ((5, 70), (3, 80)), ((48, 64), (64, 48))])
@pytest.mark.parametrize('interpolation', list(CODES))
def test_resizing_is_that_of_opencv(interpolation, old, new):
    """Exact, but for bicubic, which OpenCV sums in another order."""
    image = picture(*old)
    wanted = cv2.resize(image, new, interpolation=CODES[interpolation])
    found = resize(image, new, interpolation)
    assert found.dtype == np.uint8 and found.shape == (new[1], new[0], 3)
    assert np.abs(found.astype(int) - wanted).max() <= (interpolation == 'bicubic')
    if interpolation != 'nearest':
        np.testing.assert_array_equal(resize(image, new, interpolation, 'pillow'),
                                      mmcv.imresize(image, new, interpolation=interpolation, backend='pillow'))


@pytest.mark.parametrize('size', [(60, 80), (81, 33), (200, 300), (16, 16)])
@pytest.mark.parametrize('step, build', [
    (dict(type='resize', size=[133, 80], keep_ratio=True, interpolation='bilinear', backend='cv2'),
     lambda: Resize((133, 80), keep_ratio=True)),
    (dict(type='resize', size=[50, 70], keep_ratio=False, interpolation='nearest', backend='cv2'),
     lambda: Resize((50, 70), interpolation='nearest')),
    (dict(type='center_crop', size=[31, 40]), lambda: CenterCrop((31, 40))),
    (dict(type='pad', size=[97, 101], value=[1, 2, 3]), lambda: Pad(size=(97, 101), pad_val=dict(img=(1, 2, 3)))),
    (dict(type='pad', divisor=32, value=[7, 7, 7]), lambda: Pad(size_divisor=32, pad_val=dict(img=(7, 7, 7)))),
    *[(dict(type='resize_edge', edge=edge, size=47, interpolation='bilinear', backend='cv2'), edge)
      for edge in ('short', 'long', 'width', 'height')]])
def test_steps_are_those_of_the_training(step, build, size):
    if isinstance(build, str):
        transforms = pytest.importorskip('mmpretrain.datasets.transforms')
        transform = transforms.ResizeEdge(47, edge=build)
    else:
        transform = build()
    image = picture(*size)
    wanted = transform(dict(img=image.copy(), img_shape=image.shape[:2]))
    found = make_step(step)(Prepared(image))
    np.testing.assert_array_equal(found.image, wanted['img'])
    assert found.scale == pytest.approx(wanted.get('scale_factor', (1, 1)))


@pytest.mark.parametrize('step, message', [
    (dict(type='flip'), r"step \{'type': 'flip'\} is not known; allowed types are \['resize', 'resize_edge'"),
    (dict(type='resize', size=[8, 8], keep_ratio=True, interpolation='area', backend='cv2'),
     r"interpolation of backend 'cv2' must be one of \('nearest', 'bilinear', 'bicubic'\), got 'area'"),
    (dict(type='resize', size=[8, 8], keep_ratio=True, interpolation='area', backend='tf'), "backend must be .*'tf'"),
    (dict(type='resize', size=[8, 0], keep_ratio=True, interpolation='nearest', backend='cv2'), r'got \[8, 0\]'),
    (dict(type='resize', size=[8, 8]), 'keep_ratio'), (dict(type='pad', size=[8, 8], value=[0]), r'got \[0\]'),
    (dict(type='pad', value=[0, 0, 0]), 'either size or divisor'), (dict(type='center_crop', size=8), 'got 8'),
    (dict(type='resize_edge', edge='left', size=8, interpolation='nearest', backend='cv2'), "edge must be .*'left'")])
def test_steps_that_are_not_known_are_refused(step, message):
    with pytest.raises(ValueError, match=message):
        make_step(step)


def test_an_image_that_vanishes_is_refused():
    step = make_step(dict(type='resize', size=[64, 8], keep_ratio=True, interpolation='bilinear', backend='cv2'))
    with pytest.raises(ValueError, match='1 x 900 pixels cannot be resized to 0 x 64'):
        step(Prepared(np.zeros((900, 1, 3), np.uint8)))


def test_photographs_are_read_as_opencv_reads_them():
    files = sorted((DATA / 'fruits_nuts' / 'images').glob('*.jpg'))[:4]
    if not files:
        pytest.skip(f'no photographs in {DATA}')
    for file in files:
        np.testing.assert_array_equal(read_picture(file, True), cv2.imread(str(file))[..., ::-1])


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_turns_as_opencv_turns(tmp_path, orientation):
    path = tmp_path / 'turned.jpg'
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(40, 64)).save(path, exif=exif)
    np.testing.assert_array_equal(read_picture(path, True), cv2.imread(str(path))[..., ::-1])
    flag = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_picture(image, False), cv2.imread(str(path), flag)[..., ::-1])


@pytest.mark.parametrize('mode', ['L', 'P', '1', 'LA', 'RGBA', 'I;16', 'RGB'])
def test_images_of_every_mode(tmp_path, mode):
    path = tmp_path / 'image.png'
    if mode == 'I;16':
        cv2.imwrite(str(path), np.arange(0, 65000, 13, dtype=np.uint16).reshape(50, 100))
    else:
        image = Image.fromarray(picture(50, 64))
        image.putalpha(128) if mode in ('LA', 'RGBA') else None
        image.convert(mode).save(path)
    np.testing.assert_array_equal(read_picture(path, True), cv2.imread(str(path))[..., ::-1])


def test_images_of_16_and_32_bits(tmp_path):
    grey = np.arange(0, 65000, 13, dtype=np.uint16).reshape(50, 100)
    cv2.imwrite(str(tmp_path / 'a.pgm'), grey)
    np.testing.assert_array_equal(read_picture(tmp_path / 'a.pgm', True), np.stack([grey >> 8] * 3, 2))
    for kind in (np.int32, np.float32):
        Image.fromarray(grey.astype(kind)).save(tmp_path / 'a.tif')
        with pytest.raises(ValueError, match="numbers of 32 bits .mode '[IF]'., .*: convert it to 8 bits"):
            read_picture(tmp_path / 'a.tif', True)


@pytest.mark.parametrize('image', [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32),
                                   np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8)])
def test_arrays_of_another_form_are_refused(image):
    with pytest.raises(ValueError, match=re.escape(f'got {image.dtype} {image.shape}')):
        read_picture(image, True)


def test_masks_are_pasted_as_mmdet_pastes_them():
    module = pytest.importorskip('mmdet.models.roi_heads.mask_heads.fcn_mask_head')
    rng = np.random.default_rng(0)
    corners = rng.uniform(-20, 55, (40, 2))
    boxes = np.concatenate([corners, np.maximum(1, corners + rng.uniform(0.3, 90, (40, 2)))], 1)
    for box in [*boxes, (5, 5, 5, 40), (0, 0, 80, 60)]:
        box = np.array(box, np.float32)
        small = cv2.resize(rng.random((6, 5), np.float32), (28, 28))
        wanted = np.zeros((60, 80), bool)
        pasted, where = module._do_paste_mask(torch.tensor(small[None, None]), torch.tensor(box[None]), 60, 80)
        wanted[where] = pasted[0].numpy() >= 0.5
        found = np.zeros((60, 80), bool)
        part, where = paste_mask(small, box, (60, 80), 0.5)
        found[where] = part
        np.testing.assert_array_equal(found, wanted)
    part, _ = paste_mask(np.ones((28, 28), np.float32), np.float32((-9, -9, -5, -5)), (60, 80), 0.5)
    assert part.size == 0  # for which mmdet raises an error


@pytest.mark.parametrize('density', [0, 0.01, 0.5, 0.99, 1])
@pytest.mark.parametrize('shape', [(1, 1), (5, 7), (70, 300)])
def test_masks_are_encoded_as_pycocotools_encodes_them(shape, density):
    mask = np.random.default_rng(0).random(shape) < density
    wanted = mask_tools.encode(np.asfortranarray(mask, np.uint8))
    assert encode_mask(mask, shape[1]) == dict(size=wanted['size'], counts=wanted['counts'].decode())
    wide = np.zeros((shape[0], shape[1] + 9), bool)
    wide[:, 4:-5] = mask
    assert encode_mask(mask, wide.shape[1], 4)['counts'] == mask_tools.encode(
        np.asfortranarray(wide, np.uint8))['counts'].decode()


def test_a_detection_lies_on_the_picture(tmp_path):
    """The input is twice the picture, without a border of the crop, and padded; rows without a label are no boxes."""
    steps = [dict(type='resize', size=[200, 160], keep_ratio=False, interpolation='bilinear', backend='cv2'),
             dict(type='center_crop', size=[160, 140]), dict(type='pad', divisor=64, value=[0, 0, 0])]
    masks = np.zeros((4, 28, 28))
    masks[0, :, 14:] = 1
    model = write_whole_model(tmp_path / 'm.onnx', 'detection', boxes=BOXES, masks=masks,
                              metadata=dict(preprocessing=steps))
    result = Predictor(model)(picture(80, 100))
    np.testing.assert_allclose(result.boxes, [[15, 15, 35, 35], [10, 5, 25, 20], [12.5, 7.5, 14.5, 9.5]])
    np.testing.assert_allclose(result.scores, [0.9, 0.6, 0.2])
    assert result.labels.tolist() == [1, 0, 2] and result.names == ['box', 'disc', 'tree']
    assert result.masks.shape == (3, 80, 100) and result.masks.dtype == bool
    np.testing.assert_array_equal(np.argwhere(result.masks[0]).min(0), [15, 25])
    np.testing.assert_array_equal(np.argwhere(result.masks[0]).max(0), [34, 34])
    assert not result.masks[1:].any()
    assert result.probabilities is None and result.class_map is None


@pytest.mark.parametrize('masks', [None, np.zeros((0, 28, 28))])
def test_nothing_is_found(tmp_path, masks):
    result = Predictor(write_whole_model(tmp_path / 'm.onnx', 'detection', masks=masks))(picture(40, 50))
    assert result.boxes.shape == (0, 4) and result.names == [] and result.scores.shape == (0, )
    assert (None if masks is None else (0, 40, 50)) == (None if result.masks is None else result.masks.shape)
    np.testing.assert_array_equal(np.asarray(result.draw()), result.picture)


def test_a_segmentation_lies_on_the_picture(tmp_path):
    steps = [dict(type='resize', size=[30, 20], keep_ratio=False, interpolation='nearest', backend='cv2'),
             dict(type='pad', size=[40, 40], value=[255, 0, 0])]
    model = write_whole_model(tmp_path / 'm.onnx', 'segmentation', metadata=dict(preprocessing=steps))
    labels = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 3, (20, 30), dtype=np.uint8), 4, 0), 3, 1)
    result = Predictor(model)(np.stack([labels] * 3, 2))
    np.testing.assert_array_equal(result.class_map, labels)
    drawn = np.asarray(result.draw()).astype(int)
    at = tuple(np.argwhere(labels == 2)[-1])
    np.testing.assert_allclose(drawn[at], (2 + np.array(colours_of(result.metadata)[2])) / 2, atol=1)


def test_a_classification_reads_every_kind_of_image(tmp_path):
    predictor = Predictor(write_whole_model(tmp_path / 'm.onnx', 'classification'), threads=1)
    array = np.broadcast_to(np.array([30, 50, 20], np.uint8), (7, 9, 3))
    Image.fromarray(array).save(tmp_path / 'a.png')
    for image in (array, Image.fromarray(array), tmp_path / 'a.png', str(tmp_path / 'a.png')):
        result = predictor(image)
        np.testing.assert_allclose(result.probabilities, [0.3, 0.5, 0.2], rtol=1e-6)
        assert [entry[:2] for entry in result.top(2)] == [(1, 'box'), (0, 'disc')]


def test_drawing_shows_what_the_score_allows(tmp_path):
    masks = np.ones((4, 28, 28))
    model = write_whole_model(tmp_path / 'm.onnx', 'detection', boxes=BOXES, masks=masks,
                              metadata=dict(palette=[[255, 0, 0], [0, 255, 0], [0, 0, 255]]))
    result = Predictor(model)(np.full((100, 120, 3), 100, np.uint8))
    drawn = {score: np.asarray(result.draw(score)) for score in (None, 0.7, 0.95)}
    assert (drawn[0.95] == 100).all()
    np.testing.assert_array_equal(drawn[None][59, 30], [0, 255, 0])  # the edge of the best box
    np.testing.assert_allclose(drawn[None][55, 30], [50, 178, 50], atol=1)  # its mask
    np.testing.assert_allclose(drawn[None][26, 5], [178, 50, 50], atol=1)
    assert (drawn[0.7][26, 5] == 100).all() and (drawn[0.7][55, 30] == drawn[None][55, 30]).all()


@pytest.mark.parametrize('metadata, message', [
    (dict(task=None), r"its metadata has no 'task', .*export_onnx\.py"), (dict(task='pose'), "'task' is 'pose'; allow"),
    (dict(classes=None), "its metadata has no 'classes'"), (dict(exif='perhaps'), "'exif' must be true or false"),
    (dict(classes='[1, 2, 3]'), r"'classes' must be a list of names, got '\[1, 2, 3\]'"),
    (dict(palette=[[1, 2, 3]]), "'palette' has 1 entries for 3 classes"),
    (dict(palette=[[1, 2, 300]] * 3), "'palette' must be a list of colours"),
    (dict(mask_threshold='high'), "'mask_threshold' must be a number"),
    (dict(preprocessing=[dict(type='center_crop', size=[9, 9])], task='segmentation'), "has 'center_crop', outside"),
    (dict(preprocessing=[dict(type='rotate')]), "'rotate'.* is not known"),
    (dict(task='detection'), r"no output \['boxes', 'scores', 'labels'\], .*\['class_map'\]")])
def test_files_of_another_form_are_refused(tmp_path, metadata, message):
    model = write_whole_model(tmp_path / 'm.onnx', 'segmentation', metadata=metadata)
    with pytest.raises(ValueError, match=f'm.onnx. cannot be used: .*{message}'):
        Predictor(model)


def test_an_image_below_the_least_size_is_refused(tmp_path):
    predict = Predictor(write_whole_model(tmp_path / 'm.onnx', 'segmentation', metadata=dict(preprocessing=[],
                                                                                             min_size=32)))
    assert predict(picture(32, 40)).class_map.shape == (32, 40)
    with pytest.raises(ValueError, match='has 40 x 31 pixels once prepared; the model needs at least 32 x 32'):
        predict(picture(31, 40))


def test_a_file_of_one_size_names_it(tmp_path):
    path = write_whole_model(tmp_path / 'm.onnx', 'classification')
    model = onnx.load(path)
    for axis, side in enumerate((1, 32, 40)):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = side
    onnx.save(model, path)
    assert Predictor(path)(picture(32, 40)).probabilities.shape == (3, )
    with pytest.raises(ValueError, match='has 40 x 31 pixels once prepared; the model takes 40 x 32 only'):
        Predictor(path)(picture(31, 40))


def test_results_are_not_lost(tmp_path, capsys):
    """Pictures of two images in one file, a folder where a file goes, and pictures that cannot be written."""
    images, out = tmp_path / 'images', tmp_path / 'out'
    images.mkdir()
    for name in ('a.bmp', 'a.bmp.png', 'b.jpg'):
        Image.fromarray(picture(8, 9)).save(images / name)
    model = str(write_whole_model(tmp_path / 'm.onnx', 'classification'))
    assert main([model, str(images), '--out-dir', str(out)]) == 2
    assert re.search(r'nothing was started: two images .*a\.bmp\.png.: run them separately', capsys.readouterr().err)
    (images / 'a.bmp.png').unlink()
    (out / 'predictions.json').mkdir(parents=True)
    assert main([model, str(images), '--out-dir', str(out)]) == 2
    assert re.search(r'nothing was started: .*predictions\.json. .*: it is a folder', capsys.readouterr().err)
    (out / 'predictions.json').rmdir()
    (tmp_path / 'file').touch()
    assert main([model, str(images), '--out-dir', str(tmp_path / 'file')]) == 2
    assert 'nothing was started' in capsys.readouterr().err
    (out / 'pictures').touch()
    assert main([model, str(images), '--out-dir', str(out)]) == 1
    assert '2 images have no picture or class map' in capsys.readouterr().err
    assert [entry['image_id'] for entry in json.loads((out / 'predictions.json').read_text())] == ['a.bmp', 'b.jpg']


def write_images(folder):
    """A JPEG, a PNG in a subfolder, and two images that cannot be read."""
    (folder / 'more').mkdir(parents=True)
    Image.fromarray(picture(80, 100)).save(folder / 'a.jpg')
    Image.fromarray(picture(70, 90, 1)).save(folder / 'more' / 'b.webp', lossless=True)
    (folder / 'cut.jpg').write_bytes((folder / 'a.jpg').read_bytes()[:-300])
    (folder / 'none.png').write_bytes(b'')
    return folder


def test_the_command_writes_cocos_results(tmp_path, capsys):
    """pycocotools reads them, and finds the boxes and masks that the annotations have."""
    images, out = write_images(tmp_path / 'images'), tmp_path / 'out'
    model = write_whole_model(tmp_path / 'm.onnx', 'detection', boxes=BOXES, masks=np.ones((4, 28, 28)))
    annotations = tmp_path / 'annotations.json'
    boxes = [(7, 10, 20, 40, 40), (3, 0, 0, 30, 30), (5, 5, 5, 4, 4)]
    annotations.write_text(json.dumps(dict(
        images=[dict(id=index, file_name=name, height=height, width=width) for index, name, height, width in (
            (11, 'a.jpg', 80, 100), (12, 'more/b.webp', 70, 90), (13, 'cut.jpg', 80, 100), (14, 'none.png', 1, 1))],
        categories=[dict(id=3, name='disc'), dict(id=5, name='tree'), dict(id=7, name='box')],
        annotations=[dict(id=10 * image + category, image_id=image, category_id=category, bbox=[x, y, w, h], iscrowd=0,
                          area=w * h, segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]])
                     for image in (11, 12) for category, x, y, w, h in boxes])))
    assert main([str(model), str(images), '--out-dir', str(out), '--annotations', str(annotations)]) == 1
    said = capsys.readouterr()
    assert f'2 images: predictions in {out / "predictions.json"}, pictures in {out / "pictures"}' in said.out
    assert '2 images have no prediction' in said.err and re.search(r'cut\.jpg: the file is truncated \(\d+', said.err)
    assert 'none.png: the file has 0 bytes' in said.err
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob('*') if path.is_file()) == [
        'pictures/a.jpg', 'pictures/more/b.webp.png', 'predictions.json']
    truth = COCO(str(annotations))
    for kind in ('bbox', 'segm'):
        evaluation = COCOeval(truth, truth.loadRes(str(out / 'predictions.json')), kind)
        evaluation.params.imgIds = [11, 12]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1)


def test_the_command_without_annotations(tmp_path, monkeypatch):
    """Names as ids, the model's own category ids, patterns, no pictures."""
    write_images(tmp_path / 'images')
    model = write_whole_model(tmp_path / 'm.onnx', 'detection', boxes=BOXES, metadata=dict(category_ids=[30, 10, 20]))
    monkeypatch.chdir(tmp_path)
    assert main(['m.onnx', 'images/**/*.webp', 'images/a.jpg', '--out-dir', 'out', '--no-draw']) == 0
    entries = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
    assert [(entry['image_id'], entry['category_id']) for entry in entries] == [
        (name, category) for name in ('b.webp', 'a.jpg') for category in (10, 30, 20)]
    assert entries[0]['bbox'] == [10, 20, 40, 40] and 'segmentation' not in entries[0]
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['predictions.json'] and model.exists()


def test_the_command_writes_class_maps_and_classes(tmp_path):
    labels = np.array([[0, 1, 1], [2, 1, 1], [0, 200, 1]], np.uint8)
    Image.fromarray(np.stack([labels] * 3, 2)).save(tmp_path / 'a.png')
    model = write_whole_model(tmp_path / 's.onnx', 'segmentation')
    assert main([str(model), str(tmp_path / 'a.png'), '--out-dir', str(tmp_path / 's')]) == 0
    with Image.open(tmp_path / 's' / 'class_maps' / 'a.png.png') as image:
        assert image.mode == 'P'
        np.testing.assert_array_equal(np.asarray(image), labels)
    entries = json.loads((tmp_path / 's' / 'predictions.json').read_text())
    assert [entry['category_id'] for entry in entries] == [0, 1, 2]  # no class has label 200
    for entry in entries:
        np.testing.assert_array_equal(mask_tools.decode(entry['segmentation']), labels == entry['category_id'])

    model = write_whole_model(tmp_path / 'c.onnx', 'classification')
    assert main([str(model), str(tmp_path / 'a.png'), '--out-dir', str(tmp_path / 'c')]) == 0
    entry, = json.loads((tmp_path / 'c' / 'predictions.json').read_text())
    assert entry['labels'] == [0, 1, 2] and entry['classes'] == ['disc', 'box', 'tree']
    assert sum(entry['scores']) == pytest.approx(1) and (tmp_path / 'c' / 'pictures' / 'a.png').is_file()


def test_results_are_overwritten_on_request_only(tmp_path, capsys):
    images, model = write_images(tmp_path / 'images'), write_whole_model(tmp_path / 'm.onnx', 'classification')
    words = [str(model), str(images / 'a.jpg'), '--out-dir', str(tmp_path / 'out')]
    assert main(words) == 0
    (tmp_path / 'out' / 'pictures' / 'a.jpg').write_text('mine')
    assert main(words) == 2
    assert re.search(r'nothing was started: .*predictions\.json. is not written: it exists', capsys.readouterr().err)
    assert (tmp_path / 'out' / 'pictures' / 'a.jpg').read_text() == 'mine'
    assert main([*words, '--force']) == 0
    inside = str(tmp_path / 'out' / 'pictures' / 'a.jpg')
    before = (tmp_path / 'out' / 'pictures' / 'a.jpg').read_bytes()
    assert main([words[0], inside, *words[2:], '--force']) == 2
    assert 'it would overwrite the input' in capsys.readouterr().err
    assert (tmp_path / 'out' / 'pictures' / 'a.jpg').read_bytes() == before


@pytest.mark.parametrize('words, message', [
    (['none.onnx', 'images'], "model 'none.onnx' does not exist"), (['bad.onnx', 'images'], 'cannot load the model'),
    (['m.onnx', 'none'], "image, folder or pattern 'none' does not exist"),
    (['m.onnx', 'empty'], r"no image in folder 'empty': .*\.jpg"),
    (['m.onnx', 'images', 'images/more/../a.jpg'], "would both give 'a.jpg'"),
    (['m.onnx', 'images', '--out-dir', 'images/out'], 'lies in the folder of images'),
    (['m.onnx', 'images', '--threads', '0'], 'argument --threads: must be a number of at least 1, got 0'),
    (['m.onnx', 'images', '--providers', 'TPU'], r"providers must be of .*CPUExecutionProvider.*\['TPU'\]"),
    (['m.onnx', 'images', '--annotations', 'bad.onnx'], "'bad.onnx' is not a COCO annotation file"),
    (['m.onnx', 'images', '--annotations', 'some.json'], "has no image 'a.jpg', nor 3 others"),
    (['m.onnx'], 'arguments are required: images')])
def test_wrong_usage(tmp_path, monkeypatch, capsys, words, message):
    write_images(tmp_path / 'images')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'bad.onnx').write_text('no model')
    (tmp_path / 'some.json').write_text(json.dumps(dict(images=[], categories=[])))
    write_whole_model(tmp_path / 'm.onnx', 'classification')
    monkeypatch.chdir(tmp_path)
    try:
        status = main(['--out-dir', 'out', *words])
    except SystemExit as leaving:
        status = leaving.code
    assert status == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and said.startswith('python -m partialnet_mm.deploy: ') and said.count('\n') == 1
    assert not (tmp_path / 'out').exists()
