"""REST client of an organization: requests, and a federation that it creates, starts, waits for and downloads."""

import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import httpx

FINAL_STATES = ("completed", "failed", "cancelled")
POLLING_SECONDS = 0.5


class RequestFailed(SystemExit):
    """A failed request. The text is for the user."""


class Api:
    """The REST API with the key of an organization or of the administrator."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    @classmethod
    def with_key(cls, url: str, key: str) -> Self:
        """The API at `url`."""
        return cls(httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60))

    def __call__(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send a request and return the JSON of its response. Raises RequestFailed with the problem document."""
        response = self._http.request(method, path, json=body)
        if response.is_error:
            raise RequestFailed(f"{method} {path}: {response.status_code} {response.text}")
        return response.json() if response.content else None

    def items(self, path: str) -> list[Mapping[str, Any]]:
        """The items of all pages of a list."""
        page = self("GET", f"{path}?limit=100")
        items = list(page["items"])
        while page.get("next_cursor"):
            page = self("GET", f"{path}?limit=100&cursor={page['next_cursor']}")
            items += page["items"]
        return items

    def download(self, path: str) -> bytes:
        """Return the body of a GET."""
        response = self._http.get(path)
        response.raise_for_status()
        return response.content

    def new_organization(self, name: str, *roles: str) -> tuple[str, list[str]]:
        """Create an organization with an API key for each role, as the administrator. Return its id and the keys."""
        organization = self("POST", "/v1/organizations", {"name": name})["id"]
        path = f"/v1/organizations/{organization}/api-keys"
        return organization, [self("POST", path, {"name": role, "role": role})["key"] for role in roles]

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


@dataclass(frozen=True)
class Participant:
    """An organization that takes part in a federation. `client`: the request that registers its client."""

    api: Api
    organization_id: str
    client: Mapping[str, Any]


class Federation:
    """A federation as its owner sees it. `client_ids`: in the order of the participants, if it was created here."""

    def __init__(self, owner: Api, federation_id: str, client_ids: Sequence[str] = ()) -> None:
        self.id = federation_id
        self.client_ids = list(client_ids)
        self._owner = owner
        self._path = f"/v1/federations/{federation_id}"

    @classmethod
    def create(cls, definition: Mapping[str, Any], participants: Sequence[Participant]) -> Self:
        """Create a draft of the first participant, have the others accept it, and register all clients."""
        owner = participants[0].api
        federation = cls(owner, str(owner("POST", "/v1/federations", definition)["id"]))
        path = federation._path
        for participant in participants[1:]:
            owner("POST", f"{path}/invitations", {"organization_id": participant.organization_id})
            digest = participant.api("GET", path)["definition_digest"]
            participant.api("POST", f"{path}/accept", {"definition_digest": digest})
        for participant in participants:
            federation.client_ids.append(participant.api("POST", f"{path}/clients", participant.client)["id"])
        return federation

    def start(self) -> None:
        """Start the first round."""
        self._owner("POST", f"{self._path}/start")

    def state(self) -> Mapping[str, Any]:
        """The federation now."""
        state: Mapping[str, Any] = self._owner("GET", self._path)
        return state

    def rounds(self) -> list[Mapping[str, Any]]:
        """All rounds so far."""
        return self._owner.items(f"{self._path}/rounds")

    def jobs(self, round_id: str) -> list[Mapping[str, Any]]:
        """All jobs of a round."""
        return self._owner.items(f"/v1/rounds/{round_id}/jobs")

    def wait(self) -> Iterator[Mapping[str, Any]]:
        """The federation at each poll until it ends. The last one is in a final state."""
        while True:
            state = self.state()
            yield state
            if state["state"] in FINAL_STATES:
                return
            time.sleep(POLLING_SECONDS)

    def download(self, folder: Path) -> Path:
        """Unpack the newest adapter into `folder`."""
        with zipfile.ZipFile(BytesIO(self._owner.download(f"{self._path}/adapter"))) as archive:
            archive.extractall(folder)
        return folder
