# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Every kind of damage to a COCO data set is found, with its file and where in it."""
import json
import shutil

import pytest
from PIL import Image

from partialnet_mm.preflight import check_coco, errors_in, format_findings
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


IMAGE_A = 'annotations[0]'
JSON = 'instances_train.json'
# name: (damage, kind of the finding, where it must be named)
DAMAGE = dict(
    no_annotations=(lambda data: annotations_of(data).unlink(), 'annotations missing', JSON),
    empty_annotations=(lambda data: annotations_of(data).write_text(''), 'annotations empty', JSON),
    truncated_annotations=(lambda data: truncate(annotations_of(data), 0.5), 'annotations not JSON', 'line 1, column'),
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
    annotation_without_box=(drop('annotations', 'bbox'), 'annotation incomplete', IMAGE_A),
    annotation_id_twice=(repeat('annotations'), 'annotation id twice', 'annotation '),
    annotation_of_no_image=(set_annotation(image_id=12345), 'annotation without image', 'image 12345'),
    annotation_of_no_category=(set_annotation(category_id=99), 'annotation without category', 'category 99'),
    box_of_three=(set_annotation(bbox=[1, 2, 3]), 'box malformed', '[1, 2, 3]'),
    box_of_text=(set_annotation(bbox=['1', 2, 3, 4]), 'box malformed', "['1', 2, 3, 4]"),
    box_nan=(set_annotation(bbox=[1, 2, float('nan'), 4]), 'box malformed', 'nan'),
    box_negative=(set_annotation(bbox=[500, 400, -300, -200]), 'box negative', '-300'),
    box_without_pixels=(set_annotation(bbox=[10, 10, 0, 20]), 'box tiny', '[10, 10, 0, 20]'),
    box_outside=(set_annotation(bbox=[700, 10, 300, 20]), 'box outside', 'the image is 800 x 600'),
    area_zero=(set_annotation(area=0), 'area', 'it is 0'),
    area_text=(set_annotation(area='big'), 'area', "'big'"),
    iscrowd_two=(set_annotation(iscrowd=2), 'iscrowd', 'is 2'),
    mask_missing=(set_annotation(segmentation=[]), 'mask missing', 'annotation '),
    mask_of_two_points=(set_annotation(segmentation=[[1, 2, 3, 4]]), 'mask malformed', 'has 4 numbers'),
    mask_odd=(set_annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), 'mask malformed', 'has 7 numbers'),
    mask_outside=(set_annotation(segmentation=[[0, 0, 900, 0, 900, 900]]), 'mask outside', 'x 0..900'),
    mask_rle_size=(set_annotation(segmentation=dict(size=[800, 600], counts='abc')), 'mask size', '[800, 600]'),
    mask_rle_sum=(set_annotation(segmentation=dict(size=[600, 800], counts=[5, 5])), 'mask malformed', '600 x 800'),
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
NOTES = ('box_without_pixels', 'area_zero', 'one_image_empty', 'one_image_of_crowds')


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


@pytest.mark.parametrize('annotations, note', [(999, False), (1000, True)])
def test_one_box_outside_among_a_thousand_stops_nothing(tmp_path, annotations, note):
    """Large data sets have such noise, and mmdet can train with it."""
    Image.new('RGB', (40, 30)).save(tmp_path / 'a.png')
    boxes = [[1, 1, 5, 5]] * (annotations - 1) + [[35, 1, 15, 5]]
    (tmp_path / 'a.json').write_text(json.dumps(dict(
        images=[dict(id=1, file_name='a.png', width=40, height=30)], categories=[dict(id=1, name='thing')],
        annotations=[dict(id=i, image_id=1, category_id=1, bbox=box, area=25) for i, box in enumerate(boxes)])))
    finding, = check_coco(str(tmp_path / 'a.json'), str(tmp_path), masks=False)
    assert finding.kind == 'box outside' and f'annotation {annotations - 1} ' in finding.where
    assert finding.note is note
