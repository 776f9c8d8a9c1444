"""Loading of downloaded adapters by their kind, for every algorithm."""

from pathlib import Path

import pytest
import torch

from examples.quickstart.baselines import load_model
from federated import registry
from federated.contract import ClientFacts, ClientUpdate, RoundFacts
from federated.export.adapter_files import write_adapter
from federated.trainable import Full, Lora
from tests.support.training import COLORS, FEDERATION_SEED, make_node, work_of
from worker_agent.training.session import SessionFactory

pytestmark = pytest.mark.once

STEP = RoundFacts(1, "train", 2, 1)


def test_every_algorithms_export_is_the_model_its_clients_evaluated(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    kinds = set[str]()
    for name, entry in registry.algorithms().items():
        for trainable in (Full(), Lora(r=2)):
            if trainable.kind not in entry.trainables:
                continue
            config = registry.make_config(name, {})
            work = work_of("bert", trainable)
            workbench = SessionFactory(node)
            session = workbench.open(work, "colors", 3, {})
            facts = session.facts
            server = registry.server_half(name, config, trainable)
            client = registry.client_half(name, config, trainable)
            state = server.start(facts, FEDERATION_SEED, None)
            one = ClientFacts(0, "one", session.examples, {}, {}, None, 0)
            result = client.run(server.plan(state, [one], STEP)[0], session, None)
            update = ClientUpdate(0, session.examples, result.weight, result.update, {}, None)
            state = server.aggregate(state, [update], STEP).state
            adapter = server.export(state)
            folder = tmp_path / f"{name}-{trainable.kind}"
            write_adapter(folder, adapter, trainable, facts, "acme/bert", {})
            kinds.add(adapter.kind)

            fresh = workbench.open(work, "colors", 3, {})
            client.apply(server.plan(state, [one], RoundFacts(1, "evaluate", 2, 1))[0], fresh, None, "shared")
            inputs = dict(next(fresh.batches(range(5), 5)).inputs)
            model = load_model(folder, Path(node.models["bert"]), len(COLORS.labels or ()))
            with torch.no_grad():
                torch.testing.assert_close(model(**inputs).logits, fresh.model(**inputs).logits, rtol=1e-4, atol=1e-5)
    assert kinds == {"ledger", "peft"}
