"""Aggregation rules for LoRA factors of mixed ranks. All but zero-padding give a list of products for one kernel.

W: the federation's learned change of one matrix, as factors B: (out, R), A: (R, in) with scale 1. Client k got its
first r_k columns and rows (columns over the scale s_k) and sends its changes dB: (out, r_k), dA: (r_k, in).
p_k: its share of the weights. The rules, with their result if no client changes anything:

delta       W + sum p_k (s_k B_k A_k - W[r_k]), written as B (A + sum p_k dA_k) + sum p_k s_k dB_k A_k. Exactly W.
product     sum p_k s_k B_k A_k, the paper's rule. Component i of W times sum of p_k over r_k > i: higher ones fade.
rank_aware  As product, with component i averaged over the clients that have it, and others unchanged (raFLoRA). W.
zero_pad    Separate means of A and B, each padded with zeros (HetLoRA). Fades by the square of product's factor.
stack       W + sum p_k s_k B_k A_k of factors that start fresh in each round (FLoRA). W, since B starts at zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class TrainedFactors:
    """One client's factors of one matrix after training, a: (r, in), b: (out, r), with the change of each."""

    share: float
    scale: float
    a: Tensor
    b: Tensor
    change_of_a: Tensor
    change_of_b: Tensor

    @property
    def rank(self) -> int:
        """The client's rank."""
        return len(self.a)


def products(rule: str, w: Pair, clients: Sequence[TrainedFactors]) -> list[Pair]:
    """Pairs whose products sum to the next W, for every rule except zero_pad. `w` is (B, A)."""
    if rule == "delta":
        next_a = w[1] + _padded_sum(
            [client.change_of_a for client in clients], [client.share for client in clients], len(w[1])
        )
        return [(w[0], next_a.to(w[1].dtype)), *(_scale(client, client.change_of_b) for client in clients)]
    if rule == "stack":
        return [w, *(_scale(client, client.b) for client in clients)]
    if rule == "product":
        return [_scale(client, client.b) for client in clients]
    shares = _component_shares(clients, len(w[1]))
    remainder = [(w[0][:, shares == 0], w[1][shares == 0])] if (shares == 0).any() else []
    return [
        (_scale(client, client.b)[0] / shares[: client.rank].to(client.b.dtype), client.a) for client in clients
    ] + remainder


def average_zero_padded(w: Pair, clients: Sequence[TrainedFactors]) -> Pair:
    """Means of the padded factors, as (B, A). Components that no client has keep their values."""
    rank, weights = len(w[1]), [client.share for client in clients]
    a = _padded_sum([client.a for client in clients], weights, rank)
    b = _padded_sum([client.b.T * client.scale for client in clients], weights, rank)
    missing = _component_shares(clients, rank) == 0
    a[missing], b[missing] = w[1][missing].double(), w[0].T[missing].double()
    return b.T.to(w[0].dtype).contiguous(), a.to(w[1].dtype)


def _scale(client: TrainedFactors, b: Tensor) -> Pair:
    return b * (client.share * client.scale), client.a


def _component_shares(clients: Sequence[TrainedFactors], rank: int) -> Tensor:
    """Joint share of the clients that have each component: (rank,) float64."""
    shares = torch.zeros(rank, dtype=torch.float64)
    for client in clients:
        shares[: client.rank] += client.share
    return shares


def _padded_sum(rows: Sequence[Tensor], weights: Sequence[float], rank: int) -> Tensor:
    """Weighted sum of matrices, each padded with zero rows: (rank, columns) float64."""
    total = torch.zeros(rank, rows[0].shape[1], dtype=torch.float64)
    for matrix, weight in zip(rows, weights, strict=True):
        total[: len(matrix)].add_(matrix.double(), alpha=weight)
    return total
