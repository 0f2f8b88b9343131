"""The server's certificates, and what callers must show: files checked before anything starts."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from tritonclip_serve.errors import TlsFileError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

INSTALL_HINT = "TLS needs the package cryptography; run: pip install cryptography"


@dataclass(frozen=True)
class ServerTls:
    """PEM files of the server. They are read when it starts: to change them, restart it.

    Attributes:
        certificate: the server's, and below it the intermediate ones.
        key: its private key, not encrypted.
        client_ca: certificates of those who sign the callers' certificates: then a caller needs one (mutual TLS).
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """Refuse files that no caller could get through.

        Raises:
            TlsFileError: a file is missing or no PEM, the key is another certificate's, or the time is not right.
        """
        self.server_context()
        certificate = self._leaf()
        now = datetime.now(timezone.utc)
        if now > certificate.not_valid_after_utc:
            ended = certificate.not_valid_after_utc
            raise TlsFileError(f"--tls-cert {self.certificate} expired at {ended:%Y-%m-%d %H:%M} UTC; renew it")
        if now < certificate.not_valid_before_utc:
            begins = certificate.not_valid_before_utc
            raise TlsFileError(
                f"--tls-cert {self.certificate} is not valid before {begins:%Y-%m-%d %H:%M} UTC; check the clock"
            )
        self.own_name()

    def server_context(self) -> ssl.SSLContext:
        """What the edge encrypts with: TLS 1.2 or later.

        Raises:
            TlsFileError: a file is missing or no PEM, or the key is another certificate's.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        _read("--tls-cert", self.certificate)
        _read("--tls-key", self.key)
        try:
            # An encrypted key would otherwise be asked about on the terminal.
            context.load_cert_chain(self.certificate, self.key, password=lambda: b"")
        except ssl.SSLError as error:
            raise TlsFileError(
                f"--tls-cert {self.certificate} and --tls-key {self.key} do not go together ({_reason(error)}); give "
                "a PEM certificate and its own private key, not encrypted"
            ) from error
        if self.client_ca is not None:
            _read("--tls-client-ca", self.client_ca)
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise TlsFileError(
                    f"--tls-client-ca {self.client_ca} holds no certificate ({_reason(error)}); give a PEM file"
                ) from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def own_name(self) -> str:
        """A name that the certificate is for, by which this process asks for it on loopback.

        Raises:
            TlsFileError: it names nothing.
        """
        from cryptography import x509

        certificate = self._leaf()
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            names = x509.SubjectAlternativeName([])
        dns = [name.replace("*", "any", 1) for name in names.get_values_for_type(x509.DNSName)]
        addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
        common = [str(one.value) for one in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
        found = [*dns, *addresses, *common]
        if not found:
            raise TlsFileError(
                f"--tls-cert {self.certificate} names no host (no subject alternative name); callers could not check it"
            )
        return found[0]

    def expires_at(self) -> float:
        """When the certificate ends, in seconds since 1970."""
        return self._leaf().not_valid_after_utc.timestamp()

    def _leaf(self) -> Certificate:
        try:
            from cryptography import x509
        except ImportError as error:
            raise TlsFileError(INSTALL_HINT) from error
        return x509.load_pem_x509_certificates(_read("--tls-cert", self.certificate))[0]


def _read(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsFileError(f"{option} {path} cannot be read ({error.strerror}); give a PEM file") from error


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
