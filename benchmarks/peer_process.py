"""open_clip in a process of its own, under the environment that has it: reads a request a line, answers a line. See peers.py.

One process a version, since both are named open_clip. Nothing of SyCoCa-DS is imported here: its libraries may be other ones.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tests.worlds.open_clip.peer import open_clip, skip_initialisation  # noqa: E402


class Peer:
    def __init__(self) -> None:
        self.open_clip = open_clip
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = None
        self.turn: Any = None
        skip_initialisation()

    def version(self) -> dict[str, Any]:
        return {"version": self.open_clip.__version__, "threads": torch.get_num_threads()}

    def release(self) -> dict[str, Any]:
        self.model = self.turn = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return {}

    def model_of(self, name: str, weights: str, train: bool) -> dict[str, Any]:
        self.model = None
        model = self.open_clip.create_model(name)
        model.load_state_dict(load_file(weights), strict=False)
        self.model = model.to(self.device).train(train)
        return {}

    def loss(self, compiled: bool) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """As its own trainer puts it together: version 4 by a task, which cuts the labels itself, and compiles itself where asked
        to, as `--torchcompile` does."""
        weights = {"caption_loss_weight": 2.0, "clip_loss_weight": 1.0}
        try:
            from open_clip.task import CoCaTask
        except ImportError:
            from open_clip.loss import CoCaLoss

            criterion = CoCaLoss(**weights)
            return lambda image, text: sum(criterion(**self.model(image, text)))
        task = CoCaTask(self.model, **weights, verbose=False).train()
        task = task.compile(target="task") if compiled else task
        return lambda image, text: task({"image": image, "text": text})[0]["loss"]

    def training(self, inputs: list[str], precision: str, compiled: bool) -> dict[str, Any]:
        """Steps over the batches in turn. `precision` fp32, amp_bf16 or pure_bf16 as open_clip's."""
        loss_of = self.loss(compiled)
        batches = [load_file(file, device=str(self.device)) for file in inputs]
        if precision == "pure_bf16":
            self.model = self.model.to(torch.bfloat16)
            batches = [{**batch, "image": batch["image"].to(torch.bfloat16)} for batch in batches]
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

        def step(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "amp_bf16"):
                loss = loss_of(image, text)
            loss.backward()
            return loss

        def turn() -> list[float]:
            losses = []
            for batch in batches:
                losses.append(step(batch["image"], batch["text"]))
                optimizer.step()
                optimizer.zero_grad()
            return [loss.item() for loss in losses]

        self.turn = turn
        with torch.no_grad():
            first = self.loss(compiled=False)(batches[0]["image"], batches[0]["text"])
        return {"loss": first.item()}

    def generation(self, image: str, steps: int, beams: int) -> dict[str, Any]:
        """Captions of `steps` tokens, [SOT] not counted: a text never ends before."""
        picture = load_file(image, device=str(self.device))["image"]
        how = {"generation_type": "top_k", "top_k": 1} if beams == 1 else {"num_beams": beams, "num_beam_groups": 1}

        def turn() -> list[int]:
            with torch.no_grad():
                ids = self.model.generate(picture, seq_len=steps + 1, min_seq_len=steps, **how)
            return ids[:, 1:].tolist()

        self.turn = turn
        return {}

    def measure(self) -> dict[str, Any]:
        synchronise = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        synchronise()
        began, processor = time.perf_counter(), time.process_time()
        result = self.turn()
        synchronise()
        used = 0.0 if self.device.type == "cuda" else time.process_time() - processor
        return {"seconds": time.perf_counter() - began, "processor": used, "result": result}


def main() -> None:
    # answers have a channel of their own: libraries print what they like
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer = Peer()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(peer, request.pop("do"))(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
