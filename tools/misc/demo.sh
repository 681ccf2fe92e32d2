#!/usr/bin/env bash
# The demo: draws a data set, trains Mask R-CNN with PartialNet-T0 on it, measures and draws what it found.
#
# usage: [PYTHON=python] tools/misc/demo.sh [WORK_DIR]
set -euo pipefail
[ $# -le 1 ] || { sed -n '4s/^# //p' "$0" >&2; exit 2; }
work=${1:-work_dirs/demo}
python=${PYTHON:-python}
config=configs/mask_rcnn/partialnet_t0_shapes.py
cd "$(dirname "$0")/../.."
started=$SECONDS

printf '\n== [1/3] drawing 240 + 48 images\n'
# Its last file; what an interrupted drawing has left is drawn again.
[ -f data/shapes/annotations/instances_val.json ] || "$python" tools/dataset_tools/make_shapes.py data/shapes --force
printf '\n== [2/3] training: 22 epochs, "eta" is the time left\n'
rm -rf "$work/detections"
# A batch of 16: on a GPU in one process, on CPUs in four, which use their cores better than one does.
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    tools/dist_train.sh "$config" 1 --work-dir "$work" --cfg-options train_dataloader.batch_size=16
else
    tools/dist_train.sh "$config" 4 --work-dir "$work"
fi
printf '\n== [3/3] measuring on the 48 held-out images, and drawing\n'
"$python" tools/test.py "$config" "$work/epoch_22.pth" --work-dir "$work/test" --show-dir "$work/detections" |
    tee "$work/test.log"
grep '^coco/' "$work/test.log" > "$work/metrics.txt"
"$python" tools/misc/montage.py "$work/detections" "$work/detections.jpg"
printf '\nBox and mask AP on the held-out images (%s):\n\n' "$work/metrics.txt"
cat "$work/metrics.txt"
printf '\nPictures, annotated on the left, detected on the right: %s/detections/, the first of them in %s/detections.jpg\n%d s in all\n' \
    "$work" "$work" $((SECONDS - started))
