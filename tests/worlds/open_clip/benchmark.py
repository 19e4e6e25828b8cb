"""What CLIP_benchmark itself computes with open_clip's models, for tests/sycoca_ds/eval/exports/test_peer.py.

    benchmark.py JOBS.json

Runs under the Python that has both (`make peer`). A job is {"model": FOLDER, "sets": {NAME: FOLDER}, "answers": FILE.json}: of the
model in open_clip's layout, on each WebDataset, what `clip_benchmark eval` computes in fp32: zero-shot classification, or retrieval
where dataset_type.txt says so, and each picture's scores.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import open_clip
import torch


def compute(model, transform, tokenizer, root: Path) -> dict:
    from clip_benchmark.datasets.builder import build_dataset
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

    kind = root / "dataset_type.txt"
    retrieval = kind.is_file() and kind.read_text().strip() == "retrieval"
    task = "zeroshot_retrieval" if retrieval else "zeroshot_classification"
    data = build_dataset("wds/peer", root=str(root), transform=transform, split="test", download=False, task=task)
    # one process, and what clip_benchmark/cli.py gives its tasks
    loader = torch.utils.data.DataLoader(data.batched(16), batch_size=None, shuffle=False, num_workers=0)
    if retrieval:
        return zeroshot_retrieval.evaluate(model, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    found = zeroshot_classification.evaluate(model, loader, tokenizer, data.classes, data.templates, "cpu", amp=False)
    classifier = zeroshot_classification.zero_shot_classifier(model, tokenizer, data.classes, data.templates, "cpu", amp=False)
    logits, label = zeroshot_classification.run_classification(model, classifier, loader, "cpu", amp=False)
    return found | {"logits": logits.tolist(), "label": label.tolist()}


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{job['model']}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{job['model']}")
        found = {name: compute(model.eval(), transform, tokenizer, Path(root)) for name, root in job["sets"].items()}
        Path(job["answers"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
