# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The same objects are read from every format, and what is left out has a reason."""
import base64
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from partialnet_mm.datasets import read_annotated_pictures

WIDTH, HEIGHT = 80, 60
CAT, DOG = (10., 12., 40., 32.), (30., 20., 70., 50.)
DOG_OUTLINE = [30., 20., 70., 20., 70., 50., 50., 50.]


def picture(path: Path, **save) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (WIDTH, HEIGHT), (90, 120, 60)).save(path, **save)
    return path


def as_xml(root: str, content: str) -> str:
    return f'<?xml version="1.0"?><{root}>{content}</{root}>'


def voc_xml(name='a.jpg', objects=(('cat', CAT, 0), ('dog', DOG, 1)), size=(WIDTH, HEIGHT)) -> str:
    content = ''.join(
        f'<object><name>{label}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>'
        f'<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>' for label, (x1, y1, x2, y2), difficult in objects)
    return as_xml('annotation', f'<filename>{name}</filename><size><width>{size[0]}</width><height>{size[1]}</height>'
                  f'<depth>3</depth></size>{content}')


def write_voc(root: Path) -> Path:
    picture(root / 'JPEGImages/a.jpg')
    (root / 'Annotations').mkdir()
    (root / 'Annotations/a.xml').write_text(voc_xml())
    return root


def write_yolo(root: Path) -> Path:
    picture(root / 'train/images/a.jpg')
    (root / 'train/labels').mkdir()
    x1, y1, x2, y2 = CAT
    outline = ' '.join(str(value / (HEIGHT if index % 2 else WIDTH)) for index, value in enumerate(DOG_OUTLINE))
    (root / 'train/labels/a.txt').write_text(
        f'0 {(x1 + x2) / 2 / WIDTH} {(y1 + y2) / 2 / HEIGHT} {(x2 - x1) / WIDTH} {(y2 - y1) / HEIGHT}\n\n1 {outline}\n')
    (root / 'data.yaml').write_text('names: [cat, dog]\n')
    return root


def write_labelme(root: Path) -> Path:
    picture(root / 'a.jpg')
    points = [DOG_OUTLINE[index:index + 2] for index in range(0, 8, 2)]
    (root / 'a.json').write_text(json.dumps(dict(
        imagePath='..\\pictures\\a.jpg', imageWidth=WIDTH, imageHeight=HEIGHT, imageData=None, shapes=[
            dict(label='cat', shape_type='rectangle', points=[CAT[2:], CAT[:2]], group_id=None),
            dict(label='dog', shape_type='polygon', points=points, group_id=3),
            dict(label='tail', shape_type='line', points=[[1, 1], [5, 5]], group_id=None)])))
    return root


def write_cvat(root: Path) -> Path:
    picture(root / 'images/a.jpg')
    points = ';'.join(f'{x},{y}' for x, y in zip(DOG_OUTLINE[::2], DOG_OUTLINE[1::2]))
    (root / 'annotations.xml').write_text(as_xml('annotations', (
        '<meta><task><labels><label><name>cat</name></label><label><name>dog</name></label></labels></task></meta>'
        f'<image id="0" name="a.jpg" width="{WIDTH}" height="{HEIGHT}">'
        f'<box label="cat" xtl="{CAT[0]}" ytl="{CAT[1]}" xbr="{CAT[2]}" ybr="{CAT[3]}"/>'
        f'<polygon label="dog" points="{points}"/><points label="dog" points="1,1"/></image>')))
    return root


def write_coco(root: Path) -> Path:
    picture(root / 'train/a.jpg')
    x1, y1, x2, y2 = CAT
    (root / 'train/_annotations.coco.json').write_text(json.dumps(dict(
        images=[dict(id=7, file_name='a.jpg', width=WIDTH, height=HEIGHT)],
        categories=[dict(id=0, name='cat'), dict(id=5, name='dog')], annotations=[
            dict(id=0, image_id=7, category_id=0, bbox=[x1, y1, x2 - x1, y2 - y1]),
            dict(id=0, image_id=7, category_id=5, segmentation=[DOG_OUTLINE]),
            dict(id=1, image_id=9, category_id=5, bbox=[1, 1, 5, 5])])))
    return root


def write_via(root: Path) -> Path:
    picture(root / 'a.jpg')
    shapes = [
        ('cat', dict(name='rect', x=CAT[0], y=CAT[1], width=CAT[2] - CAT[0], height=CAT[3] - CAT[1])),
        ({'cat': False, 'dog': True}, dict(name='polygon', all_points_x=DOG_OUTLINE[::2],
                                           all_points_y=DOG_OUTLINE[1::2])),
        ('dog', dict(name='point', cx=3, cy=3))]
    (root / 'via.json').write_text(json.dumps(dict(_via_img_metadata={'a.jpg1234': dict(
        filename='a.jpg', size=1234, regions=[dict(region_attributes={'animal': label}, shape_attributes=shape)
                                              for label, shape in shapes])})))
    return root


@pytest.fixture(params=dict(voc=write_voc, yolo=write_yolo, labelme=write_labelme, cvat=write_cvat, coco=write_coco,
                            via=write_via).items(), ids=lambda item: item[0])
def source(request, tmp_path):
    kind, write = request.param
    return kind, write(tmp_path)


def test_every_format_gives_the_same_objects(source):
    kind, root = source
    before = {path: path.read_bytes() for path in root.rglob('*') if path.is_file()}
    read = read_annotated_pictures(root, kind)
    (found, ) = read.pictures
    assert (found.path.name, found.width, found.height) == ('a.jpg', WIDTH, HEIGHT)
    assert found.split == ('train' if kind in ('yolo', 'coco') else None)
    assert read.classes == ['cat', 'dog']
    cat, dog = found.shapes
    assert (cat.label, dog.label) == ('cat', 'dog')
    assert cat.box == pytest.approx(CAT) and dog.box == pytest.approx(DOG)
    assert cat.outline is None
    if kind == 'voc':
        assert (cat.left_out, dog.left_out, dog.outline) == (False, True, None)
    else:
        assert np.allclose(dog.outline, [DOG_OUTLINE])
    reasons = [why for _, why in read.dropped]
    assert reasons == dict(labelme=['a line has no area'], cvat=['a points has no area'], via=['a point has no area'],
                           coco=['its image is not in the file']).get(kind, [])
    assert before == {path: path.read_bytes() for path in root.rglob('*') if path.is_file()}


@pytest.mark.parametrize('change, why', [
    (lambda root: (root / 'JPEGImages/a.jpg').unlink(), 'its image is missing'),
    (lambda root: (root / 'JPEGImages/a.jpg').write_bytes(b'no image'), 'the image cannot be read'),
    (lambda root: (root / 'Annotations/a.xml').write_text(voc_xml(size=(60, 80))),
     'annotated at 60 x 80 pixels, but the image has 80 x 60'),
    (lambda root: (root / 'Annotations/a.xml').write_text('<annotation>'), 'cannot be read as XML'),
    (lambda root: (root / 'Annotations/a.xml').write_text(as_xml('html', '')), 'its root is <html>'),
    (lambda root: (root / 'Annotations/b.xml').write_text(voc_xml()), 'the image has annotations already'),
    (lambda root: [picture(root / f'more{n}/c.jpg') for n in (1, 2)]
     + [(root / 'Annotations/c.xml').write_text(voc_xml('c.jpg'))], 'several images have its name'),
    (lambda root: (root / 'Annotations/a.xml').write_text(voc_xml(objects=[('cat', (90, 1, 95, 9), 0)])),
     'outside the image, or smaller than a pixel'),
    (lambda root: (root / 'Annotations/a.xml').write_text(voc_xml(objects=[('cat', CAT, 0)] * 2)),
     'the object is there twice'),
    (lambda root: (root / 'Annotations/a.xml').write_text(voc_xml(objects=[('cat', ('a', 1, 2, 3), 0)])),
     'no box with four numbers'),
], ids=range(10))
def test_what_is_left_out_has_a_reason(tmp_path, change, why):
    write_voc(tmp_path)
    change(tmp_path)
    (dropped, ) = read_annotated_pictures(tmp_path, 'voc').dropped
    assert why in dropped.why


def test_sizes_that_are_not_stated_and_turned_images(tmp_path):
    write_voc(tmp_path)
    (tmp_path / 'Annotations/a.xml').write_text(voc_xml(size=(0, 0), objects=[('cat', (-5, -5, 40, 999), 0)]))
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(tmp_path / 'JPEGImages/a.jpg', exif=turned)
    (found, ) = read_annotated_pictures(tmp_path, 'voc').pictures
    height, width = cv2.imread(str(found.path)).shape[:2]
    assert (found.width, found.height) == (width, height) == (HEIGHT, WIDTH)
    assert found.shapes[0].box == (0, 0, 40, WIDTH)


@pytest.mark.parametrize('line, why', [
    ('0 0.5 0.5 0.1', 'not a class and four or more numbers'), ('0 a 0.5 0.1 0.1', 'not a class and four'),
    ('9 0.5 0.5 0.1 0.1', 'class 9 has no name'), ('0 40 30 10 10', 'not relative to the size'),
    ('0 .1 .1 .2 .2 .3 .3 .4', 'odd number of coordinates')])
def test_lines_of_yolo(tmp_path, line, why):
    write_yolo(tmp_path)
    label = tmp_path / 'train/labels/a.txt'
    label.write_text(f'{label.read_text()}{line}\n')
    read = read_annotated_pictures(tmp_path, 'yolo')
    assert len(read.pictures[0].shapes) == 2
    (dropped, ) = read.dropped
    assert dropped.where.endswith('a.txt:4') and why in dropped.why


def test_masks_circles_and_groups_of_labelme(tmp_path):
    write_labelme(tmp_path)
    mask = np.zeros((10, 20), np.uint8)
    mask[2:8, 4:16] = 255
    coded = base64.b64encode(cv2.imencode('.png', mask)[1].tobytes()).decode()
    halves = [[[50, 5], [60, 5], [60, 15]], [[65, 5], [75, 5], [75, 15]]]
    (tmp_path / 'a.json').write_text(json.dumps(dict(imagePath='a.jpg', imageWidth=WIDTH, imageHeight=HEIGHT, shapes=[
        dict(label='mask', shape_type='mask', points=[[10, 20], [29, 29]], mask=coded),
        dict(label='disc', shape_type='circle', points=[[40, 30], [50, 30]]),
        *(dict(label='two', shape_type='polygon', points=points, group_id=1) for points in halves)])))
    (found, ) = read_annotated_pictures(tmp_path, 'labelme').pictures
    boxes = {shape.label: shape.box for shape in found.shapes}
    assert boxes == dict(mask=(14, 22, 25, 27), disc=pytest.approx((30, 20, 50, 40), abs=0.2), two=(50, 5, 75, 15))
    assert [len(shape.outline) for shape in found.shapes] == [1, 1, 2]


def test_masks_ellipses_and_turned_boxes_of_cvat(tmp_path):
    write_cvat(tmp_path)
    (tmp_path / 'annotations.xml').write_text(as_xml('annotations', (
        f'<image name="a.jpg" width="{WIDTH}" height="{HEIGHT}">'
        '<mask label="mask" rle="1,3,2,3,1" left="5" top="6" width="5" height="2"/>'
        '<ellipse label="disc" cx="40" cy="30" rx="10" ry="5"/>'
        '<box label="turned" xtl="20" ytl="20" xbr="40" ybr="30" rotation="90"/></image><track/>')))
    read = read_annotated_pictures(tmp_path, 'cvat')
    boxes = {shape.label: shape.box for shape in read.pictures[0].shapes}
    # rows 01110 and 01110, wherever a run ends
    assert boxes == dict(mask=(6, 6, 8, 7), disc=pytest.approx((30, 25, 50, 35), abs=0.2),
                         turned=pytest.approx((25, 15, 35, 35)))
    assert 'tracks of a video' in read.dropped[0].why


def test_the_attribute_of_via(tmp_path):
    write_via(tmp_path)
    path = tmp_path / 'via.json'
    path.write_text(path.read_text().replace('{"animal": "cat"}', '{"animal": "cat", "colour": "red"}'))
    with pytest.raises(ValueError, match=r"attributes \['animal', 'colour'\]: say which"):
        read_annotated_pictures(tmp_path, 'via')
    assert read_annotated_pictures(tmp_path, 'via', 'animal').classes == ['cat', 'dog']
    with pytest.raises(ValueError, match="no region .* has the attribute 'size'"):
        read_annotated_pictures(tmp_path, 'via', 'size')


@pytest.mark.parametrize('kind, error, message', [
    ('png', ValueError, 'must be one of voc, yolo, labelme, cvat, coco, via'),
    ('voc', ValueError, "has no annotations of the format 'voc': one XML file per image"),
    ('yolo', ValueError, 'does not name its classes')])
def test_wrong_sources(tmp_path, kind, error, message):
    picture(tmp_path / 'a.jpg')
    with pytest.raises(error, match=message):
        read_annotated_pictures(tmp_path, kind)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        read_annotated_pictures(tmp_path / 'nowhere', kind)
