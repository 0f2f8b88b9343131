"""What gRPC's messages about TLS mean, in words that say what to do."""

from __future__ import annotations

_OTHER_NAMES = "the server's certificate is for other names; call it by a name that it is for"
_REASONS = {
    "certificate has expired": "the server's certificate has expired; renew it, and restart the server",
    "certificate is not yet valid": "the server's certificate is not valid yet; check the clocks of both machines",
    "is not in peer certificate": _OTHER_NAMES,
    "Hostname Verification": _OTHER_NAMES,
    "CERTIFICATE_VERIFY_FAILED": (
        "nobody that is trusted here has signed the server's certificate; give the authority's (root_certificates of "
        "Tls, --tls-ca), and check that this is the right server"
    ),
    "WRONG_VERSION_NUMBER": "the server does not speak TLS there; leave tls out, or check the port",
    "CERTIFICATE_REQUIRED": (
        "the server wants a certificate of the caller; give one (private_key and certificate_chain of Tls)"
    ),
}
_CLOSED = ("Socket closed", "Connection reset", "Endpoint closing")
_MAY_WANT_TLS = (
    "; the connection was closed: a server with TLS does that to callers without it, and one with mutual TLS to those "
    "without a good certificate of their own (tls=; --tls-ca, --tls-cert, --tls-key)"
)


def refusal(details: str) -> str | None:
    """Why TLS refuses this connection now and ever again; None where `details` speak of something else."""
    return next((reason for sign, reason in _REASONS.items() if sign in details), None)


def hint(details: str) -> str:
    """The end of a sentence about a connection that was closed, which may mean TLS; empty for any other."""
    return _MAY_WANT_TLS if any(sign in details for sign in _CLOSED) else ""
