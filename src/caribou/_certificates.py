"""Files of certificates: whether they can be used, and TLS with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ConfigurationError, InvalidValue

if TYPE_CHECKING:
    import ssl

__all__ = ["check_certificates", "check_identity", "check_ssl_cert_file", "tls_context"]


def tls_context(
    authorities: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """TLS for a client.

    Args:
        authorities: whom to trust, and nobody else; without it SSL_CERT_FILE and SSL_CERT_DIR, else
            the system's.
        certificate: what the client shows of itself.
        key: the key of that, where it is in a file of its own.

    Raises:
        OSError: a file cannot be used; OpenSSL's errors are ones.
    """
    # Late, for programs that never speak TLS.
    import ssl

    context = ssl.create_default_context(cafile=authorities)
    if certificate is not None:
        # Without a passphrase OpenSSL would ask the terminal for one.
        context.load_cert_chain(certificate, key, password="")
    return context


def check_ssl_cert_file(file: str | None) -> None:
    """OpenSSL passes over a file without certificates, and then trusts nobody.

    Raises:
        ConfigurationError: it is such a file, or none.
    """
    try:
        found = not file or b"-----BEGIN " in Path(file).read_bytes()
    except (OSError, ValueError):
        found = False
    if not found:
        raise ConfigurationError("SSL_CERT_FILE must name a readable file of certificates in PEM")


def check_certificates(file: Path) -> None:
    """A file that holds certificates.

    Raises:
        InvalidValue: it is not there, cannot be read, or holds none.
    """
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except (OSError, ValueError):
        raise InvalidValue("must name a readable file of certificates in PEM") from None


def check_identity(certificate: Path, key: Path | None) -> None:
    """A certificate of a client, and the key that belongs to it.

    Raises:
        InvalidValue: the key is not there, cannot be read, needs a passphrase or belongs to another
            certificate.
    """
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError):
        raise InvalidValue(
            "must name a readable PEM file with the certificate's key, without a passphrase"
        ) from None
