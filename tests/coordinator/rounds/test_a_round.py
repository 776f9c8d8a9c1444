"""A round over real HTTP, from the draw to the adapter."""

from tests.support.federation_rig import FederationRig


class TestARound:
    def test_two_rounds_of_two_clients_end_in_an_adapter(self, rig: FederationRig) -> None:
        rig.running()
        assert rig.show()["waiting_for"].startswith("collecting 0/2, 2 not started")
        rig.play(2)
        shown = rig.show()
        assert (shown["state"], shown["reason"]) == ("completed", "stopped_rounds")
