"""Signs a manifest in minisign's format, and proves who signed one. py-minisign is needed for it, and nothing else."""

from __future__ import annotations

import getpass
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tritonclip_export.errors import SignatureError

if TYPE_CHECKING:
    from minisign import PublicKey, SecretKey

SIGNATURE = "manifest.json.minisig"
PASSWORD = "TRITONCLIP_SIGN_PASSWORD"
PASSWORD_FILE = "TRITONCLIP_SIGN_PASSWORD_FILE"


class Signer:
    """A secret key that is ready to sign.

    Raises:
        SignatureError: the key cannot be read, or its password is missing or wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key = _unlocked(path)

    def sign(self, content: bytes, fingerprint: str) -> bytes:
        """The signature of a manifest, as the file that minisign writes; its comment is signed too."""
        comment = f"timestamp:{int(time.time())}\tfile:manifest.json\thashed"
        if fingerprint.isascii() and fingerprint.isalnum():
            comment += f"\tfingerprint:{fingerprint}"
        return bytes(self._key.sign(content, trusted_comment=comment)) + b"\n"

    def require_own(self, repository: Path, content: bytes) -> None:
        """Refuse to sign a change of what this key has not signed: somebody else may have changed it before.

        Raises:
            SignatureError: `content`, the manifest, has no signature of this key.
        """
        try:
            _require(repository, content, self._key.get_public_key(), str(self.path))
        except SignatureError as error:
            raise SignatureError(
                f"{error}; its change would be signed together with what stands there: see to it that this is what you "
                f"exported, sign that first (tritonclip sign {repository} --key {self.path}), and change it then"
            ) from error


def require_signature(repository: Path, content: bytes, key: str) -> None:
    """Refuse a manifest that the owner of `key` did not sign.

    Args:
        content: the bytes of the manifest.
        key: minisign's public key, 56 letters, or a file with it.

    Raises:
        SignatureError: there is no signature, or it is of another key or another manifest; or `key` is none.
    """
    try:
        _require(repository, content, _public(key), key)
    except SignatureError as error:
        raise SignatureError(
            f"{error}; copy it again from whoever signs it, or sign it: tritonclip sign {repository} --key KEY"
        ) from error


def _require(repository: Path, content: bytes, key: PublicKey, named: str) -> None:
    from minisign import Error, Signature

    try:
        signature = (repository / SIGNATURE).read_bytes()
    except OSError as error:
        why = "is not signed" if isinstance(error, FileNotFoundError) else f"has no readable signature ({error})"
        raise SignatureError(f"{repository} {why}: {SIGNATURE} by {named} is expected beside its manifest") from error
    try:
        key.verify(content, Signature.from_bytes(signature))
    except Error as error:
        raise SignatureError(f"the manifest of {repository} is not what {named} signed ({error})") from error


def generate(path: Path, *, encrypted: bool) -> Path:
    """Write a new secret key, readable by its owner alone, and `path`.pub, which it returns.

    Raises:
        SignatureError: a file stands there already, or cannot be written.
    """
    from minisign import KeyPair

    public = Path(f"{path}.pub")
    if public.exists() or path.exists():
        raise SignatureError(f"{path if path.exists() else public} exists already; give another path")
    pair = KeyPair.generate()
    if encrypted:
        pair.secret_key.encrypt(_password(f"Password of the new key {path}: ", twice=True))
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(bytes(pair.secret_key) + b"\n")
        public.write_bytes(bytes(pair.public_key) + b"\n")
    except OSError as error:
        raise SignatureError(f"the key cannot be written ({error}); give a path in a folder of yours") from error
    return public


def _unlocked(path: Path) -> SecretKey:
    from minisign import Error, SecretKey

    try:
        key = SecretKey.from_bytes(path.read_bytes())
        if key.is_encrypted():
            key.decrypt(_password(f"Password of {path}: "))
    except OSError as error:
        raise SignatureError(f"the secret key {path} cannot be read ({error.strerror}); {_NEW_KEY}") from error
    except Error as error:
        raise SignatureError(f"the secret key {path} cannot be used ({error}); {_NEW_KEY}") from error
    return key


_NEW_KEY = "give minisign's secret key, or make one: tritonclip sign --generate KEY"


def _public(given: str) -> PublicKey:
    from minisign import Error, PublicKey

    path = Path(given)
    try:
        return PublicKey.from_bytes(path.read_bytes()) if path.is_file() else PublicKey.from_base64(given)
    except (OSError, Error) as error:
        raise SignatureError(
            f"{given} is no public key of minisign ({error}): give the file that ends in .pub, or the 56 letters in "
            "its second line"
        ) from error


def _password(prompt: str, *, twice: bool = False) -> str:
    """From the environment, from a file that it names, or from the terminal."""
    if PASSWORD in os.environ:
        return os.environ[PASSWORD]
    if PASSWORD_FILE in os.environ:
        path = Path(os.environ[PASSWORD_FILE])
        try:
            return path.read_text(encoding="utf-8").rstrip("\n")
        except (OSError, ValueError) as error:
            raise SignatureError(f"{PASSWORD_FILE} is {path}, which cannot be read ({error})") from error
    if not sys.stdin.isatty():
        raise SignatureError(
            f"the key has a password, and nobody can be asked for it here; set {PASSWORD_FILE} to a file that holds "
            f"it, or {PASSWORD}"
        )
    given = getpass.getpass(prompt)
    if twice and getpass.getpass("Again: ") != given:
        raise SignatureError("the two passwords differ; try again")
    return given
