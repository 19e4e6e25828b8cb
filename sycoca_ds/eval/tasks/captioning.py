"""Captions written by the model, against those of the data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from data_pipeline.progress import Progress
from sycoca_ds.eval.runner.bench import Bench, Inputs
from sycoca_ds.eval.runner.cache import Arrays
from sycoca_ds.eval.scorers.caption_tokens import java_command
from sycoca_ds.eval.scorers.captions import DOMAINS, Meteor, Scores, domain_prefix, score_groups, score_tables, token_tables
from sycoca_ds.eval.scorers.spice import Spice
from sycoca_ds.eval.task import NotApplicable, Outcome, Task, Wording
from sycoca_ds.model.generation import Decoding


@dataclass(frozen=True)
class Captions:
    steps: int
    decoding: Decoding

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        return {"caption": self.written(bench, numbers)[0]}

    def written(self, bench: Bench, numbers: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """(captions (B,), image vectors (B, E) of the same pass)."""
        given = {"image_BCHW": bench.images(numbers), "steps": self.steps, "decoding": self.decoding}
        found = bench.call("generate", embed=True, **given)  # ids alone do not show that logits are NaN
        texts = [bench.tokenizer.decode(row.tolist()).strip() for row in found["text_BT"].cpu()]
        return np.array(texts, dtype=str), found["image_BE"].float().cpu().numpy()


def decoding_of(bench: Bench) -> dict[str, Any]:
    """How captions are written: steps and decoding of the model's task `generate`. Raises `NotApplicable`: no text decoder."""
    if not bench.config.model.captions:
        raise NotApplicable(f"a '{bench.config.model.family}' model has no text decoder")
    # a generated text has to fit the text encoder's positions, [SOT] included
    steps = min(bench.options.caption_tokens, bench.config.model.text.context_length - 1)
    # ranked by the mean over tokens, as open_clip's beam search does: by the sum, more beams would mean shorter captions
    return {"steps": steps, "decoding": Decoding(beams=bench.options.beams, length_penalty=1.0)}


def write_captions(bench: Bench) -> list[str]:
    """A greedy or beam search caption of every picture, in order. Raises `NotApplicable`."""
    how = decoding_of(bench)
    key = {"what": "captions", "steps": how["steps"], "decoding": asdict(how["decoding"])}
    return bench.map_images(Captions(**how), "write captions", key)["caption"].tolist()


def by_domain(found: dict[str, Scores]) -> tuple[dict[str, float | None], dict[str, str]]:
    """(numbers, {number that is null: why}) of NoCaps' domains."""
    numbers: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for domain in DOMAINS:
        for name in BY_DOMAIN:
            own = f"{domain_prefix(domain)}{name}"
            if domain in found:
                numbers[own] = found[domain].numbers[name]
                reasons |= {own: found[domain].reasons[name]} if name in found[domain].reasons else {}
            else:
                numbers[own], reasons[own] = None, f"no picture is {domain}"
    return numbers, reasons


def each_by_domain(found: dict[str, Scores], domain_I: Sequence[str]) -> dict[str, np.ndarray]:
    """CIDEr and ROUGE-L of each picture in its domain, whose document frequencies CIDEr goes by there; which domain that is."""
    domain_I = np.asarray(domain_I)
    each = {"domain": domain_I}
    for domain in filter(found.__contains__, DOMAINS):
        for name in ("cider", "rouge_l"):
            value_I = np.full(len(domain_I), np.nan)
            value_I[domain_I == domain] = found[domain].each[name]
            each[f"{domain_prefix(domain)}{name}"] = value_I
    return each


def run_captioning(bench: Bench) -> Outcome:
    """Captions of all images, scored against all their captions, and those of each of NoCaps' domains."""
    captions, data = write_captions(bench), bench.collection
    keys = [picture.image_id for picture in data.pictures]
    spice = None if bench.options.spice_dir is None else Spice(bench.options.spice_dir)
    with Meteor() as meteor:
        with Progress("score captions", total=len(data), unit="images") as bar:
            try:
                tables = token_tables(dict(zip(keys, captions, strict=True)), dict(zip(keys, data.captions_of_image, strict=True)))
            except RuntimeError as error:
                raise NotApplicable(f"captions cannot be scored: {error}") from error
            numbers, reasons, kind, each, failed = score_tables(*tables, meteor, spice)
            bar.set(len(data))
        if data.domains is None:
            own, why = dict.fromkeys(DOMAIN_NUMBERS), dict.fromkeys(DOMAIN_NUMBERS, data.no_domains)
        else:
            with Progress("score captions by domain", total=len(data), unit="images") as bar:
                groups = score_groups(*tables, dict(zip(keys, data.domains, strict=True)), meteor, spice)
                bar.set(len(data))
            own, why = by_domain(groups)
            each |= each_by_domain(groups, data.domains)
            failed |= any(scores.failed for scores in groups.values())
    details = {
        "images": len(data),
        "references": len(data.captions),
        "tokenizer": kind,
        "decoding": "greedy" if bench.options.beams == 1 else f"beam search, {bench.options.beams} beams",
        "steps": decoding_of(bench)["steps"],
        "empty": sum(not caption for caption in captions),
        "domains": {domain: list(data.domains).count(domain) for domain in sorted(set(data.domains))} if data.domains else None,
    }
    return Outcome(
        numbers | own,
        reasons | why,
        {},
        details,
        {"captions.json": [{"image_id": key, "caption": caption} for key, caption in zip(keys, captions, strict=True)]},
        again=failed,
        each=each,
    )


def depends(inputs: Inputs) -> dict[str, int | bool]:
    """Where Java or SPICE's jars appear later, nulls must not stay."""
    options, java = inputs.options, java_command() is not None
    return {"caption_tokens": options.caption_tokens, "beams": options.beams, "java": java, "spice": options.spice_dir is not None}


NUMBERS = {
    "bleu4": Wording("BLEU-4", "", "runs of four words shared with a reference, 0 to 1"),
    "cider": Wording("CIDEr", "", "agreement in the words that tell images apart, 0 to 10; papers print it times 100"),
    "meteor": Wording("METEOR", "", "shared words with stems and paraphrases, 0 to 1"),
    "rouge_l": Wording("ROUGE-L", "", "longest common word sequence, 0 to 1"),
    "spice": Wording("SPICE", "", "shared objects, attributes and relations, 0 to 1"),
    "cider_shuffled": Wording(
        "CIDEr, captions shuffled",
        "",
        "control: each caption judged against the next image. Close to the line above would mean the model ignores the image",
        control=True,
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
}
BY_DOMAIN = ("cider", "bleu4", "meteor", "spice", "rouge_l", "bleu1", "bleu2", "bleu3")
"""What NoCaps' server gives for each domain."""
DOMAIN_NUMBERS = {
    f"{domain_prefix(domain)}{name}": replace(
        NUMBERS[name],
        label=f"{NUMBERS[name].label}, {domain}",
        meaning=f"the same on the images of NoCaps that are {domain}, as a set of their own",
        quiet=True,
    )
    for domain in DOMAINS
    for name in BY_DOMAIN
}
TASK = Task(
    name="captioning",
    title="Captioning",
    meaning="The model writes a caption for every image, word by word. It is compared with what people (or the generator) wrote.",
    numbers={**NUMBERS, **DOMAIN_NUMBERS},
    headlines=(
        "cider",
        "cider_shuffled",
        "bleu4",
        "meteor",
        "rouge_l",
        "spice",
        *(f"{domain_prefix(domain)}cider" for domain in DOMAINS),
    ),
    run=run_captioning,
    files=("captions.json",),
    each=True,
    depends=depends,
)
