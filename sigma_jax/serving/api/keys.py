"""Keys of callers: who may do what for which tenant. Keys are stored as hashes.

A file of keys has one JSON object a line:

    {"sha256": "...", "tenant": "shop", "scopes": ["read", "write"], "name": "web shop"}

`python -m sigma_jax.serve --new_key=NAME` prints a new key and its line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import secrets
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

SCOPES = ("read", "write", "admin")
KEYS = "SIGMA_KEYS"  # environment variable in place of --keys: a path, or the lines themselves
LEAST_LENGTH = 16  # of a key that a user makes up


@dataclasses.dataclass(frozen=True)
class Caller:
    """A caller: the tenant and the scopes. A scope includes those before it in SCOPES."""

    tenant: str
    scopes: frozenset[str]
    name: str = ""

    def may(self, scope: str) -> bool:
        """Whether the caller has a scope or a higher one."""
        return any(other in self.scopes for other in SCOPES[SCOPES.index(scope) :])


class Keys:
    """The known keys. Without any, everyone on this machine may do everything."""

    def __init__(self, callers: Mapping[str, Caller], open_tenant: str = ""):
        """Args:
        callers: by the SHA-256 of their keys, hexadecimal.
        open_tenant: the tenant of callers without a key; "" refuses them.
        """
        self._callers, self._open_tenant = dict(callers), open_tenant

    @property
    def tenants(self) -> set[str]:
        """The tenants that have a key."""
        found = {caller.tenant for caller in self._callers.values()}
        return found | ({self._open_tenant} if self._open_tenant else set())

    @property
    def are_asked(self) -> bool:
        """Whether callers need a key."""
        return not self._open_tenant

    def check_tenants(self, served: Collection[str]) -> list[str]:
        """Sentences about tenants that have keys and are not served, or the other way round.

        ValueError if no served tenant has a key: each call would be refused.
        """
        with_key = self.tenants
        missing = sorted(set(served) - with_key)
        away = sorted(with_key - set(served))
        if missing and len(missing) == len(served):
            raise ValueError(
                f"the keys are of the tenants {', '.join(away)}, but this service has "
                f"{', '.join(missing)}: each call would be refused. Name the tenant of an export, "
                f"--export={away[0]}=FOLDER, or make a key with --tenant={missing[0]}."
            )
        said = [f"the tenant {one} has no key: nobody can call it" for one in missing]
        return said + [f"there are keys of the tenant {one}, which has no --export" for one in away]

    def caller(self, key: str) -> Caller | None:
        """The caller with this key; None for an unknown one."""
        if not key and self._open_tenant:
            return Caller(self._open_tenant, frozenset(SCOPES), "anyone")
        wanted = sha256(key)
        for known, caller in self._callers.items():
            if hmac.compare_digest(known, wanted):
                return caller
        return None

    @classmethod
    def read(cls, lines: Iterable[str], where: str) -> Keys:
        """The keys of the lines of a file. ValueError names the line that is wrong."""
        callers = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
                digest, tenant = str(fields["sha256"]).lower(), str(fields["tenant"])
                scopes = frozenset(map(str, fields["scopes"]))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{where}: line {number} is no key ({error!r}); it needs sha256, tenant and "
                    "scopes."
                ) from None
            if len(digest) != 64 or not scopes or not scopes <= set(SCOPES) or not tenant:
                raise ValueError(
                    f"{where}: line {number}: sha256 has 64 digits, tenant is not empty, and "
                    f"scopes are some of {', '.join(SCOPES)}."
                )
            callers[digest] = Caller(tenant, scopes, str(fields.get("name", "")))
        if not callers:
            raise ValueError(f"{where} holds no key; make one with --new_key=NAME.")
        return cls(callers)

    @classmethod
    def of(cls, given: str) -> Keys:
        """The keys of a path, or of the content of such a file. ValueError as in `of_file`."""
        if given.lstrip().startswith("{"):
            return cls.read(given.splitlines(), KEYS)
        return cls.of_file(Path(given))

    @classmethod
    def of_file(cls, path: Path) -> Keys:
        """The keys of a file. ValueError if it cannot be read or a line is wrong."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read ({error}); give a file of keys.") from error
        return cls.read(lines, str(path))


def sha256(key: str) -> str:
    """The hash under which a key is stored."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_key(tenant: str, name: str, scopes: Iterable[str] = SCOPES) -> tuple[str, str]:
    """(a new random key, its line for a file of keys)."""
    key = "sigma_" + secrets.token_urlsafe(24)
    fields = {"sha256": sha256(key), "tenant": tenant, "scopes": list(scopes), "name": name}
    return key, json.dumps(fields)
