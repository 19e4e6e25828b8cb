"""Answers to questions (VQA): the text encoder reads the question and the picture, the text decoder says the answer (paper,
section 4: "we modify the text encoder to a multi-modal decoder").

Everything a pretrained model has is used as it is. The question goes through the text encoder, behind each of whose blocks a
cross-attention block of `Fusion` reads the picture; what comes out stands where captioning has the picture's tokens. The answer
goes through the text encoder alone, then through the text decoder, as a caption does. The question stays causal, as the encoder's
weights were trained: its [EOT] and [CLS] have read all of it.

Legend: Q questions, A answers, C candidates, K of them ranked, S question tokens with [CLS].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sycoca_ds.config import ModelConfig
from sycoca_ds.model.choices import Choices
from sycoca_ds.model.decoders import TextDecoder
from sycoca_ds.model.generation import Captioner, Decoding, generate, largest
from sycoca_ds.model.image_encoder import ImageEncoder
from sycoca_ds.model.layers.blocks import CrossBlock
from sycoca_ds.model.layers.products import LayerNorm, Linear
from sycoca_ds.model.text_encoder import TextEncoder, label_places

PAIRS_AT_ONCE = 2048
"""Most pairs of question and candidate that go through the text decoder together; at least all of one question."""


class Fusion(nn.Module):
    """The only weights that a pretrained model lacks: cross-attention to the picture behind each block of the text encoder, and the
    way from the text encoder's width to what the text decoder attends to."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        text, width = config.text, config.image_token_width
        self.blocks = nn.ModuleList(CrossBlock(text.width, text.heads, width) for _ in range(text.layers))
        self.ln_final = LayerNorm(text.width)
        self.out = Linear(text.width, width)

    def forward(self, x_QSD: Tensor) -> Tensor:
        """The question as the text decoder takes pictures: (Q, S, D) -> (Q, S, image_token_width)."""
        return self.out(self.ln_final(x_QSD))


class Answering(nn.Module):
    """The part of the model that answers; its weights are `SyCoCa`'s."""

    config: ModelConfig
    image_encoder: ImageEncoder
    text_encoder: TextEncoder
    text_decoder: TextDecoder | None
    fusion: Fusion | None
    logit_scale: nn.Parameter
    _patches: Callable[[Tensor], Tensor]
    _real: Callable[[Tensor], Tensor]

    def _read_questions(self, image_BCHW: Tensor, text_QL: Tensor, image_of_Q: Tensor | None = None) -> tuple[Tensor, ...]:
        """(question read with its picture (Q, S, D), bool (Q, S) of its real tokens, global outputs of picture and question)."""
        global_BD, image_BSD = self.image_encoder.read(self.image_encoder(self._patches(image_BCHW)))
        if image_of_Q is not None:
            image_BSD = image_BSD.index_select(0, image_of_Q)
        text_QD, token_QLD = self.text_encoder(text_QL, fused=(self.fusion.blocks, image_BSD))
        valid_QS = self._real(text_QL)
        if self.text_encoder.cls_embedding is not None:
            token_QLD = torch.cat([token_QLD, text_QD[:, None]], dim=1)
            valid_QS = torch.cat([valid_QS, valid_QS[:, :1]], dim=1)
        return self.fusion(token_QLD), valid_QS, global_BD, text_QD

    def _train_answers(
        self,
        image_BCHW: Tensor,
        text_BL: Tensor,
        answer_AL: Tensor,
        question_of_A: Tensor,
        weight_A: Tensor,
        label_at_M: Tensor | None = None,
        key_B: Tensor | None = None,
        mask_by: str | None = None,
    ) -> dict[str, Tensor]:
        """The loss of one micro-batch of questions: the sum over a question's distinct answers of the share of annotators who gave
        it times its negative log-likelihood, a mean over questions (ALBEF, BLIP). Rows of equal number on all ranks make it exact.

        Args:
            image_BCHW: a picture a question, as of `train`; text_BL: int64, the questions.
            answer_AL: int64, all answers of all questions; question_of_A: int64, the row of `text_BL`; weight_A: float32, shares.
            label_at_M: `label_places` of answer_AL; by default found here, for which the host waits for the device.
            key_B, mask_by: nothing is masked; taken because every micro-batch has them.

        Returns:
            0-dim float32 tensors: loss, vqa. Only loss carries gradient.
        """
        seen_QSD, valid_QS, global_BD, text_QD = self._read_questions(image_BCHW, text_BL)
        at_M = label_places(answer_AL, self.config.text.eot_id) if label_at_M is None else label_at_M
        seen_ASD, valid_AS = seen_QSD.index_select(0, question_of_A), valid_QS.index_select(0, question_of_A)
        label_M, rows = answer_AL[:, 1:].flatten().index_select(0, at_M), self.text_encoder.rows(answer_AL, len(at_M))
        input_MD = rows.inputs_of(self.text_encoder(answer_AL, rows=rows)[1])
        loss_M = self.text_decoder(input_MD, seen_ASD, target_M=label_M, each=True, valid_BS=valid_AS, packing=rows.inputs)
        weight_M = weight_A.index_select(0, at_M // (answer_AL.shape[1] - 1))
        vqa = (loss_M * weight_M).sum() / len(text_BL)
        # What the contrast alone trains has a gradient of zero, not none: DeepSpeed's partitions expect one of every weight.
        idle = self.image_encoder.project(global_BD).sum() + self.text_encoder.project_global(text_QD).sum()
        return {"loss": vqa + 0.0 * (idle + self.logit_scale.float().sum()), "vqa": vqa.detach()}

    def _rank_answers(
        self, image_BCHW: Tensor, text_QL: Tensor, answer_CL: Tensor, keep: int, image_of_Q: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The likelihoods of candidates as answers, from all patches.

        Only the `keep` candidates with the likeliest first token are read to their end (ALBEF, BLIP: 128); of equal ones the
        first in the list. With `keep` of all of them no first token is asked for.

        Args:
            image_BCHW: pictures; image_of_Q: int64, whose row each question is on, default its own.
            answer_CL: int64, the candidates, `[SOT] w.. [EOT]` and padding.

        Returns:
            candidate_QK: int64, rows of answer_CL; likelihood_QK: float32, sum of the tokens' log-probabilities, [EOT] included.
        """
        seen_QSD, valid_QS, *_ = self._read_questions(image_BCHW, text_QL, image_of_Q)
        token_CLD, (questions, candidates) = self.text_encoder(answer_CL)[1], (len(text_QL), len(answer_CL))
        candidate_QK = torch.arange(candidates, device=text_QL.device).expand(questions, -1)
        if keep < candidates:
            start_Q1D = token_CLD[:1, :1].expand(questions, -1, -1)
            first_QV = self.text_decoder(start_Q1D, seen_QSD, valid_BS=valid_QS)[:, 0].float()
            candidate_QK = largest(first_QV.index_select(1, answer_CL[:, 1]), keep)
        found, size = [], max(1, PAIRS_AT_ONCE // candidate_QK.shape[1])
        for chosen_QK, seen, valid in zip(candidate_QK.split(size), seen_QSD.split(size), valid_QS.split(size), strict=True):
            answer_PL, token_PLD = (x.index_select(0, chosen_QK.flatten()) for x in (answer_CL, token_CLD))
            at_M = label_places(answer_PL, self.config.text.eot_id)
            x_PLD = self.text_decoder.run_many(token_PLD[:, :-1], self.text_decoder.keys_values(seen), valid)
            label_M = answer_PL[:, 1:].flatten().index_select(0, at_M)
            loss_M = self.text_decoder.head(x_PLD.flatten(0, 1).index_select(0, at_M), label_M, True)
            loss_PL = loss_M.new_zeros(answer_PL[:, 1:].numel()).index_copy(0, at_M, loss_M).view(len(answer_PL), -1)
            found.append(-loss_PL.sum(dim=1).view(chosen_QK.shape))
        return {"candidate_QK": candidate_QK, "likelihood_QK": torch.cat(found)}

    def _generate_answers(
        self,
        image_BCHW: Tensor,
        text_QL: Tensor,
        steps: int,
        decoding: Decoding | None = None,
        choices: Choices | None = None,
        image_of_Q: Tensor | None = None,
        judge: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Answers token by token, freely or among choices: int64 (Q, steps), [SOT] left out, pads after [EOT]; with `judge`
        text_QT, these, and largest_logit, 0-dim float32, which is NaN where a logit was."""
        seen_QSD, valid_QS, *_ = self._read_questions(image_BCHW, text_QL, image_of_Q)
        captioner = Captioner(self.text_encoder, self.text_decoder, seen_QSD, valid_QS, steps)
        text_QT = generate(captioner, steps, self.config.text, decoding or Decoding(), choices=choices)
        return {"text_QT": text_QT, "largest_logit": captioner.largest_logit} if judge else text_QT
