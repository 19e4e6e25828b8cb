"""Grad-CAM (Selvaraju et al. 2017) on the patch embedding: which patches a text hangs on, by gradients.

The paper's pictures are of this layer. Legend: B pictures with a text each, L tokens, N patches, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sycoca_ds.model.masking.ranking import PatchRanking


def class_activation(activation_BND: Tensor, slope_BND: Tensor) -> Tensor:
    """Grad-CAM's map, (B, N) float32, 0 or more: each channel weighs by the mean of its slope over the patches, and what speaks
    against the target is cut off (their equations 1 and 2).

    Args:
        activation_BND: outputs of a layer. slope_BND: d target / d activation.
    """
    weight_B1D = slope_BND.float().mean(dim=1, keepdim=True)
    return (weight_B1D * activation_BND.float()).sum(dim=2).relu()


class GradCam(PatchRanking):
    """The part of the model that explains itself; it has no weights of its own."""

    def _grad_cam(self, image_BCHW: Tensor, text_BL: Tensor, words_BL: Tensor | None = None) -> Tensor:
        """Grad-CAM of the patch embedding's outputs, before positions are added: (B, N) float32, 0 or more.

        Args:
            text_BL: int64 ids, `[SOT] w.. [EOT]` and padding.
            words_BL: bool, tokens of the text behind [SOT]. Without it the target is the similarity of the global vectors of
                picture and text; with it the log-probability of these tokens of the caption under the text decoder.

        Raises:
            ValueError: in inference mode, which keeps no gradients, or of a model that writes no captions.
        """
        if torch.is_inference_mode_enabled():
            raise ValueError("grad_cam needs gradients: call it outside inference mode")
        if words_BL is not None and self.text_decoder is None:
            raise ValueError(f"a model of family {self.config.family} has no text decoder")
        encoder, found = self.image_encoder, []

        def cut(module, inputs, output):  # what lies before needs no gradient
            found.append(output.detach().requires_grad_())
            return found[0]

        with torch.enable_grad():
            hook = encoder.patch_embed.register_forward_hook(cut)
            try:
                global_BD, seen_BSD = encoder.read(encoder(self._patches(image_BCHW)))
            finally:
                hook.remove()
            with torch.no_grad():
                text_BD, token_BLD = self.text_encoder(text_BL)
            if words_BL is None:
                target = (encoder.project(global_BD) * self.text_encoder.project_global(text_BD).detach()).sum()
            else:
                at_M = words_BL[:, 1:].flatten().nonzero().squeeze(1)
                label_M = text_BL[:, 1:].flatten().index_select(0, at_M)
                target = -self.text_decoder(token_BLD[:, :-1], seen_BSD, at_M, label_M, each=True).sum()
            (slope_BND,) = torch.autograd.grad(target, found)  # a sum over pictures, each of which sees its own alone
        return class_activation(found[0].detach(), slope_BND)
