"""InfoNCE over a whole batch, in which rows of one group are no negatives of one another.

    columns -> vectors, B x D each -> gathered from all devices, C candidates -> scores, B x C
            -> own group and empty places masked -> mean of -log softmax at the own positive

For query i of B, with candidates j: every row's positive, then every row's hard negatives, of all
devices (van den Oord et al., arXiv 1807.03748, equation 4; hard negatives are shared by the whole
batch, arXiv 2505.11293, section 4)::

    loss_i = -log( exp(cos(q_i, p_i) / t) / sum_j allowed(i, j) exp(cos(q_i, d_j) / t) )

``allowed(i, j)`` is 1 for the own positive, 0 for whatever else is of row i's group, 0 for what is
of group ``NOBODY``, and 1 otherwise. sentence-transformers' losses know no groups; where there are
none, this one is equal to them (the tests compare).

Legend: B rows of this device's slice, W of the whole batch, D width, H hard negatives a row,
C = W (1 + H) candidates.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.util import all_gather, all_gather_with_grad, get_rank
from torch import Tensor, nn

from b3_core.errors import InputError
from b3_core.pairs import NOBODY
from b3_core.vision import has_flat_tokens


class GroupedInfoNCE(CachedLossMixin, nn.Module):  # type: ignore[misc]
    """InfoNCE with a group mask, for sentence-transformers' trainer.

    Parameters
    ----------
    model
        What turns the columns (query, positive, negative_1, ..., negative_H) into vectors; none
        where they are given as vectors (:meth:`of_vectors`).
    temperature
        Cosines are divided by it.
    gather
        Contrast with the rows of all devices. Needed wherever there are several.
    symmetric
        Contrast each positive with all queries as well, and take the mean of both directions.
    chunk_rows
        Embed so many rows at a time and cache the gradients of the vectors (GradCache: Gao et al.,
        arXiv 2101.06983): memory of one chunk, two forward passes, the same gradient. ``None``
        embeds all rows at once.

    Raises
    ------
    InputError
        ``chunk_rows`` for a static model, whose batches cannot be cut.
    """

    def __init__(
        self,
        model: SentenceTransformer | None = None,
        *,
        temperature: float,
        gather: bool = False,
        symmetric: bool = False,
        chunk_rows: int | None = None,
    ) -> None:
        super().__init__()
        if chunk_rows is not None and model is not None and has_flat_tokens(model):
            raise InputError(
                f"chunk_rows is {chunk_rows}, but the model is static: the tokens of a batch are "
                "in one row, which cannot be cut",
                remedy="leave chunk_rows out",
            )
        self.model = model
        self.temperature = temperature
        self.gather = gather
        self.symmetric = symmetric
        self.mini_batch_size = chunk_rows  # CachedLossMixin's name for it

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss of this device's rows.

        Parameters
        ----------
        sentence_features
            Tokenised columns: query, positive, and hard negatives if there are any.
        labels
            Groups: int64, B x (1 + H), of the row and of its hard negatives, or B where there are
            none. Without them every candidate is of a group of its own. Or bool, B x C: which
            candidates each row is contrasted with, in place of groups.

        Raises
        ------
        ValueError
            They are of another number of rows or columns than there are vectors.
        """
        columns = list(sentence_features)
        if self.mini_batch_size is not None:
            return self.forward_cached(columns, labels)
        return self.of_vectors(embed_columns(self.model, columns), labels)

    def of_vectors(self, columns: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """Return the mean loss of this device's rows, whose vectors another encoder made.

        Parameters
        ----------
        columns
            Queries, positives, and hard negatives if there are any: B x D each.
        labels
            Groups, as for :meth:`forward`.

        Raises
        ------
        ValueError
            There are groups of another number of rows or columns than there are vectors.
        """
        return self.calculate_loss([[part] for part in columns], labels)

    def calculate_loss(
        self,
        reps: list[list[Tensor]],
        labels: Tensor | None = None,
        *,
        with_backward: bool = False,
    ) -> Tensor:
        """Return the loss of vectors, given in chunks; ``with_backward`` leaves gradients on them.

        With gradients cached, the graph of each chunk of scores ends at the gathered vectors, and
        what gathered them is gone through once, at the end.
        """
        query_BD, *column_BD = (torch.cat(chunks) for chunks in reps)
        rows = len(query_BD)
        with torch.autocast(query_BD.device.type, enabled=False):  # bf16 / 0.02 is no score
            everywhere = [self._everywhere(part) for part in (query_BD, *column_BD)]
            shared = [everywhere[0], torch.cat(everywhere[1:])]
            leaves = [part.detach().requires_grad_() for part in shared]
            query_WD, candidate_CD = leaves if with_backward else shared
            first = get_rank() * rows if self.gather else 0
            own_B = first + torch.arange(rows, device=query_BD.device)
            if labels is not None and labels.dtype == torch.bool:
                allowed_BC = labels
            else:
                group_WX = self._groups(labels, own_B, len(column_BD))
                allowed_BC = _allowed(group_WX, own_B)
            batch = _Batch(query_WD, candidate_CD, allowed_BC, first=first)
            loss = query_BD.new_zeros((), dtype=shared[0].dtype)
            for own_b in own_B.split(self.mini_batch_size or rows):
                part = self._sum(batch, own_b) / rows
                if with_backward:
                    part.backward()
                loss = loss + (part.detach() if with_backward else part)
            if with_backward:
                torch.autograd.backward(shared, [leaf.grad for leaf in leaves])
        return loss

    def _sum(self, batch: "_Batch", own_b: Tensor) -> Tensor:
        """Return the summed loss of some rows."""
        score_bC = batch.query_to_candidates(own_b) / self.temperature
        total = nn.functional.cross_entropy(score_bC, own_b, reduction="sum")
        if not self.symmetric:
            return total
        score_bW = batch.positive_to_queries(own_b) / self.temperature
        return (total + nn.functional.cross_entropy(score_bW, own_b, reduction="sum")) / 2

    def _everywhere(self, vector_BD: Tensor) -> Tensor:
        """Return unit vectors in 32 bits or more, of all devices where they are gathered."""
        exact = torch.promote_types(vector_BD.dtype, torch.float32)
        unit_BD = nn.functional.normalize(vector_BD.to(exact), dim=-1)
        return all_gather_with_grad(unit_BD) if self.gather else unit_BD

    def _groups(self, labels: Tensor | None, own_B: Tensor, columns: int) -> Tensor:
        """Return the groups of each row's positive and hard negatives, W x (1 + H)."""
        rows = len(own_B)
        if labels is None:
            group_BX = own_B[:, None] * columns + torch.arange(columns, device=own_B.device)
        elif labels.numel() == rows * columns == len(labels) * columns:
            group_BX = labels.reshape(rows, columns)
        else:
            raise ValueError(
                f"groups are of shape {tuple(labels.shape)}, but vectors of {rows} rows and "
                f"{columns} columns beside the query"
            )
        return all_gather(group_BX) if self.gather else group_BX

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings, for the model card."""
        return {
            "temperature": self.temperature,
            "gather": self.gather,
            "symmetric": self.symmetric,
            "chunk_rows": self.mini_batch_size,
        }


def _allowed(group_WX: Tensor, own_B: Tensor) -> Tensor:
    """Return which candidates each row is contrasted with, by groups: B x C."""
    group_C = group_WX.T.reshape(-1)
    masked_BC = (group_WX[own_B, 0][:, None] == group_C) | (group_C == NOBODY)
    masked_BC[torch.arange(len(own_B), device=own_B.device), own_B] = False
    return ~masked_BC


@dataclass(frozen=True, eq=False)
class _Batch:
    """The vectors of a whole batch, of all devices, and what is contrasted with what."""

    query_WD: Tensor
    candidate_CD: Tensor
    """Positives of all rows, then their first hard negatives, and so on."""
    allowed_BC: Tensor
    """For the rows of this device, of which ``first`` is the first; asking ``own_b`` would wait."""
    first: int

    def __post_init__(self) -> None:
        if self.allowed_BC.shape[1] != len(self.candidate_CD):
            raise ValueError(
                f"a mask over {self.allowed_BC.shape[1]} candidates, of which there are "
                f"{len(self.candidate_CD)}"
            )

    def query_to_candidates(self, own_b: Tensor) -> Tensor:
        """Return the cosines of some rows' queries, b x C; -inf where it is no negative."""
        allowed_bC = self.allowed_BC[own_b - self.first]
        cosine_bC = self.query_WD[own_b] @ self.candidate_CD.T
        return cosine_bC.masked_fill(~allowed_bC, -torch.inf)

    def positive_to_queries(self, own_b: Tensor) -> Tensor:
        """Return the cosines of some rows' positives with queries, b x W; -inf likewise."""
        allowed_bW = self.allowed_BC[own_b - self.first, : len(self.query_WD)]
        cosine_bW = self.candidate_CD[own_b] @ self.query_WD.T
        return cosine_bW.masked_fill(~allowed_bW, -torch.inf)
