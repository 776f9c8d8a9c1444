"""The five ways to join factors of mixed ranks. All but zero-padding are a list of products for one kernel.

W: what the federation has learned of one matrix, as factors B: (out, R), A: (R, in) with scale 1. Client k got its
first r_k columns and rows (columns over the scale s_k) and sends what it changed: dB: (out, r_k), dA: (r_k, in).
p_k: its share of the weights. With no change at all the answers are:

delta       W, exactly. W + sum p_k (s_k B_k A_k - W[r_k]), written as B (A + sum p_k dA_k) + sum p_k s_k dB_k A_k.
product     component i times sum of p_k over r_k > i: the paper's rule, whose higher components fade by themselves.
rank_aware  W: component i is averaged over those who have it (raFLoRA); what nobody had stays.
zero_pad    A and B apart, each padded with zeros (HetLoRA): fades as `product` does, by the square of that factor.
stack       W + sum p_k s_k B_k A_k of factors that start anew each round (FLoRA): W, since B starts at zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Trained:
    """One client's factors of one matrix after training. a: (r, in), b: (out, r), with what it changed of each."""

    share: float
    scale: float
    a: Tensor
    b: Tensor
    change_of_a: Tensor
    change_of_b: Tensor

    @property
    def rank(self) -> int:
        """Its own rank."""
        return len(self.a)


def products(rule: str, w: Pair, clients: Sequence[Trained]) -> list[Pair]:
    """Pairs whose products sum to the next W, for every rule but zero_pad. `w` is (B, A)."""
    if rule == "delta":
        moved = w[1] + _padded_sum([one.change_of_a for one in clients], [one.share for one in clients], len(w[1]))
        return [(w[0], moved.to(w[1].dtype)), *(_scaled(one, one.change_of_b) for one in clients)]
    if rule == "stack":
        return [w, *(_scaled(one, one.b) for one in clients)]
    if rule == "product":
        return [_scaled(one, one.b) for one in clients]
    held = _held(clients, len(w[1]))
    alone = [(w[0][:, held == 0], w[1][held == 0])] if (held == 0).any() else []
    return [(_scaled(one, one.b)[0] / held[: one.rank].to(one.b.dtype), one.a) for one in clients] + alone


def zero_padded(w: Pair, clients: Sequence[Trained]) -> Pair:
    """Means of the padded factors, as (B, A); components that nobody had keep their values."""
    rank, shares = len(w[1]), [one.share for one in clients]
    a = _padded_sum([one.a for one in clients], shares, rank)
    b = _padded_sum([one.b.T * one.scale for one in clients], shares, rank)
    nobody = _held(clients, rank) == 0
    a[nobody], b[nobody] = w[1][nobody].double(), w[0].T[nobody].double()
    return b.T.to(w[0].dtype).contiguous(), a.to(w[1].dtype)


def _scaled(one: Trained, b: Tensor) -> Pair:
    return b * (one.share * one.scale), one.a


def _held(clients: Sequence[Trained], rank: int) -> Tensor:
    """Of each component, the joint share of the clients that have it: (rank,) float64."""
    held = torch.zeros(rank, dtype=torch.float64)
    for one in clients:
        held[: one.rank] += one.share
    return held


def _padded_sum(rows: Sequence[Tensor], weights: Sequence[float], rank: int) -> Tensor:
    """Weighted sum of matrices that have their first rows alone: (rank, columns) float64."""
    summed = torch.zeros(rank, rows[0].shape[1], dtype=torch.float64)
    for matrix, weight in zip(rows, weights, strict=True):
        summed[: len(matrix)].add_(matrix.double(), alpha=weight)
    return summed
