#!/usr/bin/env bash
# Fills DIR with open_clip 3.3, CLIP_benchmark 1.6 and what they import, for tests/sycoca_ds/model/open_clip/test_peer.py,
# tests/sycoca_ds/eval/exports/test_peer.py and benchmarks/: about 270 MB. It is a layer over the environment whose
# Python is given, not an environment: torch, pillow and safetensors stay that one's. Two packages are older than there:
# - transformers 4.55, which has the BeamSearchScorer that open_clip's generate imports (4.57 has not), and its tokenizers and hub
# - numpy 2.3, since CLIP_benchmark makes a number of an array of one, which numpy 2.4 refuses
# usage: tests/worlds/open_clip/peer.sh DIR [PYTHON]
set -euo pipefail
dir=${1:?usage: tests/worlds/open_clip/peer.sh DIR [PYTHON]} python=${2:-python}
torch=$("$python" -c 'import torch; print(torch.__version__.split("+")[0])')
wanted="open_clip 3.3.0, clip-benchmark 1.6.2, transformers 4.55.4, numpy 2.3, webdataset 0.2.86, torch $torch"
if [ "$(cat "$dir/made_for" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

minor=${torch#2.}
minor=${minor%%.*}
rm -rf "$dir" "$dir.tmp"
trap 'rm -rf "$dir.tmp"' EXIT
# transformers 4.55 is the newest with the BeamSearchScorer that open_clip 3.3 generates by, and wants tokenizers and hub of its time;
# torchvision 0.(n + 15) belongs to torch 2.n; --no-deps, or pip would fetch a second torch
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$dir.tmp" \
  open_clip_torch==3.3.0 clip-benchmark==1.6.2 'timm>=1.0.17,<2' "torchvision==0.$((minor + 15)).*" ftfy regex wcwidth \
  transformers==4.55.4 'tokenizers==0.21.*' 'huggingface_hub>=0.34,<1' 'numpy>=2.3,<2.4' \
  webdataset==0.2.86 # the newest that open_clip 3.3 reads tars with
# PyPI's torchvision is built for a CUDA torch. Beside one for CPUs it cannot load its operators, and then fails to describe two of
# them, which open_clip never calls. Who takes it from the index that torch came from, as docs/open_clip.md says, has no need of this.
if ! PYTHONPATH="$dir.tmp" "$python" -c 'import torchvision' 2>/dev/null; then
  cat >>"$dir.tmp/torchvision/extension.py" <<'DECLARED'


if not _has_ops():
    _declared = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _declared.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
DECLARED
fi
PYTHONPATH="$dir.tmp" "$python" "$(dirname "$0")/peer.py" version
echo "$wanted" >"$dir.tmp/made_for"
mv "$dir.tmp" "$dir"
du -sh "$dir"
