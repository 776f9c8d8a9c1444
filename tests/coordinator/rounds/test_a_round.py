"""A round over real HTTP, from the draw to the adapter."""

from tests.support.stage import Stage


class TestARound:
    def test_two_rounds_of_two_clients_end_in_an_adapter(self, stage: Stage) -> None:
        stage.running()
        assert stage.show()["waiting_for"].startswith("collecting 0/2, 2 not started")
        stage.play(2)
        shown = stage.show()
        assert (shown["state"], shown["reason"]) == ("completed", "stopped_rounds")
