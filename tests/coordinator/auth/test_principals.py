"""Authentication and roles: API keys and public keys."""

from base64 import urlsafe_b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from nacl.bindings import crypto_core_ed25519_add

from coordinator.auth.credentials import (
    hash_secret,
    is_signature_valid,
    new_secret,
    read_public_key,
    secret_matches,
    split_secret,
)
from coordinator.auth.principals import Principal, Role, require_role
from coordinator.errors import Forbidden, NotFound
from tests.support.service import Bearer, EnrolledWorker, Service, problem


@pytest.fixture
def worker(service: Service) -> EnrolledWorker:
    return service.new_worker(service.new_organization("Bank"), "gpu-1")


SMALL_ORDER_Y = [
    0,
    1,
    2**255 - 20,
    2**255 - 19,
    2**255 - 18,
    0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
]


class TestPublicKeys:
    @pytest.mark.parametrize("y", SMALL_ORDER_Y)
    @pytest.mark.parametrize("sign", [0, 2**255])
    def test_one_of_small_order_is_none(self, y: int, sign: int) -> None:
        with pytest.raises(ValueError, match="small order"):
            read_public_key(urlsafe_b64encode((y + sign).to_bytes(32, "little")).decode())

    def test_generated_keys_are_accepted_and_others_of_the_same_curve_are_not(self) -> None:
        torsion = SMALL_ORDER_Y[-1].to_bytes(32, "little")
        for _ in range(50):
            raw = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
            assert read_public_key(urlsafe_b64encode(raw).decode()).public_bytes_raw() == raw
            mixed = crypto_core_ed25519_add(raw, torsion)
            with pytest.raises(ValueError, match="prime-order group"):
                read_public_key(urlsafe_b64encode(mixed).decode())

    def test_a_point_off_the_curve_is_refused(self) -> None:
        with pytest.raises(ValueError, match="prime-order group"):
            read_public_key(urlsafe_b64encode((2).to_bytes(32, "little")).decode())

    def test_a_signature_that_holds_over_everything_holds_over_nothing(self) -> None:
        zero = (1).to_bytes(32, "little")
        Ed25519PublicKey.from_public_bytes(zero).verify(zero + bytes(32), b"what nobody signed")
        key, signature = (urlsafe_b64encode(raw).decode() for raw in (zero, zero + bytes(32)))
        assert not is_signature_valid(key, signature, b"what nobody signed")


class TestCredentials:
    def test_a_request_without_any_is_refused(self, service: Service) -> None:
        answer = service.anonymous.get("/v1/organizations")
        problem(answer, 401, "credentials_missing")
        assert answer.headers["www-authenticate"] == "Bearer"

    @pytest.mark.parametrize(
        ("token", "code"),
        [
            ("nonsense", "token_invalid"),
            ("a.b.c", "token_invalid"),
            ("flk_", "key_invalid"),
            ("flk_key_0000_1234", "key_invalid"),
            ("flk_key_0000_" + "0" * 64, "key_invalid"),
            ("fle_tok_0000_" + "0" * 64, "token_invalid"),
        ],
    )
    def test_what_was_never_given_out_is_refused(self, service: Service, token: str, code: str) -> None:
        problem(service.client(Bearer(token)).get("/v1/organizations"), 401, code)

    def test_a_key_with_another_secret_is_refused(self, service: Service) -> None:
        other = service.admin_key[:-1] + ("0" if service.admin_key[-1] != "0" else "1")
        problem(service.with_key(other).get("/v1/organizations"), 401, "key_invalid")

    def test_another_scheme_is_refused(self, service: Service) -> None:
        answer = service.anonymous.get("/v1/organizations", headers={"Authorization": f"Basic {service.admin_key}"})
        problem(answer, 401, "credentials_missing")


def principal(role: Role, organization_id: str | None = "org_1") -> Principal:
    return Principal("key", "key_1", organization_id, role)


class TestRoles:
    def test_an_admin_may_everything_everywhere(self) -> None:
        require_role(principal("admin", None), organization_id="org_2")

    @pytest.mark.parametrize("role", ["owner", "operator", "viewer", "worker"])
    def test_another_organization_is_answered_like_nothing(self, role: Role) -> None:
        with pytest.raises(NotFound):
            require_role(principal(role), "owner", "operator", "viewer", "worker", organization_id="org_2")

    @pytest.mark.parametrize("role", ["operator", "viewer", "worker"])
    def test_too_small_a_role_is_told_which_it_takes(self, role: Role) -> None:
        with pytest.raises(Forbidden, match="role owner"):
            require_role(principal(role), "owner", organization_id="org_1")


class TestSecrets:
    def test_a_text_splits_into_what_it_was_made_of(self) -> None:
        text, kept = new_secret("flk_", "key_abc")
        parts = split_secret("flk_", text)
        assert parts is not None
        assert parts[0] == "key_abc"
        assert secret_matches(parts[1], kept)
        assert not secret_matches(parts[1] + "0", kept)
        assert kept == hash_secret(parts[1])

    @pytest.mark.parametrize("text", ["", "flk_", "flk_abc", "flk__", "other_key_1"])
    def test_other_texts_do_not_split(self, text: str) -> None:
        assert split_secret("flk_", text) is None
