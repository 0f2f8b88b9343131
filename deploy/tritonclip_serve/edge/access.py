"""How this process reaches its own tritonserver: plainly, or under TLS with an identity made for the occasion."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import tritonclient.grpc as triton

from tritonclip_serve.edge.tls import ServerTls

_OPTIONS: tuple[tuple[str, Any], ...] = (
    # A proxy named in the environment must not stand between this machine and itself.
    ("grpc.enable_http_proxy", 0),
    # A server that was started again is found at once.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
)
_NAME = "tritonclip serve"
_ROOTS = "client-roots.pem"
# Longer than a process lives, for a certificate whose key never leaves its memory.
_LIFETIME = timedelta(days=3650)


class Access:
    """Makes clients of one tritonserver on loopback.

    Under mutual TLS the server's own certificate is seldom one that a caller could show, so this process makes itself
    a certificate whose key stays in its memory, and has tritonserver accept it beside those of `client_ca`.

    Args:
        tls: the server's files; None: plain.
    """

    def __init__(self, tls: ServerTls | None = None) -> None:
        self._tls = tls
        self._identity = _make_identity() if tls is not None and tls.client_ca is not None else None

    def arguments(self, run_dir: Path) -> list[str]:
        """The flags of tritonserver; what they need is written to `run_dir`."""
        tls = self._tls
        if tls is None:
            return []
        files = [f"--grpc-server-cert={tls.certificate}", f"--grpc-server-key={tls.key}"]
        if tls.client_ca is None or self._identity is None:
            return ["--grpc-use-ssl=true", *files]
        roots = run_dir / _ROOTS
        roots.write_bytes(tls.client_ca.read_bytes() + b"\n" + self._identity[1])
        return ["--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true", *files, f"--grpc-root-cert={roots}"]

    def client(self, address: str) -> Any:
        """A `tritonclient.grpc.InferenceServerClient`; close it."""
        credentials, options = self._credentials()
        return triton.InferenceServerClient(
            address, ssl=credentials is not None, creds=credentials, channel_args=options
        )

    def channel(self, address: str) -> grpc.Channel:
        """A gRPC channel; close it."""
        credentials, options = self._credentials()
        if credentials is None:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, credentials, options=options)

    def _credentials(self) -> tuple[grpc.ChannelCredentials | None, list[tuple[str, Any]]]:
        options = list(_OPTIONS)
        if self._tls is None:
            return None, options
        key, certificate = self._identity or (None, None)
        # The very certificate that the server shows is what is trusted: no authority has to be known here.
        roots = self._tls.certificate.read_bytes()
        options.append(("grpc.ssl_target_name_override", self._tls.own_name()))
        return grpc.ssl_channel_credentials(roots, key, certificate), options


def _make_identity() -> tuple[bytes, bytes]:
    """A private key and a certificate signed by itself, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _NAME)])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
        # It signs nobody else.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return encoded, certificate.public_bytes(serialization.Encoding.PEM)
