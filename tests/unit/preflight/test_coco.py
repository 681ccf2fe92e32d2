# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Each kind of damage to a small real data set is found, with its file and place."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from PIL import Image

from partialnet_mm.engine import PreflightHook
from partialnet_mm.preflight import check_coco, check_config, check_image_folder, errors_in, format_findings

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / '../shared/data/fruits_nuts'


@pytest.fixture
def data(tmp_path):
    """A copy of the real data that may be damaged."""
    if not REAL.is_dir():
        pytest.skip(f'{REAL} is not there')
    folder = tmp_path / 'fruits_nuts'
    (folder / 'images').mkdir(parents=True)
    shutil.copytree(REAL / 'annotations', folder / 'annotations')
    for image in (REAL / 'images').iterdir():
        (folder / 'images' / image.name).symlink_to(image.resolve())
    return folder


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


def drop(part, key):
    return lambda data: change(data, lambda content: content[part][0].pop(key))


def truncate(path, part):
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * part)])


def repeat(part, **values):
    def edit(content):
        content[part].append(dict(content[part][0], **values))
    return lambda data: change(data, edit)


def save_turned(data):
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
    image_size_wrong=(set_image(width=801), 'image size', 'the annotations say 801 x'),
    image_turned=(save_turned, 'image size', 'the annotations say'),
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
    return check_coco(str(annotations_of(data)), str(data / 'images'), classes_of(data))


def classes_of(data):
    return [category['name'] for category in json.loads((REAL / 'annotations' / JSON).read_text())['categories']]


def test_the_real_data_is_fine(data):
    assert check(data) == []


@pytest.mark.parametrize('name', list(DAMAGE))
def test_damage_is_found_with_its_file_and_place(data, name):
    damage, kind, where = DAMAGE[name]
    damage(data)
    findings = check(data)
    found = [finding for finding in findings if finding.kind == kind]
    assert found, format_findings(findings)
    assert any(where in str(finding) for finding in found), format_findings(findings)
    assert all(str(data) in finding.file for finding in findings)
    assert bool(errors_in(findings)) == (name not in NOTES), format_findings(findings)


def test_sampled_images_still_must_exist(data):
    paths = sorted((data / 'images').iterdir())
    paths[5].unlink()
    findings = check_coco(str(annotations_of(data)), str(data / 'images'), images=1)
    in_train = {image['file_name'] for image in json.loads(annotations_of(data).read_text())['images']}
    assert [finding.kind for finding in findings] == ['image missing'] * (paths[5].name in in_train)


def custom_config(data):
    config = Config.fromfile(ROOT / 'configs/mask_rcnn/partialnet_t0_custom.py')
    names = classes_of(data)
    for split in ('train', 'val', 'test'):
        dataset = config[f'{split}_dataloader'].dataset
        dataset = dataset.get('dataset', dataset)
        dataset.data_root = str(data)
        dataset.metainfo = dict(classes=names)
    for split in ('val', 'test'):
        config[f'{split}_evaluator'].ann_file = str(data / 'annotations' / 'instances_val.json')
    for head in ('bbox_head', 'mask_head'):
        config.model.roi_head[head].num_classes = len(names)
    return config


def test_a_config_is_checked_through_its_wrappers(data):
    config = custom_config(data)
    assert check_config(config) == []
    config.model.roi_head.mask_head.num_classes = 80
    config.val_evaluator.ann_file = str(annotations_of(data))
    kinds = [(finding.kind, finding.place) for finding in check_config(config)]
    assert kinds == [('number of classes', 'model mask_head')] * 2 + [('evaluator', 'val_evaluator')]


def test_the_hook_stops_a_training(data):
    class Logger:
        info = warning = staticmethod(lambda text: None)

    class Runner:
        cfg = custom_config(data)
        logger = Logger

    PreflightHook().before_run(Runner)
    first_image(data).write_bytes(b'')
    with pytest.raises(ValueError, match=r'1 errors in the data; no training was started(?s:.*)\.jpg: the file has 0'):
        PreflightHook().before_run(Runner)


@pytest.mark.parametrize('broken, status', [(False, 0), (True, 1)])
def test_the_command(data, broken, status):
    if broken:
        set_annotation(bbox=[700, 10, 300, 20])(data)
    run = subprocess.run([sys.executable, 'tools/misc/preflight.py', 'configs/mask_rcnn/partialnet_t0_custom.py',
                          '--images', 'all', '--cfg-options', f'data_root={data}'], cwd=ROOT, capture_output=True,
                         text=True)
    assert run.returncode == status, run.stderr
    assert ('box outside (1)' if broken else 'nothing wrong was found') in run.stdout


@pytest.mark.parametrize('arguments, text', [
    (['nowhere.py'], "config 'nowhere.py' does not exist"),
    (['configs/mask_rcnn/partialnet_s_1x.py', '--images', '-3'], '--images'),
])
def test_wrong_usage(arguments, text):
    run = subprocess.run([sys.executable, 'tools/misc/preflight.py', *arguments], cwd=ROOT, capture_output=True,
                         text=True)
    assert run.returncode == 2
    assert text in run.stderr and 'usage:' in run.stderr


def folder_of_classes(root):
    for name in ('blue', 'red'):
        (root / name).mkdir(parents=True)
        for i in range(3):
            Image.new('RGB', (8, 8), name).save(root / name / f'{i}.png')
    return root


def test_class_folders(tmp_path):
    root = folder_of_classes(tmp_path / 'train')
    assert check_image_folder(str(root), 2) == []
    assert [f.kind for f in check_image_folder(str(root), 1000)] == ['number of classes']
    (root / 'red' / '1.png').write_bytes(b'no image')
    (root / 'green').mkdir()
    findings = check_image_folder(str(root), 3)
    assert {(f.kind, f.file) for f in findings} == {
        ('class without images', str(root / 'green')), ('image broken', str(root / 'red' / '1.png'))}
    assert check_image_folder(str(tmp_path / 'no'), 3)[0].kind == 'image folder missing'
    (tmp_path / 'none').mkdir()
    assert check_image_folder(str(tmp_path / 'none'))[0].kind == 'no classes'


def test_a_pretraining_config(tmp_path):
    config = Config.fromfile(ROOT / 'configs/pretrain/partialnet_t0_in1k.py')
    for split in ('train', 'val'):
        folder_of_classes(tmp_path / split)
        config[f'{split}_dataloader'].dataset.data_root = str(tmp_path)
    config.test_dataloader = config.val_dataloader
    assert [f.kind for f in check_config(config)] == ['number of classes'] * 2
    config.model.head.num_classes = 2
    assert check_config(config) == []


def test_unknown_data_is_noted():
    config = Config(dict(model={}, train_dataloader=dict(dataset=dict(type='MyDataset', data_root='here'))))
    finding, = check_config(config)
    assert finding.note and 'MyDataset' in finding.text


def test_a_report_shortens_what_repeats(data):
    change(data, lambda content: [a.update(bbox=[0, 0, 5000, 5000]) for a in content['annotations']])
    report = format_findings(check(data))
    assert report.startswith('ERROR box outside (')
    assert report.count('leaves the image') == 5 and 'more' in report


@pytest.mark.parametrize('annotations, note', [(999, False), (1000, True)])
def test_one_box_outside_among_a_thousand_stops_nothing(tmp_path, annotations, note):
    """Large data sets have such noise, and mmdet trains with it."""
    Image.new('RGB', (40, 30)).save(tmp_path / 'a.png')
    boxes = [[1, 1, 5, 5]] * (annotations - 1) + [[35, 1, 15, 5]]
    (tmp_path / 'a.json').write_text(json.dumps(dict(
        images=[dict(id=1, file_name='a.png', width=40, height=30)], categories=[dict(id=1, name='thing')],
        annotations=[dict(id=i, image_id=1, category_id=1, bbox=box, area=25) for i, box in enumerate(boxes)])))
    finding, = check_coco(str(tmp_path / 'a.json'), str(tmp_path), masks=False)
    assert finding.kind == 'box outside' and f'annotation {annotations - 1} ' in finding.place
    assert finding.note is note
