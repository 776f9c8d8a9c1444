"""A payload as the message that is sent."""

from federated.payloads.payload import Payload


def data_bytes(payload: Payload) -> int:
    """Of all tensors together: what follows the length of the header, and the header."""
    message = payload.encode()
    return len(message) - 8 - int.from_bytes(message[:8], "little")
