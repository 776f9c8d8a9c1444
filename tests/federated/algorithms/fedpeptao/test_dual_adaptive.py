"""The server's step against a loop over the clients, over several rounds, and against sums done by hand."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from federated.contract import ClientFacts, ClientUpdate, RoundFacts
from federated.payloads.payload import Payload
from federated.registry import make_config, server_half
from federated.trainable import Initialization, ModelFacts, Prefix, TensorFacts

NAME = "prompt_embeddings/layer.0"
# One local step at rate 1: (w - w_k) / (K_k eta) is w - w_k.
UNIT = {"local_steps": 1, "learning_rate": 1.0, "layer_share": 1.0, "server_lr_decay": 1.0}
MODEL = ModelFacts(
    model_type="tiny",
    task_type="SEQ_CLS",
    tensors=(
        TensorFacts(
            name="prompt_embeddings",
            shape=(1, 4),
            dtype="F32",
            initialisation=Initialization(kind="normal", scale=0.5),
        ),
    ),
    layers=1,
    hidden=2,
    kv_width=2,
    weights_digest="sha256:" + "0" * 64,
)


class Server:
    """Rounds by hand: `changes` are w_k - w of the clients by ordinal; notes are kept as the service keeps them."""

    def __init__(self, examples: Sequence[int], registered: int | None = None, **settings: Any) -> None:
        self.config = make_config("fedpeptao", UNIT | settings)
        self.half = server_half("fedpeptao", self.config, Prefix(num_virtual_tokens=1))
        self.examples = examples
        self.registered = len(examples) if registered is None else registered
        self.notes: dict[int, Payload] = {}
        self.number = 0
        state = self.half.start(MODEL, 0, None)
        scores = Payload({"layer_scores": torch.tensor([1.0])})
        self.state = self.half.aggregate(
            state, [ClientUpdate(0, 1, 1.0, scores, {}, None)], RoundFacts(1, "prepare", 9, self.registered)
        ).state

    def round(self, changes: dict[int, Tensor]) -> Tensor:
        self.number += 1
        updates = [
            ClientUpdate(
                ordinal,
                self.examples[ordinal],
                float(self.examples[ordinal]),
                Payload({NAME: change}),
                {},
                self.notes.get(ordinal),
            )
            for ordinal, change in changes.items()
        ]
        step = RoundFacts(self.number, "train", 9, self.registered)
        outcome = self.half.aggregate(self.state, updates, step)
        self.state = Payload.decode(outcome.state.encode())
        self.notes |= {ordinal: Payload.decode(note.encode()) for ordinal, note in outcome.notes.items()}
        return self.state[NAME]


def drawn(rounds: int, clients: Sequence[Sequence[int]]) -> list[dict[int, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {ordinal: torch.randn(1, 4, generator=generator) * 0.1 for ordinal in clients[number % len(clients)]}
        for number in range(rounds)
    ]


def by_loop(server: Server, rounds: Sequence[dict[int, Tensor]], chained: bool = False) -> Tensor:
    """The released loop, over the clients of each round, with the state of its own in float64."""
    settings: Any = server.config
    value = server.state[NAME].double()
    control = torch.zeros_like(value)
    variates = {ordinal: torch.zeros_like(value) for ordinal in range(len(server.examples))}
    drift, momentum = None, torch.zeros_like(value)
    for changes in rounds:
        total = sum(server.examples[ordinal] for ordinal in changes)
        shares = {ordinal: server.examples[ordinal] / total for ordinal in changes}
        local = {ordinal: value + change.double() for ordinal, change in changes.items()}
        mean = sum((shares[ordinal] * local[ordinal] for ordinal in changes), torch.zeros_like(value))
        fresh = {ordinal: variates[ordinal] - control + (value - local[ordinal]) for ordinal in changes}
        moved = sum((fresh[ordinal] - variates[ordinal] for ordinal in changes), torch.zeros_like(value))
        control = control + len(changes) / server.registered * moved / len(changes)
        variates |= fresh
        before, drift = drift, value - mean
        if before is None:
            value = mean.float().double()
            continue
        walked, speed = mean, momentum
        values, speeds = torch.zeros_like(value), torch.zeros_like(value)
        for ordinal in changes:
            if not chained:
                walked, speed = mean, momentum
            speed = 0.9 * speed + 0.1 * (before - drift) + (control - variates[ordinal])
            walked = walked - settings.server_lr * speed
            values += shares[ordinal] * walked
            speeds += shares[ordinal] * speed
        value, momentum = values.float().double(), speeds
    return value


COHORTS = [[0, 1, 2], [1, 3], [0, 2, 3]]


class TestStep:
    def test_the_closed_form_is_the_loop_over_the_clients(self) -> None:
        server = Server([5, 9, 2, 7])
        rounds = drawn(6, COHORTS)
        expected = by_loop(server, rounds)
        for changes in rounds:
            found = server.round(changes)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)

    def test_chained_is_the_loop_that_goes_on_from_the_client_before(self) -> None:
        server, independent = Server([5, 9, 2, 7], server_mode="chained"), Server([5, 9, 2, 7])
        rounds = drawn(6, COHORTS)
        expected = by_loop(server, rounds, chained=True)
        for changes in rounds:
            found, other = server.round(changes), independent.round(changes)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
        assert not torch.allclose(found, other, atol=1e-4)

    def test_chained_is_independent_for_one_client(self) -> None:
        runs = [Server([4], server_mode=mode) for mode in ("chained", "independent")]
        for changes in drawn(5, [[0]]):
            one, other = (server.round(changes) for server in runs)
            assert torch.equal(one, other)

    def test_without_control_the_momentum_telescopes(self) -> None:
        # sum(0.9^(t-j) (D_{j-1} - D_j), j = 2..t) = 0.9^(t-2) D_1 - D_t + 0.1 sum(0.9^(t-1-j) D_j, j = 2..t-1).
        server = Server([3, 3], control_variates=False)
        drifts = []
        for changes in drawn(5, [[0, 1]]):
            server.round(changes)
            drifts.append(server.state[NAME + "/drift"])
        last = len(drifts)
        summed = 0.9 ** (last - 2) * drifts[0] - drifts[-1]
        for number in range(2, last):
            summed = summed + 0.1 * 0.9 ** (last - 1 - number) * drifts[number - 1]
        torch.testing.assert_close(server.state[NAME + "/momentum"], 0.1 * summed, rtol=0, atol=1e-12)

    def test_the_gradient_may_be_the_mean_update_itself(self) -> None:
        server = Server([1], control_variates=False, server_grad="delta")
        start = server.state[NAME]
        server.round({0: torch.full((1, 4), 0.5)})
        found = server.round({0: torch.full((1, 4), 0.25)})
        # drift -0.25, v = -0.025, value = start + 0.5 + 0.25 + 0.05 * 0.025.
        torch.testing.assert_close(found, start + 0.75125)

    def test_the_first_round_is_the_mean(self) -> None:
        server = Server([1, 3])
        start = server.state[NAME]
        found = server.round({0: torch.full((1, 4), 0.4), 1: torch.zeros(1, 4)})
        torch.testing.assert_close(found, start + 0.1)
        assert not server.state[NAME + "/momentum"].any()


class TestControl:
    def test_with_everybody_and_equal_shares_the_control_term_is_zero(self) -> None:
        with_control, without = Server([4, 4, 4]), Server([4, 4, 4], control_variates=False)
        for changes in drawn(4, [[0, 1, 2]]):
            one, other = with_control.round(changes), without.round(changes)
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        control = with_control.state[NAME + "/control"]
        torch.testing.assert_close(control, torch.stack([n[NAME] for n in with_control.notes.values()]).mean(0))

    def test_more_local_steps_weigh_more_and_the_mean_step_is_divided_by_them(self) -> None:
        # 1 and 3 steps of rate 0.5; c' = change / -(K eta): -1 and -2; c = (1 * -1 + 3 * -2) / 4 * 2 / 4.
        server = Server([4, 12], registered=4, local_steps=None, local_epochs=1.0, batch_size=4, learning_rate=0.5)
        server.round({0: torch.full((1, 4), 0.5), 1: torch.full((1, 4), 3.0)})
        assert server.notes[0][NAME].tolist() == [[-1.0] * 4]
        assert server.notes[1][NAME].tolist() == [[-2.0] * 4]
        assert server.state[NAME + "/control"].tolist() == [[-0.875] * 4]

    @pytest.mark.parametrize(("update", "second"), [("scaffold2", -0.5), ("avg_grad", -0.25)])
    def test_the_second_variate_starts_from_the_first_or_not(self, update: str, second: float) -> None:
        # One of two clients: c' = -0.5, c = 1/2 * -0.5; then -0.5 + 0.25 - 0.25 or -0.25.
        server = Server([1, 1], cv_update=update)
        server.round({0: torch.full((1, 4), 0.5)})
        server.round({0: torch.full((1, 4), 0.25)})
        assert server.notes[0][NAME].tolist() == [[second] * 4]

    def test_no_message_to_a_client_has_a_moment_or_a_variate(self) -> None:
        server = Server([4, 4])
        for changes in drawn(2, [[0, 1]]):
            server.round(changes)
        client = ClientFacts(0, "", 4, {}, {}, server.notes[0], 2)
        told = server.half.plan(server.state, [client], RoundFacts(3, "train", 9, 2))[0]
        assert list(told) == [NAME]


class TestRate:
    def test_the_rate_falls_each_round_down_to_its_floor(self) -> None:
        server = Server([1], server_lr=0.1, server_lr_decay=0.5, server_lr_floor=0.03)
        rates: list[float] = []
        for _ in range(4):
            self.told(server, rates)
        assert rates == [0.1, 0.05, 0.03, 0.03]

    def test_a_rate_of_zero_stays_zero_and_keeps_nothing(self) -> None:
        server = Server([1], server_lr=0.0)
        rates: list[float] = []
        self.told(server, rates)
        assert rates == [0.0]
        server.round({0: torch.ones(1, 4)})
        assert list(server.state) == [NAME]
        assert server.notes == {}

    def told(self, server: Server, rates: list[float]) -> None:
        update = ClientUpdate(0, 1, 1.0, Payload({NAME: torch.zeros(1, 4)}), {}, None)
        step = RoundFacts(len(rates) + 1, "train", 9, 1)
        rates.append(server.half.aggregate(server.state, [update], step).metrics["server_rate"])
