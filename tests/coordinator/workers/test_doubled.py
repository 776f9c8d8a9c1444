"""Two agents with one key: the replaced one is refused, and its owner can see it."""

from coordinator.db.sessions import reading
from coordinator.models import Worker
from coordinator.workers.lifecycle import REMEMBERED_BOOTS
from tests.support.audit_log import chain_of
from tests.support.service import EnrolledWorker, Organization, Service, problem, rotate

FIRST, SECOND, THIRD = "boot-1111", "boot-2222", "boot-3333"


def beat(worker: EnrolledWorker, *boots: str) -> None:
    for boot in boots:
        worker.heartbeat(boot_id=boot).raise_for_status()


def doubles(service: Service, bank: Organization) -> list[tuple[str, str]]:
    """Refused and present life of each entry in the owner's audit log."""
    found = [entry["details"] for entry in chain_of(service, bank.id) if entry["action"] == "worker.doubled"]
    return [(details["refused_boot_id"], details["present_boot_id"]) for details in found]


class TestAnAgentThatWasReplaced:
    def test_it_is_refused_and_the_newer_one_goes_on(
        self, service: Service, bank: Organization, worker: EnrolledWorker
    ) -> None:
        beat(worker, FIRST, SECOND)
        before = bank.viewer.get(f"/v1/workers/{worker.id}").json()
        assert before["doubled_at"] is None
        refusal = problem(worker.heartbeat(boot_id=FIRST), 409, "worker_doubled")
        assert "two agents run with one key" in refusal["detail"]
        answer = worker.heartbeat(boot_id=SECOND)
        assert answer.status_code == 200
        shown = bank.viewer.get(f"/v1/workers/{worker.id}").json()
        assert shown["doubled_at"] == answer.json()["doubled_at"] is not None
        assert worker.http.get("/v1/workers/me").json()["doubled_at"] == shown["doubled_at"]
        with reading() as session:
            assert session.get_one(Worker, worker.id).boot_id == SECOND

    def test_what_it_says_of_itself_does_not_count(self, bank: Organization, worker: EnrolledWorker) -> None:
        beat(worker, FIRST, SECOND)
        before = bank.viewer.get(f"/v1/workers/{worker.id}").json()
        problem(worker.heartbeat(boot_id=FIRST, capabilities={"slots": 7}), 409, "worker_doubled")
        after = bank.viewer.get(f"/v1/workers/{worker.id}").json()
        assert {**after, "doubled_at": None} == before

    def test_each_pair_stands_once_in_the_audit_log(
        self, service: Service, bank: Organization, worker: EnrolledWorker
    ) -> None:
        beat(worker, FIRST, SECOND)
        for _ in range(2):
            worker.heartbeat(boot_id=FIRST)
        beat(worker, SECOND, THIRD)
        for boot in (SECOND, FIRST, SECOND, FIRST):
            worker.heartbeat(boot_id=boot)
        assert doubles(service, bank) == [(FIRST, SECOND), (SECOND, THIRD), (FIRST, THIRD)]

    def test_a_new_key_shuts_the_other_out_and_ends_it(self, bank: Organization, worker: EnrolledWorker) -> None:
        beat(worker, FIRST, SECOND)
        problem(worker.heartbeat(boot_id=FIRST), 409, "worker_doubled")
        old = worker.identity.private_key
        rotate(worker)
        assert bank.viewer.get(f"/v1/workers/{worker.id}").json()["doubled_at"] is None
        assert worker.heartbeat(boot_id=SECOND).json()["doubled_at"] is None
        worker.identity.private_key = old
        problem(worker.heartbeat(boot_id=FIRST), 401, "token_invalid")


class TestRestarts:
    def test_no_number_of_restarts_is_taken_for_a_second_agent(
        self, service: Service, bank: Organization, worker: EnrolledWorker
    ) -> None:
        for life in range(REMEMBERED_BOOTS + 5):
            beat(worker, f"boot-{life:04}", f"boot-{life:04}")
        assert bank.viewer.get(f"/v1/workers/{worker.id}").json()["doubled_at"] is None
        assert doubles(service, bank) == []
        with reading() as session:
            kept = session.get_one(Worker, worker.id).replaced_boots
        assert kept is not None
        assert [boot["boot_id"] for boot in kept] == [f"boot-{life:04}" for life in range(4, REMEMBERED_BOOTS + 4)]
