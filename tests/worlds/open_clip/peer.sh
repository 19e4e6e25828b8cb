#!/usr/bin/env bash
# Fills DIR with open_clip 3.3, CLIP_benchmark 1.6 and what they import, for tests/sycoca_ds/model/open_clip/test_peer.py,
# tests/sycoca_ds/eval/exports/test_peer.py and benchmarks/: about 200 MB, seconds. It is a layer over the environment whose Python is
# given, not an environment: torch, numpy, pillow and safetensors stay that one's.
# usage: tests/worlds/open_clip/peer.sh DIR [PYTHON]
set -euo pipefail
dir=${1:?usage: tests/worlds/open_clip/peer.sh DIR [PYTHON]} python=${2:-python}
torch=$("$python" -c 'import torch; print(torch.__version__.split("+")[0])')
wanted="open_clip 3.3.0, clip-benchmark 1.6.2, transformers 4.55.4, webdataset 0.2.86, torch $torch"
if [ "$(cat "$dir/made_for" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

minor=${torch#2.}
minor=${minor%%.*}
rm -rf "$dir" "$dir.tmp"
trap 'rm -rf "$dir.tmp"' EXIT
# transformers 4.55 is the newest with the BeamSearchScorer that open_clip 3.3 generates by, and wants tokenizers and hub of its time;
# torchvision 0.(n + 15) belongs to torch 2.n; --no-deps, or pip would fetch a second torch
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$dir.tmp" \
  open_clip_torch==3.3.0 clip-benchmark==1.6.2 'timm>=1.0.17,<2' "torchvision==0.$((minor + 15)).*" ftfy regex wcwidth \
  transformers==4.55.4 'tokenizers==0.21.*' 'huggingface_hub>=0.34,<1' \
  webdataset==0.2.86 # the newest that open_clip 3.3 reads tars with
PYTHONPATH="$dir.tmp" "$python" "$(dirname "$0")/peer.py" version
echo "$wanted" >"$dir.tmp/made_for"
mv "$dir.tmp" "$dir"
du -sh "$dir"
