# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Every kind of damage to a COCO data set is found, with its file and where in it."""
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coder

from partialnet_mm.preflight import check_coco, errors_in, format_findings, stop_on_errors
from partialnet_mm.preflight.coco_file import CocoFile, rle_total
from partialnet_mm.preflight.findings import LISTED
from tests.helpers.coco_data import NAMES, REAL, write_coco_data


@pytest.fixture(scope='module')
def intact(tmp_path_factory):
    return write_coco_data(tmp_path_factory.mktemp('intact'), dict(train=14))


@pytest.fixture
def data(intact, tmp_path):
    """A copy of the data that may be damaged."""
    (tmp_path / 'images').mkdir()
    shutil.copytree(intact / 'annotations', tmp_path / 'annotations')
    for image in (intact / 'images').iterdir():
        (tmp_path / 'images' / image.name).symlink_to(image)
    return tmp_path


def annotations_of(data):
    return data / 'annotations' / 'instances_train.json'


def change(data, edit):
    """Applies a change to the parsed annotations."""
    path = annotations_of(data)
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def first_image(data):
    """Path of the image that the first annotation is on, no longer a link."""
    content = json.loads(annotations_of(data).read_text())
    name = next(i['file_name'] for i in content['images'] if i['id'] == content['annotations'][0]['image_id'])
    path = data / 'images' / name
    real = path.resolve()
    path.unlink()
    shutil.copy(real, path)
    return path


def set_annotation(**values):
    return lambda data: change(data, lambda content: content['annotations'][0].update(values))


def set_image(**values):
    return lambda data: change(data, lambda content: content['images'][0].update(values))


def drop(entries, key):
    return lambda data: change(data, lambda content: content[entries][0].pop(key))


def truncate(path, fraction):
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * fraction)])


def repeat(key, **values):
    def edit(content):
        content[key].append(dict(content[key][0], **values))
    return lambda data: change(data, edit)


def save_rotated(data):
    path = first_image(data)
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, exif=exif)


JSON = 'instances_train.json'
# name: (damage, kind of the finding, where it must be named)
DAMAGE = dict(
    no_annotations=(lambda data: annotations_of(data).unlink(), 'annotations missing', JSON),
    empty_annotations=(lambda data: annotations_of(data).write_text(''), 'annotations empty', JSON),
    truncated_annotations=(lambda data: truncate(annotations_of(data), 0.5), 'annotations not JSON', 'annotations['),
    binary_annotations=(lambda data: annotations_of(data).write_bytes(b'\xff\xfe{}'), 'annotations not JSON', 'byte 0'),
    a_list=(lambda data: annotations_of(data).write_text('[]'), 'annotations not COCO', 'holds a list'),
    no_categories=(lambda data: change(data, lambda c: c.pop('categories')), 'annotations not COCO', 'categories'),
    image_is_text=(lambda data: change(data, lambda c: c['images'].insert(0, 'a.jpg')), 'annotations not COCO',
                   'images[0]'),
    no_images=(lambda data: change(data, lambda c: c['images'].clear()), 'no images', JSON),
    category_without_name=(drop('categories', 'name'), 'category incomplete', 'categories[0]'),
    category_id_twice=(repeat('categories', name='other'), 'category id twice', 'categories[3]'),
    category_name_twice=(repeat('categories', id=77), 'category name twice', "category '"),
    class_misspelt=(lambda data: change(data, lambda c: c['categories'][0].update(name='Dates')),
                    'class without category', "'Dates'"),
    image_without_width=(drop('images', 'width'), 'image incomplete', 'images[0]'),
    image_id_twice=(repeat('images', file_name='new.jpg'), 'image id twice', '(new.jpg)'),
    image_file_twice=(repeat('images', id=999), 'image file twice', 'image 999'),
    image_size_negative=(set_image(height=-600), 'image size impossible', 'height -600'),
    image_size_text=(set_image(width='800'), 'image size impossible', "width '800'"),
    image_size_wrong=(set_image(width=801), 'image size', 'but 801 x 600 in the annotations'),
    image_rotated=(save_rotated, 'image size', 'in the annotations'),
    annotation_without_box=(drop('annotations', 'bbox'), 'box malformed', 'it has no bbox'),
    annotation_id_twice=(repeat('annotations'), 'annotation id twice', 'annotation '),
    annotation_of_no_image=(set_annotation(image_id=12345), 'annotation without image', 'image 12345'),
    annotation_of_no_category=(set_annotation(category_id=99), 'annotation without category', 'category 99'),
    box_of_three=(set_annotation(bbox=[1, 2, 3]), 'box malformed', '[1, 2, 3]'),
    box_of_text=(set_annotation(bbox=['1', 2, 3, 4]), 'box malformed', "['1', 2, 3, 4]"),
    box_nan=(set_annotation(bbox=[1, 2, float('nan'), 4]), 'box malformed', 'nan'),
    box_negative=(set_annotation(bbox=[500, 400, -300, -200]), 'box negative', '-300'),
    box_without_pixels=(set_annotation(bbox=[10, 10, 0, 20]), 'box tiny', '[10, 10, 0, 20]'),
    box_outside=(set_annotation(bbox=[700, 10, 300, 20]), 'box outside', 'the image is 800 x 600'),
    area_zero=(set_annotation(area=0), 'area zero', 'its area is 0'),
    area_text=(set_annotation(area='big'), 'area', "'big'"),
    iscrowd_two=(set_annotation(iscrowd=2), 'iscrowd neither 0 nor 1', 'is 2'),
    mask_missing=(set_annotation(segmentation=[]), 'mask missing', 'annotation '),
    mask_of_two_points=(set_annotation(segmentation=[[1, 2, 3, 4]]), 'mask not measurable', 'has 4 numbers'),
    mask_odd=(set_annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), 'mask unusable', 'has 7 numbers'),
    mask_outside=(set_annotation(segmentation=[[0, 0, 900, 0, 900, 900]]), 'mask outside', 'x 0..900'),
    mask_rle_size=(set_annotation(segmentation=dict(size=[800, 600], counts=[480000])), 'mask size', '[800, 600]'),
    mask_rle_sum=(set_annotation(segmentation=dict(size=[600, 800], counts=[5, 5])), 'mask malformed', '[600, 800]'),
    nothing_but_crowds=(lambda data: change(data, lambda c: [a.update(iscrowd=1) for a in c['annotations']]),
                        'nothing to learn', JSON),
    one_image_empty=(lambda data: change(data, lambda c: c.update(
        annotations=[a for a in c['annotations'] if a['image_id'] != c['images'][0]['id']])),
        'images without objects', '1 of 14'),
    one_image_of_crowds=(lambda data: change(data, lambda c: [
        a.update(iscrowd=1) for a in c['annotations'] if a['image_id'] == c['images'][0]['id']]),
        'images with crowds only', '1 of 14'),
    no_image_folder=(lambda data: shutil.rmtree(data / 'images'), 'image folder missing', 'images'),
    image_missing=(lambda data: first_image(data).unlink(), 'image missing', '.jpg'),
    image_empty=(lambda data: first_image(data).write_bytes(b''), 'image empty', '.jpg'),
    image_truncated=(lambda data: truncate(first_image(data), 0.6), 'image broken', '.jpg'),
    image_is_html=(lambda data: first_image(data).write_text('<html>'), 'image broken', '.jpg'))
# What mmdet handles, and no more than half of the objects
NOTES = ('annotation_of_no_image', 'annotation_of_no_category', 'area_zero', 'box_negative', 'box_outside',
         'box_without_pixels', 'category_name_twice', 'image_file_twice', 'iscrowd_two', 'mask_odd', 'mask_outside',
         'one_image_empty', 'one_image_of_crowds')


def check(data):
    return check_coco(str(annotations_of(data)), str(data / 'images'), NAMES)


def test_intact_data(data):
    assert check(data) == []


@pytest.mark.skipif(not REAL.is_dir(), reason=f'{REAL} is missing')
def test_real_photographs():
    for split in ('train', 'val'):
        assert check_coco(str(REAL / f'annotations/instances_{split}.json'), str(REAL / 'images'), images=None) == []


@pytest.mark.parametrize('name', list(DAMAGE))
def test_damage_is_found_with_its_file_and_where(data, name):
    damage, kind, where = DAMAGE[name]
    damage(data)
    findings = check(data)
    found = [finding for finding in findings if finding.kind == kind]
    assert found, format_findings(findings)
    assert any(where in str(finding) for finding in found), format_findings(findings)
    assert all(str(data) in finding.file for finding in findings)
    assert bool(errors_in(findings)) == (name not in NOTES), format_findings(findings)


def test_images_that_are_not_decoded_must_exist(data):
    sorted((data / 'images').iterdir())[5].unlink()
    findings = check_coco(str(annotations_of(data)), str(data / 'images'), images=1)
    assert [finding.kind for finding in findings] == ['image missing']


def test_a_report_shortens_what_repeats(data):
    change(data, lambda content: [a.update(bbox=[0, 0, 5000, 5000]) for a in content['annotations']])
    report = format_findings(check(data))
    assert report.startswith('ERROR box outside (')
    assert report.count('leaves the image') == 5 and 'more' in report


def test_a_polygon_is_read_in_every_writing(data):
    """Masks of large files are not parsed, but looked at in the text."""
    plain = check(data)
    path = annotations_of(data)
    content = json.loads(path.read_text())
    for text in (json.dumps(content, indent=2), json.dumps(content, separators=(',', ':')),
                 json.dumps(dict(reversed(content.items())))):
        path.write_text(text)
        assert check(data) == plain == []


@pytest.mark.parametrize('parsed', [0, 20000])
def test_masks_beyond_those_that_are_parsed(data, parsed, monkeypatch):
    monkeypatch.setattr('partialnet_mm.preflight.coco_file.PARSED', parsed)
    path = annotations_of(data)
    change(data, lambda content: content['annotations'][5].update(
        segmentation=[content['annotations'][5]['segmentation'][0], [1, 2, 3, 4]]))
    assert check(data) == []
    change(data, lambda content: content['annotations'][5].update(segmentation=[[1, 2, 3, 4, 5]]))
    assert {finding.kind for finding in check(data)} == {'mask unusable'}
    path.write_text(path.read_text().replace('[1, 2, 3, 4, 5]', '[1, 2, 3, 4, , 5]'))
    assert [(finding.kind, finding.where) for finding in check(data)] == [
        ('annotations not JSON', 'annotations[5]')] * bool(parsed)  # the others have the right characters and number


def test_a_window_of_the_file_may_end_anywhere(data, monkeypatch):
    """Each read gives one byte, so that every object is cut at every position."""
    class OneByte(io.BytesIO):
        name = str(annotations_of(data))

        def read(self, size=-1):
            return super().read(1)

    change(data, lambda content: content.update(annotations=content['annotations'][:2], info='\u732b'))
    text = annotations_of(data).read_text()
    monkeypatch.setattr('builtins.open', lambda path, mode: OneByte(text.encode()))
    content = CocoFile(OneByte.name)
    monkeypatch.undo()
    expected = json.loads(text)
    assert content.ids == [a['id'] for a in expected['annotations']]
    assert content.boxes.tolist() == [a['bbox'] for a in expected['annotations']]
    assert [image[1] for image in content.images] == [image['file_name'] for image in expected['images']]
    assert content.extents.tolist() == [[x, y, x + w, y + h] for x, y, w, h in content.boxes.tolist()]


def test_the_pixels_of_a_compressed_mask_are_counted():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 90, (60, 2)):
        mask = np.zeros((height, width), np.uint8)
        mask[height // 3:height // 2 + 1, width // 3:] = 1
        for pixels in (mask, (rng.random((height, width)) < 0.3).astype(np.uint8)):
            counts = coder.encode(np.asfortranarray(pixels))['counts'].decode()
            assert rle_total(counts) == height * width
    for damaged in ('', 'abc', ' ', 'o' * 30):
        with pytest.raises(ValueError):
            rle_total(damaged)


@pytest.mark.parametrize('outside, note', [(7, True), (24, False)])
def test_some_boxes_outside_are_noise_and_most_are_a_mistake(data, outside, note):
    change(data, lambda content: [a.update(bbox=[750, 10, 300, 20]) for a in content['annotations'][:outside]])
    found = [finding for finding in check(data) if finding.kind == 'box outside']
    assert len(found) == outside and {finding.note for finding in found} == {note}


def test_findings_are_counted_beyond_those_that_are_listed(data):
    change(data, lambda content: content.update(annotations=[
        dict(content['annotations'][0], id=i, iscrowd='no') for i in range(1, 201)]))
    found = [finding for finding in check(data) if finding.kind == 'iscrowd']
    assert len(found) == LISTED + 1 and found[-1].count == 150
    assert 'ERROR iscrowd (200)' in format_findings(found) and 'and 195 more' in format_findings(found)
    with pytest.raises(ValueError, match='200 errors in the data'):
        stop_on_errors(found)
