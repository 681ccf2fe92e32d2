# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""From a command line to a config."""
import argparse

import pytest

from partialnet_mm.engine.runners.command_line import (
    add_config_arguments,
    add_runner_arguments,
    load_config,
    load_runner_config,
)
from partialnet_mm.engine.runners.config_file import ConfigError
from tests.helpers.libraries import ROOT

CUSTOM = str(ROOT / 'configs/mask_rcnn/partialnet_t0_custom.py')


def parse(*words):
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    add_runner_arguments(parser)
    return parser, parser.parse_args([str(word) for word in words])


def test_options_come_before_the_settings_of_own_data(tmp_path):
    parser, args = parse(CUSTOM, '--cfg-options', f'data_root={tmp_path}', "classes=['cat']",
                         'optim_wrapper.optimizer.lr=3')
    cfg = load_config(parser, args)
    assert cfg.test_dataloader.dataset.data_root == str(tmp_path)
    assert cfg.model.roi_head.bbox_head.num_classes == 1 and cfg.optim_wrapper.optimizer.lr == 3


@pytest.mark.parametrize('words, folder', [
    ((), 'work_dirs/partialnet_t0_custom'), (('--work-dir', 'a'), 'a'), (('--cfg-options', 'work_dir=b'), 'b')])
def test_work_folder_and_launcher(words, folder, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    parser, args = parse(CUSTOM, *words)
    cfg = load_runner_config(parser, args, ())
    assert (cfg.work_dir, cfg.launcher) == (folder, 'none')


@pytest.mark.parametrize('words, message', [
    (('nowhere.py', ), "config 'nowhere.py' does not exist"),
    ((CUSTOM, '--cfg-options', 'data_root=nowhere'), "partialnet_t0_custom.py': data_root 'nowhere' is not a folder"),
    ((CUSTOM, '--cfg-options', 'classes=[]'), 'classes must be names'),
])
def test_mistakes_are_errors_of_the_config(words, message):
    with pytest.raises(ConfigError, match=message):
        load_config(*parse(*words), splits=('train', ))


@pytest.mark.parametrize('word', ['model', '=5', 'a..b=1', "classes=['a'"])
def test_options_that_are_no_pairs(word, capsys):
    with pytest.raises(SystemExit) as leaving:
        parse(CUSTOM, '--cfg-options', word)
    assert leaving.value.code == 2 and '--cfg-options' in capsys.readouterr().err
