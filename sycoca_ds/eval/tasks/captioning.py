"""Captions written by the model, against those of the data set."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from data_pipeline.progress import Progress
from sycoca_ds.eval.bench import Bench, Inputs
from sycoca_ds.eval.cache import Arrays
from sycoca_ds.eval.scorers.caption_tokens import java_command
from sycoca_ds.eval.scorers.captions import score_captions
from sycoca_ds.eval.task import NotApplicable, Outcome, Task, Wording
from sycoca_ds.model.generation import Decoding


@dataclass(frozen=True)
class Captions:
    steps: int
    decoding: Decoding

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        ids = bench.call("generate", image_BCHW=bench.images(numbers), steps=self.steps, decoding=self.decoding).cpu()
        return {"caption": np.array([bench.tokenizer.decode(row.tolist()).strip() for row in ids], dtype=str)}


def run_captioning(bench: Bench) -> Outcome:
    """Greedy or beam search captions of all images, scored against all their captions."""
    if not bench.config.model.captions:
        raise NotApplicable(f"a '{bench.config.model.family}' model has no text decoder")
    data = bench.collection
    # a generated text has to fit the text encoder's positions, [SOT] included
    steps = min(bench.options.caption_tokens, bench.config.model.text.context_length - 1)
    # ranked by the mean over tokens, as open_clip's beam search does: by the sum, more beams would mean shorter captions
    decoding = Decoding(beams=bench.options.beams, length_penalty=1.0)
    key = {"what": "captions", "steps": steps, "decoding": asdict(decoding)}
    captions: list[str] = bench.map_images(Captions(steps, decoding), "write captions", key)["caption"].tolist()
    keys = [picture.image_id for picture in data.pictures]
    with Progress("score captions", total=len(data), unit="images") as bar:
        numbers, reasons, kind, each = score_captions(
            dict(zip(keys, captions, strict=True)), dict(zip(keys, data.captions_of_image, strict=True))
        )
        bar.set(len(data))
    details = {
        "images": len(data),
        "references": len(data.captions),
        "tokenizer": kind,
        "decoding": "greedy" if bench.options.beams == 1 else f"beam search, {bench.options.beams} beams",
        "steps": steps,
        "empty": sum(not caption for caption in captions),
    }
    return Outcome(
        numbers,
        reasons,
        {},
        details,
        {"captions.json": [{"image_id": key, "caption": caption} for key, caption in zip(keys, captions, strict=True)]},
        each=each,
    )


def depends(inputs: Inputs) -> dict[str, int | bool]:
    """Where Java appears later, METEOR's null must not stay."""
    options = inputs.options
    return {"caption_tokens": options.caption_tokens, "beams": options.beams, "java": java_command() is not None}


TASK = Task(
    name="captioning",
    title="Captioning",
    meaning="The model writes a caption for every image, word by word. It is compared with what people (or the generator) wrote.",
    numbers={
        "bleu4": Wording("BLEU-4", "", "runs of four words shared with a reference, 0 to 1"),
        "cider": Wording("CIDEr", "", "agreement in the words that tell images apart, 0 to 10; papers print it times 100"),
        "meteor": Wording("METEOR", "", "shared words with stems and paraphrases, 0 to 1"),
        "rouge_l": Wording("ROUGE-L", "", "longest common word sequence, 0 to 1"),
        "spice": Wording("SPICE", "", "shared objects, attributes and relations, 0 to 1"),
        "cider_shuffled": Wording(
            "CIDEr, captions shuffled",
            "",
            "control: each caption judged against the next image. Close to the line above would mean the model ignores the image",
        ),
        "bleu1": Wording("BLEU-1", "", "single words shared with a reference, 0 to 1"),
        "bleu2": Wording("BLEU-2", "", "runs of two words"),
        "bleu3": Wording("BLEU-3", "", "runs of three words"),
        "mean_words": Wording("Words a caption", "", "length of the generated captions"),
        "distinct": Wording(
            "Distinct captions",
            "%",
            "different captions among all that were written; low means the model repeats itself",
        ),
    },
    headlines=("cider", "cider_shuffled", "bleu4", "meteor", "rouge_l", "spice"),
    run=run_captioning,
    files=("captions.json",),
    each=True,
    depends=depends,
)
