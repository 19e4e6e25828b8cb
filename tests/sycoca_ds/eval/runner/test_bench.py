"""What the tasks of one checkpoint share is made once."""

from types import SimpleNamespace

import numpy as np
import torch

from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.runner.bench import Bench, Inputs


def test_texts_of_the_same_tokens_are_read_once():
    """The model here rounds a text by its place in the batch, as products of matrices may do."""

    def model(task, text_BL):
        asked.append(len(text_BL))
        return text_BL.float() + 1e-6 * torch.rand(text_BL.shape)

    asked, words = [], {"a": 1, "b": 2}
    tokenizer = SimpleNamespace(encode=lambda texts, length: np.array([[words[text.lower()]] * length for text in texts]))
    config = SimpleNamespace(model=SimpleNamespace(text=SimpleNamespace(context_length=4)))
    bench = Bench(model, config, tokenizer, None, torch.device("cpu"), Inputs(SuiteOptions(batch_size=2)))
    feature_TE = bench.encode_texts(["b", "a", "A", "b", "a"])
    assert asked == [2] and feature_TE.round()[:, 0].tolist() == [2, 1, 1, 2, 1]
    assert torch.equal(feature_TE[1:3], feature_TE[[4, 4]]) and torch.equal(feature_TE[0], feature_TE[3])
