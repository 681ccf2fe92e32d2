# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Inference: the libraries' own interfaces on a config's path, tools/infer.py, and merging on the fly."""
import json
import pickle
import re
import shutil
import warnings

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image

from partialnet_mm.models import MergedBlock, PartialNet
from tests.helpers.tiny_models import CLASSES, LIBRARIES, write_model
from tests.helpers.tool_scripts import run_main

TOOL = 'tools/infer.py'


@pytest.fixture
def merges(monkeypatch):
    """How often a backbone has been merged."""
    calls = []
    merge = PartialNet.switch_to_deploy
    monkeypatch.setattr(PartialNet, 'switch_to_deploy', lambda backbone: (calls.append(backbone), merge(backbone)))
    return calls


@pytest.fixture
def images(tmp_path):
    """A folder with three images, one of them in a folder of its own."""
    rng = np.random.default_rng(0)
    (tmp_path / 'images' / 'more').mkdir(parents=True)
    for i, name in enumerate(('a.jpg', 'b.png', 'more/c.bmp')):
        small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / 'images' / name), cv2.resize(small, (96 + 16 * i, 64)))
    return tmp_path / 'images'


def predictions(out_dir):
    return {str(p.relative_to(out_dir / 'predictions')): json.loads(p.read_text())
            for p in sorted((out_dir / 'predictions').rglob('*.json'))}


@pytest.mark.parametrize('kind', LIBRARIES)
def test_a_folder(kind, monkeypatch, capsys, tmp_path, images, tiny_arch, randomize_norms, merges):
    config, checkpoint = write_model(kind, tmp_path, tiny_arch, randomize_norms)
    options = ('--device', 'cpu', '--batch-size', 2, '--score-thr', 0)
    assert run_main(monkeypatch, TOOL, config, checkpoint, images, '--out-dir', tmp_path / 'out', *options) == 0
    said = capsys.readouterr().out
    assert '3/3' in said and '3 images: pictures in' in said and not merges
    pictures = {str(p.relative_to(tmp_path / 'out' / 'pictures')): cv2.imread(str(p)).shape
                for p in (tmp_path / 'out' / 'pictures').rglob('*') if p.is_file()}
    assert pictures == {'a.jpg': (64, 96, 3), 'b.png': (64, 112, 3), 'more/c.bmp.png': (64, 128, 3)}
    found = predictions(tmp_path / 'out')
    assert list(found) == ['a.jpg.json', 'b.png.json', 'more/c.bmp.json']
    for name, prediction in found.items():
        if kind == 'classifier':
            label = int(np.argmax(prediction['pred_scores']))
            assert prediction['pred_class'] == CLASSES[kind][label] and len(prediction['pred_scores']) == 3
        elif kind == 'detector':
            assert prediction['classes'] == [CLASSES[kind][label] for label in prediction['labels']]
            assert len(prediction['scores']) == len(prediction['bboxes']) == len(prediction['masks']) > 0
        else:
            labels = cv2.imread(str(tmp_path / 'out' / 'predictions' / name.replace('.json', '.png')), 0)
            assert labels.shape == pictures[name[:-5] + '.png' * name.endswith('bmp.json')][:2]
            assert prediction['parts'] == {CLASSES[kind][i]: pytest.approx((labels == i).mean())
                                           for i in np.unique(labels)}

    # Merged on the fly: the same predictions.
    options += ('--deploy', )
    assert run_main(monkeypatch, TOOL, config, checkpoint, images, '--out-dir', tmp_path / 'merged', *options) == 0
    assert len(merges) == 1
    merged = predictions(tmp_path / 'merged')
    assert list(merged) == list(found)
    for name, prediction in merged.items():
        assert set(prediction) == set(found[name])
        for key in {'pred_scores', 'scores', 'bboxes'} & set(prediction):
            np.testing.assert_allclose(prediction[key], found[name][key], rtol=1e-4, atol=1e-4)
        for key in {'pred_class', 'labels', 'classes'} & set(prediction):
            assert prediction[key] == found[name][key]
        if kind == 'segmentor':
            assert prediction['parts'] == pytest.approx(found[name]['parts'], abs=1e-3)


@pytest.mark.parametrize('kind', LIBRARIES)
def test_a_merged_checkpoint(kind, monkeypatch, tmp_path, images, tiny_arch, randomize_norms):
    """By the config with deploy=True; a detector's also by the config inside of it."""
    config, checkpoint = write_model(kind, tmp_path, tiny_arch, randomize_norms)
    merged = tmp_path / 'merged.pth'
    assert run_main(monkeypatch, 'tools/model_converters/reparameterize_model.py', config, checkpoint, merged) == 0
    one = images / 'a.jpg'
    for weights, name, options in ((checkpoint, 'plain', ()),
                                   (merged, 'merged', ('--cfg-options', 'model.backbone.deploy=True'))):
        assert run_main(monkeypatch, TOOL, config, weights, one, '--out-dir', tmp_path / name, '--device', 'cpu',
                        *options) == 0
    plain, found = (predictions(tmp_path / name)['a.jpg.json'] for name in ('plain', 'merged'))
    key = dict(classifier='pred_scores', detector='scores', segmentor='parts')[kind]
    assert found[key] == pytest.approx(plain[key], abs=1e-3 if kind == 'segmentor' else 1e-4)
    if kind == 'detector':
        from mmdet.apis import DetInferencer
        with DefaultScope.overwrite_default_scope('mmdet'):
            inferencer = DetInferencer(weights=str(merged), device='cpu', show_progress=False)
            assert isinstance(inferencer.model.backbone.stages[0][0], MergedBlock)
            outputs = inferencer(str(one))['predictions'][0]
        assert outputs['scores'] == pytest.approx(plain['scores'], abs=1e-4)


def test_detectors_own_interfaces(tmp_path, images, tiny_arch, randomize_norms):
    config, checkpoint = write_model('detector', tmp_path, tiny_arch, randomize_norms)
    from mmdet.apis import DetInferencer, inference_detector, init_detector
    path = str(images / 'a.jpg')
    with DefaultScope.overwrite_default_scope('mmdet'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        outputs = DetInferencer(str(config), str(checkpoint), 'cpu', show_progress=False)(
            [path], out_dir=str(tmp_path / 'out'), no_save_pred=False)
        model = init_detector(str(config), str(checkpoint), device='cpu')
        sample = inference_detector(model, path)
    assert model.dataset_meta['classes'] == CLASSES['detector']
    assert (tmp_path / 'out' / 'vis' / 'a.jpg').is_file() and (tmp_path / 'out' / 'preds' / 'a.json').is_file()
    assert len(sample.pred_instances) == 10
    np.testing.assert_allclose(outputs['predictions'][0]['scores'], sample.pred_instances.scores, rtol=1e-6)
    np.testing.assert_allclose(outputs['predictions'][0]['bboxes'], sample.pred_instances.bboxes, rtol=1e-6)


def test_segmentors_own_interfaces(tmp_path, images, tiny_arch, randomize_norms):
    config, checkpoint = write_model('segmentor', tmp_path, tiny_arch, randomize_norms)
    from mmseg.apis import MMSegInferencer, inference_model, init_model
    path = str(images / 'a.jpg')
    with DefaultScope.overwrite_default_scope('mmseg'):
        labels = MMSegInferencer(str(config), str(checkpoint), device='cpu')(path)['predictions']
        sample = inference_model(init_model(str(config), str(checkpoint), device='cpu'), path)
    assert labels.shape == (64, 96)
    np.testing.assert_array_equal(labels, sample.pred_sem_seg.data[0])


def test_classifiers_own_interfaces(tmp_path, images, tiny_arch, randomize_norms):
    config, checkpoint = write_model('classifier', tmp_path, tiny_arch, randomize_norms)
    from mmpretrain.apis import ImageClassificationInferencer, get_model
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        found = ImageClassificationInferencer(str(config), str(checkpoint))(str(images / 'a.jpg'))[0]
        model = get_model(str(config), str(checkpoint))
    assert found['pred_class'] in CLASSES['classifier'] and found['pred_scores'].sum() == pytest.approx(1)
    assert torch.equal(model.state_dict()['backbone.downsample_layers.0.conv.weight'],
                       torch.load(checkpoint)['state_dict']['backbone.downsample_layers.0.conv.weight'])


@pytest.fixture
def classifier(tmp_path, tiny_arch, randomize_norms):
    return write_model('classifier', tmp_path, tiny_arch, randomize_norms)


def test_an_image_that_cannot_be_read_stops_nothing(classifier, monkeypatch, capsys, tmp_path, images):
    (images / 'aa.jpg').write_bytes((images / 'a.jpg').read_bytes()[:-200])
    (images / 'z.png').write_bytes(b'')
    assert run_main(monkeypatch, TOOL, *classifier, images, '--out-dir', tmp_path / 'out', '--device', 'cpu') == 1
    said = capsys.readouterr()
    assert '3 images: pictures' in said.out and '2 images have no prediction' in said.err
    assert re.search(r'aa\.jpg: the file is truncated \(\d+ bytes\)', said.err)
    assert 'z.png: the file has 0 bytes' in said.err and len(predictions(tmp_path / 'out')) == 3


def test_images_of_every_kind(monkeypatch, capsys, tmp_path, tiny_arch, randomize_norms):
    """Small ones are padded; those that break their batch are named, the others of the batch are predicted."""
    config, checkpoint = write_model('segmentor', tmp_path, tiny_arch, randomize_norms)
    config.write_text(config.read_text().replace("    dict(type='Resize', scale=(64, 64)),\n", '')
                      .replace(', size_divisor=32', ''))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)  # Pillow's limit against bombs is none of ours
    rng = np.random.default_rng(0)
    sizes = {'a.tiff': (7, 5), 'b.jp2': (64, 40), 'c.webp': (20, 70), 'd.pgm': (33, 32), 'e.bmp': (2, 1)}
    (tmp_path / 'kinds').mkdir()
    for name, (width, height) in sizes.items():
        shape = (height, width) if name == 'd.pgm' else (height, width, 3)
        assert cv2.imwrite(str(tmp_path / 'kinds' / name), rng.integers(0, 256, shape, dtype=np.uint8))
    (tmp_path / 'kinds' / 'f.exr').write_text('no image')
    assert run_main(monkeypatch, TOOL, config, checkpoint, tmp_path / 'kinds', '--out-dir', tmp_path / 'out',
                    '--device', 'cpu', '--batch-size', 3) == 1
    said = capsys.readouterr()
    assert '5 images: pictures' in said.out and '1 images have no prediction' in said.err and 'f.exr: ' in said.err
    assert list(predictions(tmp_path / 'out')) == [f'{name}.json' for name in sizes]
    for name, (width, height) in sizes.items():
        assert cv2.imread(str(tmp_path / 'out' / 'predictions' / f'{name}.png'), 0).shape == (height, width)
        assert cv2.imread(str(tmp_path / 'out' / 'pictures' / f'{name}.png')).shape == (height, width, 3)


def test_padding_is_the_detectors_own(monkeypatch, tmp_path, images, tiny_arch, randomize_norms):
    """A small image gives the same boxes whether mmdet's data_preprocessor pads it or the tool."""
    config, checkpoint = write_model('detector', tmp_path, tiny_arch, randomize_norms)
    cv2.imwrite(str(tmp_path / 'small.png'), cv2.imread(str(images / 'a.jpg'))[:21, :27])
    found = []
    for divisor in (32, 1):
        options = [f'model.data_preprocessor.pad_size_divisor={divisor}', 'test_pipeline=None',
                   'test_dataloader.dataset.pipeline.1.scale=(27,21)']
        assert run_main(monkeypatch, TOOL, config, checkpoint, tmp_path / 'small.png', '--out-dir',
                        tmp_path / str(divisor), '--device', 'cpu', '--cfg-options', *options) == 0
        found += predictions(tmp_path / str(divisor)).values()
    assert found[0]['scores'] == pytest.approx(found[1]['scores'], rel=1e-5) and found[0]['scores']
    np.testing.assert_allclose(found[0]['bboxes'], found[1]['bboxes'], atol=1e-3)


def test_the_loader_of_the_config_reads(classifier, monkeypatch, tmp_path):
    """A loader of the user's own, in a type that no library's inferencer knows, and files with an ending of its own."""
    config, checkpoint = classifier
    (tmp_path / 'my_loader.py').write_text(
        'import numpy as np\nfrom mmcv.transforms import BaseTransform\nfrom mmengine.registry import TRANSFORMS\n\n\n'
        '@TRANSFORMS.register_module(force=True)\nclass LoadNumpy(BaseTransform):\n    def transform(self, results):\n'
        "        image = np.load(results['img_path'])\n"
        '        return dict(results, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])\n')
    monkeypatch.syspath_prepend(tmp_path)
    config.write_text(config.read_text() + 'test_dataloader = dict(dataset=dict(pipeline=[\n'
                      "    dict(type='LoadNumpy'), dict(type='Resize', scale=64), dict(type='PackInputs')]))\n"
                      "custom_imports = dict(imports=['partialnet_mm', 'my_loader'], allow_failed_imports=False)\n")
    np.save(tmp_path / 'a.npy', np.random.default_rng(0).normal(size=(50, 70, 3)).astype(np.float32))
    assert run_main(monkeypatch, TOOL, config, checkpoint, tmp_path / 'a.npy', '--out-dir', tmp_path / 'out',
                    '--device', 'cpu') == 0
    assert cv2.imread(str(tmp_path / 'out' / 'pictures' / 'a.npy.png')).shape == (50, 70, 3)
    assert sum(predictions(tmp_path / 'out')['a.npy.json']['pred_scores']) == pytest.approx(1)


@pytest.mark.parametrize('changes, message', [
    (dict(images=['missing']), "image or folder 'missing' does not exist"),
    (dict(images=['{tmp}/empty']), r"no image in folder '.*empty'.*\.jpg"),
    (dict(images=['{tmp}/images', '{tmp}/images/more/../a.jpg']), "would both give 'a.jpg'"),
    (dict(images=['{tmp}/twins']), r"two images would both give .*c\.bmp\.png'"),
    (dict(out='{tmp}/images/out'), 'lies in the folder of images'),
    (dict(config='missing.py'), "config 'missing.py' does not exist"),
    (dict(checkpoint='missing.pth'), "checkpoint 'missing.pth' does not exist"),
    (dict(checkpoint='{tmp}/classifier.py'), 'cannot be read'),
    (dict(checkpoint='https://example.com/a.pth'), 'is an address: download it'),
    (dict(options=['--batch-size', '0']), 'argument --batch-size: must be a number of at least 1, got 0'),
    (dict(options=['--cfg-options', 'default_scope=mmpose']), "default_scope of .* is 'mmpose'; allowed are"),
    (dict(options=['--cfg-options', 'model.head.num_classes=7']),
     'belongs to another network or other classes: .*head.layers.1.fc.weight'),
    (dict(options=['--cfg-options', 'model.backbone.deploy=True']), 'belongs to another network'),
])
def test_wrong_usage(changes, message, classifier, monkeypatch, capsys, tmp_path, images):
    for folder in ('empty', 'twins'):
        (tmp_path / folder).mkdir()
    for name in ('c.bmp', 'c.bmp.png'):
        shutil.copy(images / 'b.png', tmp_path / 'twins' / name)
    given = dict(config=classifier[0], checkpoint=classifier[1], images=['{tmp}/images'], out='{tmp}/out', options=[])
    given.update(changes)
    words = [given['config'], given['checkpoint'], *given['images'], '--out-dir', given['out'], '--device', 'cpu',
             *given['options']]
    assert run_main(monkeypatch, TOOL, *[str(word).format(tmp=tmp_path) for word in words]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / 'out').exists()


def test_results_are_overwritten_on_request_only(classifier, monkeypatch, capsys, tmp_path, images):
    words = [*classifier, images, '--out-dir', tmp_path / 'out', '--device', 'cpu']
    assert run_main(monkeypatch, TOOL, *words) == 0
    result = tmp_path / 'out' / 'predictions' / 'b.png.json'
    result.write_text('mine')
    # Other images may join the results of the first run.
    shutil.copy(images / 'a.jpg', tmp_path / 'new.jpg')
    assert run_main(monkeypatch, TOOL, *classifier, tmp_path / 'new.jpg', *words[3:]) == 0
    assert len(list((tmp_path / 'out' / 'pictures').glob('*.*'))) == 3 and result.read_text() == 'mine'
    assert run_main(monkeypatch, TOOL, *words) == 2
    assert re.search(r'nothing was started: .*pictures/a\.jpg. is not written: it exists', capsys.readouterr().err)
    assert result.read_text() == 'mine'
    assert run_main(monkeypatch, TOOL, *words, '--force') == 0
    assert 'pred_score' in json.loads(result.read_text())


@pytest.mark.parametrize('link', [False, True], ids=['same file', 'link'])
def test_an_input_is_never_overwritten(link, classifier, monkeypatch, capsys, tmp_path, images):
    (tmp_path / 'out' / 'pictures').mkdir(parents=True)
    inside = tmp_path / 'out' / 'pictures' / 'a.jpg'
    if link:
        inside.symlink_to(images / 'a.jpg')
    else:
        shutil.copy(images / 'a.jpg', inside)
    before = inside.read_bytes()
    given = images / 'a.jpg' if link else inside
    assert run_main(monkeypatch, TOOL, *classifier, given, '--out-dir', tmp_path / 'out', '--device', 'cpu',
                    '--force') == 2
    assert 'it would overwrite the input' in capsys.readouterr().err
    assert inside.read_bytes() == before == (images / 'a.jpg').read_bytes()
    assert not (tmp_path / 'out' / 'predictions').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_gpu_that_is_not_there(classifier, monkeypatch, capsys, tmp_path, images):
    assert run_main(monkeypatch, TOOL, *classifier, images, '--out-dir', tmp_path / 'out', '--device', 'cuda:0') == 2
    assert "--device: 'cuda:0' is not on this machine: torch sees no GPU" in capsys.readouterr().err


def test_a_checkpoint_with_code_is_refused(classifier, monkeypatch, capsys, tmp_path, images):
    class Code:
        def __reduce__(self):
            return (tmp_path.joinpath('ran').mkdir, ())

    torch.save(dict(torch.load(classifier[1]), more=Code()), classifier[1])
    assert run_main(monkeypatch, TOOL, *classifier, images, '--out-dir', tmp_path / 'out', '--device', 'cpu') == 2
    assert '--trust-checkpoint' in capsys.readouterr().err
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('averaged', [False, True], ids=['', 'EMA'])
def test_tests_of_the_merged_form(averaged, classifier, monkeypatch, capsys, tmp_path, images, merges):
    """tools/test.py --deploy: the same scores, also where the config has EMAHook, which holds a copy of the model."""
    for name in CLASSES['classifier']:
        shutil.copytree(images, tmp_path / 'data' / 'val' / name)
    config, checkpoint = classifier
    if averaged:
        config.write_text(config.read_text() + "\ncustom_hooks = [dict(type='EMAHook')]\n")
    options = [f'test_dataloader.{option}' for option in (
        'batch_size=2', 'num_workers=0', 'persistent_workers=False', f'dataset.data_root={tmp_path}/data',
        'dataset.metainfo.classes=blue,green,red')] + ['test_evaluator.topk=1']
    scores = {}
    for name, deploy in (('plain', ()), ('merged', ('--deploy', ))):
        assert run_main(monkeypatch, 'tools/test.py', config, checkpoint, '--work-dir', tmp_path / 'work', '--out',
                        tmp_path / f'{name}.pkl', *deploy, '--cfg-options', *options) == 0
        assert len(merges) == len(deploy)
        assert re.search(r'accuracy/top1\s+33\.3', capsys.readouterr().out)
        samples = pickle.loads((tmp_path / f'{name}.pkl').read_bytes())
        scores[name] = np.stack([sample['pred_score'] for sample in samples])
    assert scores['plain'].shape == (9, 3)
    np.testing.assert_allclose(scores['merged'], scores['plain'], rtol=1e-4)
