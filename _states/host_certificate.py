"""A host's own key and certificate, issued by the CA of one purpose.

The key is made on the host and never leaves it. The CA, which is a minion, is asked only when the
certificate on disk is missing, due or wrong, so a second run sends nothing. Whatever is wrong is
named. A new certificate is checked before it replaces anything, and key and certificate are swapped
together.
"""

import datetime as dt
import grp
import ipaddress
import os
import pwd
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    HAS_CRYPTOGRAPHY = True
except ImportError:
    HAS_CRYPTOGRAPHY = False

from salt.exceptions import SaltException

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

_PAUSE = 2.0  # seconds between two questions to a CA that does not answer
_DAYS = 397  # where a policy does not say how long a certificate is valid
_REFUSALS = ("not permitted", "could not be identified")


def __virtual__() -> bool | tuple[bool, str]:
    """Load only where Salt's Python has the cryptography library."""
    if HAS_CRYPTOGRAPHY:
        return True
    return False, "host_certificate needs the Python library cryptography"


@dataclass(frozen=True)
class Wanted:
    """What a good certificate looks like: its common name, names, and days left at least.

    Also the option of bootstrap that decides the names.
    """

    common_name: str
    subject_names: tuple[str, ...]
    days_remaining: int
    option: str = "--host"


@dataclass(frozen=True)
class Files:
    """Paths of the certificate, its key and the CA's certificate."""

    certificate: str
    key: str
    ca: str


@dataclass(frozen=True)
class Authority:
    """The CA: its minion (empty for this host), policy, patience in seconds and certificate."""

    server: str
    policy: str
    wait_seconds: int
    pem: bytes


@dataclass(frozen=True)
class Access:
    """Who may read the key: owner, group and permissions."""

    user: str
    group: str
    mode: int


def not_after(certificate: "x509.Certificate") -> dt.datetime:
    """Return when a certificate expires, in UTC, with any version of cryptography."""
    try:
        return certificate.not_valid_after_utc
    except AttributeError:
        return certificate.not_valid_after.replace(tzinfo=dt.timezone.utc)


def not_before(certificate: "x509.Certificate") -> dt.datetime:
    """Return when a certificate begins to be valid, in UTC."""
    try:
        return certificate.not_valid_before_utc
    except AttributeError:
        return certificate.not_valid_before.replace(tzinfo=dt.timezone.utc)


def signed_by(certificate: "x509.Certificate", authorities: Iterable["x509.Certificate"]) -> bool:
    """Say whether one of the CA certificates signed this certificate."""
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (InvalidSignature, ValueError, TypeError):
            continue
        return True
    return False


def _public(key: Any) -> bytes:
    """Return the DER form of a public key, to compare two of them."""
    encoding, layout = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_bytes(encoding, layout))


def faults(
    key_pem: bytes | None,
    certificate_pem: bytes | None,
    ca_pem: bytes,
    wanted: Wanted,
    now: dt.datetime,
) -> list[str]:
    """List why a key and certificate need to be replaced.

    Takes the contents of the files (None for a missing one), what is wanted and the time. Returns
    an empty list for a good pair. Raises ValueError if the CA certificate itself cannot be read.
    """
    authorities = x509.load_pem_x509_certificates(ca_pem)
    if key_pem is None:
        return ["there is no key"]
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError):
        return ["the key cannot be read"]
    if certificate_pem is None:
        return ["there is no certificate"]
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
    except ValueError:
        return ["the certificate cannot be read"]
    found = []
    if _public(key.public_key()) != _public(certificate.public_key()):
        found.append("the certificate belongs to another key")
    if not signed_by(certificate, authorities):
        found.append("another CA signed the certificate")
    return found + _content_faults(certificate, wanted, now)


def canonical(name: str) -> str:
    """Return a DNS name in lower case, an address in the form in which certificates are read."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()


def names_of(certificate: "x509.Certificate") -> list[str]:
    """Return the DNS names and addresses in a certificate, in their order.

    Raises ExtensionNotFound or ValueError where there are none that can be read.
    """
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [canonical(str(name.value)) for name in found]


def _content_faults(
    certificate: "x509.Certificate", wanted: Wanted, now: dt.datetime
) -> list[str]:
    """List what is wrong with the names, purposes and dates of a certificate."""
    found = []
    common_names = [
        attribute.value
        for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    ]
    if common_names != [wanted.common_name]:
        found.append(f"its common name is not {wanted.common_name}")
    try:
        extensions = certificate.extensions
        names = names_of(certificate)
        usages = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except (x509.ExtensionNotFound, ValueError):
        return [*found, "it lacks subject alternative names or extended key usages"]
    found.extend(
        f"it does not name {name}" for name in wanted.subject_names if canonical(name) not in names
    )
    if usages != {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}:
        found.append("its extended key usage is not server and client authentication")
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            found.append("it is a CA certificate")
    except x509.ExtensionNotFound:
        found.append("it does not say that it is no CA")
    left = not_after(certificate) - now
    if left < dt.timedelta(0):
        found.append("it has expired")
    elif left < dt.timedelta(days=wanted.days_remaining):
        found.append(f"it expires in {left.days} days")
    # A CA whose clock is slightly ahead issues a certificate from our near future.
    if not_before(certificate) - now > dt.timedelta(minutes=5):
        found.append("it is not valid yet")
    return found


def exposed(status: os.stat_result, access: Access, user: int, group: int) -> bool:
    """Say whether somebody else could read a key.

    Takes the state of the file, who may read it, and the numbers of that user and group. Such a key
    may have been copied, so it is replaced; any other deviation is only repaired.
    """
    mode = stat.S_IMODE(status.st_mode)
    by_all = mode & ~access.mode & 0o044
    by_group = mode & 0o040 and status.st_gid not in {0, group}
    by_owner = status.st_uid not in {0, user}
    return bool(by_all or by_group or by_owner)


def new_key(key_type: str) -> Any:
    """Return a new private key: ``ec`` (NIST P-256) or ``rsa`` (3072 bits)."""
    if key_type == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=3072)
    return ec.generate_private_key(ec.SECP256R1())


def _read(path: str) -> bytes | None:
    """Return the content of a file, None if it does not exist."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


def _stage(path: str, content: bytes, user: int, group: int, mode: int) -> str:
    """Write a file beside its target, with its final permissions and on disk; return its path."""
    staged = f"{path}.new"
    Path(staged).unlink(missing_ok=True)
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        os.fchown(descriptor, user, group)
        os.fchmod(descriptor, mode)
        handle.write(content)
        handle.flush()
        os.fsync(descriptor)
    return staged


def _swap(staged: dict[str, str]) -> None:
    """Rename staged files over their targets, one right after the other, and write that to disk."""
    for target, source in staged.items():
        Path(source).replace(target)
    for folder in {Path(target).parent for target in staged}:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _request(authority: Authority, public_pem: str) -> bytes:
    """Have a public key certified and return the certificate.

    Asks the CA's minion until it answers or the time is over. Raises RuntimeError that names the CA
    and the policy.
    """
    if not authority.server:
        return _sign_here(authority.policy, public_pem)
    asked = f"the CA on {authority.server} (policy {authority.policy})"
    if __opts__.get("file_client") == "local":
        raise RuntimeError(
            f"this run has no master through which to ask {asked}; the pillar key pki:ca_server is "
            "an empty string where a host signs for itself"
        )
    began = time.monotonic()
    while True:
        try:
            issued = __salt__["x509.create_certificate"](
                ca_server=authority.server,
                signing_policy=authority.policy,
                public_key=public_pem,
                days_valid=_DAYS,
            )
        except (SaltException, TypeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
        else:
            return str(issued).encode("ascii")
        if any(refusal in reason for refusal in _REFUSALS):
            raise RuntimeError(f"{asked} refused: {reason}")
        waited = time.monotonic() - began
        if waited + _PAUSE > authority.wait_seconds:
            raise RuntimeError(f"{asked} issued nothing within {waited:.0f} s: {reason}")
        time.sleep(_PAUSE)


def _sign_here(policy: str, public_pem: str) -> bytes:
    """Certify a public key with a signing policy of this minion's own configuration."""
    rules = __salt__["x509.get_signing_policy"](policy)
    if not rules or "signing_private_key" not in rules:
        raise RuntimeError(
            f"this minion's configuration has no signing policy {policy}; 'bootstrap pki' makes them on the master, "
            "with --host for a hypervisor and --web for the page"
        )
    try:
        issued = __salt__["x509.create_certificate"](
            signing_policy=policy,
            public_key=public_pem,
            # The policy's own values win; without these the call is refused before it looks.
            signing_private_key=rules["signing_private_key"],
            days_valid=_DAYS,
        )
    except SaltException as error:
        raise RuntimeError(f"signing policy {policy}: {error}") from error
    return str(issued).encode("ascii")


def _ids(access: Access) -> tuple[int, int]:
    """Return the numbers of a user and a group; raises RuntimeError for one that is unknown."""
    try:
        return pwd.getpwnam(access.user).pw_uid, grp.getgrnam(access.group).gr_gid
    except KeyError as error:
        raise RuntimeError(f"the key's owner is unknown here: {error.args[0]}") from error


def _access_faults(key: str, access: Access) -> tuple[list[str], list[str]]:
    """Return why a key must be replaced, and why it must only be repaired, by its permissions."""
    try:
        status = Path(key).stat()
    except FileNotFoundError:
        return [], []
    mode, owner = stat.S_IMODE(status.st_mode), _ids(access)
    if exposed(status, access, *owner):
        return [f"others could read the key (mode {mode:04o})"], []
    repair = []
    if mode != access.mode:
        repair.append(f"mode {mode:04o} instead of {access.mode:04o}")
    if (status.st_uid, status.st_gid) != owner:
        repair.append(f"not owned by {access.user}:{access.group}")
    return [], repair


def _described(pem: bytes | None) -> dict[str, str] | None:
    """Return what may be shown of a certificate, None if there is none that can be read."""
    try:
        certificate = x509.load_pem_x509_certificate(pem or b"")
    except ValueError:
        return None
    return {
        "serial": f"{certificate.serial_number:x}",
        "issuer": certificate.issuer.rfc4514_string(),
        "not_after": not_after(certificate).strftime("%Y-%m-%d %H:%M:%S UTC"),
    }


def managed(  # noqa: PLR0913, PLR0917 - the arguments of a state are its interface
    name: str,
    purpose: str,
    key: str,
    ca: str,
    ca_source: str,
    ca_server: str = "",
    signing_policy: str = "",
    common_name: str = "",
    subject_names: list[str] | None = None,
    names_option: str = "--host",
    days_remaining: int = 30,
    key_type: str = "ec",
    key_user: str = "root",
    key_group: str = "root",
    key_mode: str = "0400",
    wait_seconds: int = 60,
) -> dict[str, Any]:
    """Make sure that this host has a good key and certificate of one purpose.

    Args:
        name: Path of the certificate.
        purpose: What it is for; the default signing policy is ``<purpose>_<minion id>``.
        key: Paths of the key and of the CA's certificate. Their folders exist already.
        ca: see above.
        ca_source: URL of the CA's certificate (``salt://…``).
        ca_server: Minion id of the CA; empty to sign here with a policy of the minion's own
            configuration.
        signing_policy: Where they differ from the defaults: the policy above and the minion id.
        common_name: see above.
        subject_names: DNS names and addresses that must stand in it besides the common name. What
            stands in it decides the policy: if that lacks one, the state fails and says what to run
            on the master, and the old certificate stays.
        names_option: The option of bootstrap by which they are given: ``--host`` or ``--web``.
        days_remaining: A certificate with fewer days left is replaced.
        key_type: ``ec`` (NIST P-256) or ``rsa`` (3072 bits); used when a key is made.
        key_user: Owner and permissions of the key. A key that others could read is replaced,
            since it may have been copied; any other deviation is only repaired.
        key_group: see above.
        key_mode: see above.
        wait_seconds: How long to ask a CA that does not answer; Salt gives one question a minute.

    Returns a state result that names every reason; it never holds the key.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    minion_id = __opts__["id"]
    files = Files(name, key, ca)
    common = common_name or minion_id
    wanted = Wanted(common, (common, *(subject_names or [])), int(days_remaining), names_option)
    access = Access(key_user, key_group, int(key_mode, 8))
    policy = signing_policy or f"{purpose}_{minion_id}"
    try:
        authority = Authority(ca_server, policy, wait_seconds, _fetch(ca_source, wait_seconds))
        reasons, repair = _survey(files, authority, access, wanted)
        ret["changes"] = _planned(files, authority, reasons, repair)
        if not ret["changes"]:
            return ret | {"comment": "Key and certificate are good."}
        if __opts__["test"]:
            return ret | {"result": None, "comment": "Would replace or repair them."}
        if reasons:
            new = _replace(files, authority, access, wanted, key_type)
            ret["changes"]["certificate"]["new"] = new
            return ret | {"comment": f"There is a new key and certificate: {'; '.join(reasons)}."}
        _repair(files, authority, access)
        return ret | {"comment": "Repaired without a new certificate."}
    except (RuntimeError, OSError, ValueError) as error:
        return ret | {"result": False, "changes": {}, "comment": f"No certificate: {error}."}


def _survey(
    files: Files, authority: Authority, access: Access, wanted: Wanted
) -> tuple[list[str], list[str]]:
    """Return why the pair on disk must be replaced, and why its key must only be repaired."""
    replace, repair = _access_faults(files.key, access)
    now = dt.datetime.now(tz=dt.timezone.utc)
    found = faults(_read(files.key), _read(files.certificate), authority.pem, wanted, now)
    return found + replace, repair


def _planned(
    files: Files, authority: Authority, reasons: list[str], repair: list[str]
) -> dict[str, Any]:
    """Return what will change, empty for nothing; no part of it is secret."""
    changes: dict[str, Any] = {}
    if reasons:
        changes["certificate"] = {"old": _described(_read(files.certificate)), "why": reasons}
    elif repair:
        changes["key"] = repair
    if _read(files.ca) != authority.pem:
        changes["ca"] = f"{files.ca} is written"
    return changes


def _repair(files: Files, authority: Authority, access: Access) -> None:
    """Give the key its owner and permissions and write the CA's certificate."""
    os.chown(files.key, *_ids(access))
    Path(files.key).chmod(access.mode)
    if _read(files.ca) != authority.pem:
        _swap({files.ca: _stage(files.ca, authority.pem, 0, 0, 0o644)})


def _fetch(source: str, wait_seconds: int) -> bytes:
    """Return the CA's certificate from the file server; raises RuntimeError if it is not there."""
    deadline = time.monotonic() + (0 if __opts__["test"] else wait_seconds)
    while True:
        cached = __salt__["cp.cache_file"](source)
        if cached:
            content = Path(cached).read_bytes()
            try:
                x509.load_pem_x509_certificates(content)
            except ValueError as error:
                raise RuntimeError(f"{source} holds no certificate") from error
            return content
        if time.monotonic() + _PAUSE > deadline:
            raise RuntimeError(f"the file server has no {source}; the first master makes it")
        time.sleep(_PAUSE)


def _remedy(issued: bytes, wanted: Wanted) -> str:
    """Say what to run on the master if all that is wrong with a certificate is a missing name."""
    try:
        names = names_of(x509.load_pem_x509_certificate(issued))
    except (ValueError, x509.ExtensionNotFound):
        return ""
    missing = [name for name in wanted.subject_names if canonical(name) not in names]
    if not missing:
        return ""
    host = wanted.common_name
    every = ",".join(name for name in (*names, *missing) if name != canonical(host))
    given = f"{host}={every}" if wanted.option == "--host" else every
    return (
        ". The names are decided where the CA is: run there "
        f"'bootstrap pki {wanted.option} {given}', or take the name out of this host's pillar"
    )


def _replace(
    files: Files, authority: Authority, access: Access, wanted: Wanted, key_type: str
) -> dict[str, str] | None:
    """Make a key, have it certified, check the answer, and swap all three files in."""
    owner = _ids(access)
    private = new_key(key_type)
    key_pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public_pem = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    issued = _request(authority, public_pem.decode("ascii"))
    now = dt.datetime.now(tz=dt.timezone.utc)
    wrong = faults(key_pem, issued, authority.pem, wanted, now)
    if wrong:
        raise RuntimeError(
            f"the CA on {authority.server or 'this host'} issued something else than asked for "
            f"(policy {authority.policy}): {'; '.join(wrong)}{_remedy(issued, wanted)}"
        )
    staged: dict[str, str] = {}
    try:
        staged[files.ca] = _stage(files.ca, authority.pem, 0, 0, 0o644)
        staged[files.key] = _stage(files.key, key_pem, *owner, access.mode)
        staged[files.certificate] = _stage(files.certificate, issued, 0, 0, 0o644)
        _swap(staged)
    except OSError:
        for leftover in staged.values():
            Path(leftover).unlink(missing_ok=True)
        raise
    return _described(issued)
