"""Cosines whose order depends on nothing but the features, and ranks by them.

Legend: I images, T captions, Q queries, C candidates, E embedding width.
At an equal score the lower index ranks ahead (open_clip_train/metrics.py).
"""

from __future__ import annotations

import numpy as np
import torch

from sycoca_ds.eval.runner.finite import check_finite

# Features are rounded to multiples of 2^-24 (finer than the last bit of a float32 cosine). A product is then a multiple
# of 2^-48 and a cosine is at most 1, so every partial sum is exact in float64: the score depends on neither chunk size,
# BLAS kernel, thread count nor device. With plain float32 products two equal candidates can differ in the last bit, and
# ties (drawn scenes and popular captions have many) would be decided by the shape of the matrix product.
QUANTUM = 2.0**-24


def exact_unit_vectors(features_XE: torch.Tensor) -> torch.Tensor:
    """(X, E) floats -> (X, E) float64, L2-normalised and rounded to `QUANTUM`. UserError: features that are not finite."""
    features_XE = features_XE.detach().to(torch.float64)
    check_finite(features_XE, "features")
    features_XE = features_XE / features_XE.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return torch.round(features_XE / QUANTUM) * QUANTUM


def own_ranks(
    image_IE: torch.Tensor, text_TE: torch.Tensor, image_of_text_T: torch.Tensor, chunk: int = 256
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks (0 = first) of each image's best caption among all captions, (I,), and of each caption's image among all images, (T,);
    int64 on the CPU.

    One pass over float32 products serves both directions. Where a product is so near to what it is compared with that float32 may
    be wrong about the order, and in ties, the exact score decides.

    image_IE, text_TE: floats, any scale; image_of_text_T (T,): int64.
    chunk: images scored at once, against 8 x chunk captions; bounds memory beside the features, never changes the ranks.
    Raises ValueError for an image without a caption.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    image_IE, text_TE = exact_unit_vectors(image_IE), exact_unit_vectors(text_TE)
    images, texts, device = len(image_IE), len(text_TE), image_IE.device
    owner_T, place_T = image_of_text_T.to(device), torch.arange(texts, device=device)
    own_T = exact_scores(image_IE, text_TE, owner_T, place_T)
    best_I = own_T.new_full((images,), -torch.inf).scatter_reduce(0, owner_T, own_T, "amax")
    if (best_I == -torch.inf).any():
        raise ValueError(f"image {int((best_I == -torch.inf).nonzero()[0])} has no caption")
    first_T = torch.where(own_T == best_I[owner_T], place_T, texts)
    first_I = torch.full((images,), texts, device=device).scatter_reduce(0, owner_T, first_T, "amin")

    near = most_error(image_IE.shape[1])
    small_image_IE, small_text_TE = image_IE.float(), text_TE.float()  # exact: multiples of QUANTUM up to 1
    ahead_I, ahead_T = (torch.zeros(count, dtype=torch.int64, device=device) for count in (images, texts))
    for top in range(0, images, chunk):
        rows = slice(top, min(top + chunk, images))
        for left in range(0, texts, 8 * chunk):
            columns = slice(left, min(left + 8 * chunk, texts))
            score_RC = small_image_IE[rows] @ small_text_TE[columns].T
            inside_C = (owner_T[columns] >= rows.start) & (owner_T[columns] < rows.stop)
            own_C = inside_C.nonzero().flatten()
            score_RC[owner_T[columns][own_C] - top, own_C] = -torch.inf  # an image's own captions are not ahead of its best
            for bound, first, ahead, axis in (
                (best_I[rows, None], first_I[rows, None], ahead_I[rows], 1),
                (own_T[None, columns], owner_T[None, columns], ahead_T[columns], 0),
            ):
                above_RC = score_RC - bound.float()
                ahead += torch.gt(above_RC, near, out=torch.empty_like(above_RC)).sum(dim=axis).long()
                place_P = places(above_RC.abs_() <= near)
                if len(place_P) == 0:
                    continue
                row_P, column_P = place_P // len(above_RC[0]), place_P % len(above_RC[0])
                if len(place_P) > above_RC.numel() // 16:  # so many ties that the whole product is less work
                    score_P = (image_IE[rows] @ text_TE[columns].T).flatten()[place_P]
                else:
                    score_P = exact_scores(image_IE, text_TE, row_P + top, column_P + left)
                bound_P, first_P = (x.expand_as(above_RC)[row_P, column_P] for x in (bound, first))
                candidate_P, query_P = (column_P + left, row_P) if axis == 1 else (row_P + top, column_P)
                ahead_P = (score_P > bound_P) | ((score_P == bound_P) & (candidate_P < first_P))
                ahead.index_add_(0, query_P, ahead_P.long())
    return ahead_I.cpu(), ahead_T.cpu()


def most_error(width: int) -> float:
    """Most that a float32 product of two exact unit vectors may be off, whatever the order of its sum: Higham 2002, 3.5, with room
    for the comparison's own rounding. Where torch may round the factors, too, as TF32 and bf16 do, as much more."""
    return 1.001 * (width + 4) * 2.0**-24 + {"highest": 0.0, "high": 2.0**-9}.get(torch.get_float32_matmul_precision(), 2.0**-6)


def exact_scores(image_IE: torch.Tensor, text_TE: torch.Tensor, image_P: torch.Tensor, text_P: torch.Tensor) -> torch.Tensor:
    """Scores of pairs, (P,) float64, without a rounding: see `QUANTUM`."""
    pieces = zip(image_P.split(4096), text_P.split(4096), strict=True)
    return torch.cat([(image_IE[i] * text_TE[t]).sum(dim=1) for i, t in pieces] or [image_IE.new_zeros(0)])


def places(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask is True, counted through it; on a CPU by NumPy, which takes an eighth of torch's time."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero().squeeze(1)


def top_candidates(query_QE: torch.Tensor, candidate_CE: torch.Tensor, k: int) -> np.ndarray:
    """(Q, min(k, C)) int64: the best candidates in order, under the same scores and tie rule as the ranks."""
    score = exact_unit_vectors(query_QE) @ exact_unit_vectors(candidate_CE).T
    order = torch.argsort(score, dim=1, descending=True, stable=True)
    return order[:, :k].cpu().numpy()
