# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The report of a training as a browser without a network shows it."""
import json
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from partialnet_mm.analysis.report import write_report
from partialnet_mm.analysis.report.record import RECORD, Record, write_record

BROWSERS = ('chromium-headless-shell', 'chromium', 'google-chrome')
#: A picture of one colour in BGR, and the colours of right and missed boxes.
PICTURE, RIGHT, MISSED = (200, 120, 40), (61, 128, 21), (38, 38, 220)


@pytest.mark.slow
def test_a_browser_draws_curves_pictures_and_boxes(tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f'none of {", ".join(BROWSERS)} is installed')
    logs = tmp_path / 'work/20300101_000000/vis_data/scalars.json'
    logs.parent.mkdir(parents=True)
    logs.write_text('\n'.join(json.dumps(dict(lr=0.1, loss=1 / step, step=step)) for step in (1, 2, 3)))
    cv2.imwrite(str(tmp_path / 'a.png'), np.full((300, 400, 3), PICTURE, np.uint8))
    truth = np.array([[0, 20, 20, 120, 120, 0, 0], [0, 200, 100, 350, 250, 1, 0]], float)
    found = np.array([[0, 20, 20, 120, 120, 0, 0.9]])
    write_record(Record(dict(task='detection', classes=['<b>cat</b>', 'dog'], epoch=1), [str(tmp_path / 'a.png')],
                        dict(truth=truth, found=found, sizes=np.array([[400, 300]]))), logs.parents[1] / RECORD)
    page = write_report(tmp_path / 'work')

    common = [browser, '--headless', '--no-sandbox', '--disable-gpu', '--host-resolver-rules=MAP * ~NOTFOUND',
              '--window-size=1200,2600', '--hide-scrollbars', f'--user-data-dir={tmp_path}/profile']
    shot = tmp_path / 'shot.png'
    done = subprocess.run([*common, f'--screenshot={shot}', page.as_uri()], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    pixels = cv2.imread(str(shot)).reshape(-1, 3).astype(int)
    for colour, least in ((PICTURE, 20000), (RIGHT, 300), (MISSED, 300)):
        assert (np.abs(pixels - colour).max(axis=1) < 12).sum() > least, colour

    dom = subprocess.run([*common, '--dump-dom', page.as_uri()], capture_output=True, text=True, timeout=120).stdout
    # Two charts of the log, one of precision and recall, and the picture.
    assert dom.count('<svg') == 4 and '&lt;b&gt;cat&lt;/b&gt;' in dom and '<b>cat</b>' not in dom
