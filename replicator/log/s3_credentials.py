"""Where an S3 log's keys come from: the usual chain, of which the first that has keys is the only one.

    1  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN in the environment (unless ?profile or ?credentials)
    2  a section of ?credentials=FILE, else of $AWS_SHARED_CREDENTIALS_FILE, else of ~/.aws/credentials; the region also
       of $AWS_CONFIG_FILE, else ~/.aws/config, and keys too where no ?credentials was asked for
    3  what the library finds by itself: web identity, container, instance (unless ?profile or ?credentials)

A file with keys that others can read is refused. Nothing of what is read here is ever part of a message.

Invariants
  K1  Key, secret and token are of one section, or all of the environment: two identities are never mixed.
  K2  Keys of a file are read anew for each request: a token that somebody rotates there is taken, without a restart.

Failures raised: UsageError (a file that can't be taken), NotFoundError (a section, file or keys that were asked for).
"""

from __future__ import annotations

import configparser
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replicator.errors import NotFoundError, UsageError
from replicator.log.s3_url import ObjectPlace
from replicator.units import MIB

if TYPE_CHECKING:
    from obstore.store import S3Credential

_KEY, _SECRET, _TOKEN = "aws_access_key_id", "aws_secret_access_key", "aws_session_token"
_FILE_BYTES_MAX = MIB  # nobody has a thousand profiles


def s3_settings(place: ObjectPlace, environment: Mapping[str, str], home: Path | None) -> dict[str, Any]:
    """The region, and what reads a file's keys, by obstore's names; without where the library is to look for keys."""
    region = place.region or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    settings: dict[str, Any] = {}
    if not environment.get("AWS_ACCESS_KEY_ID") or place.profile or place.credentials:
        files = KeyFiles.of(place, environment, home)
        region = region or files.region()
        if files.found() is not None:
            # said, since AWS_SKIP_SIGNATURE would hold else
            settings = {"credential_provider": files.current, "skip_signature": False}
    return {**settings, "region": region} if region else settings


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """A section of the two files with keys."""

    keys: Path | None
    config: Path | None
    profile: str
    is_asked: bool  # by the URL: then there are keys, or it is an error
    is_alone: bool  # ?credentials: then the other file has no keys for it

    @classmethod
    def of(cls, place: ObjectPlace, environment: Mapping[str, str], home: Path | None) -> KeyFiles:
        """The files and the section that are meant."""
        keys = place.credentials or environment.get("AWS_SHARED_CREDENTIALS_FILE")
        config = environment.get("AWS_CONFIG_FILE")
        return cls(
            Path(keys) if keys else home and home / ".aws" / "credentials",
            Path(config) if config else home and home / ".aws" / "config",
            place.profile or environment.get("AWS_PROFILE") or "default",
            is_asked=bool(place.profile or place.credentials),
            is_alone=bool(place.credentials),
        )

    def current(self) -> S3Credential:
        """The keys as they stand now; obstore asks before each request, as they are told to end at once (K2)."""
        found = self.found()
        if found is None:
            raise NotFoundError(f"{self.keys} has no keys in its section [{self.profile}] any more")
        key, secret, token = found
        return {
            "access_key_id": key,
            "secret_access_key": secret,
            "token": token or None,
            "expires_at": datetime.now(UTC),
        }

    def found(self) -> tuple[str, str, str] | None:
        """Key, secret and token, of one section (K1); None where there are none, and none were asked for."""
        section = self._of_keys()
        if not (section.get(_KEY) or section.get(_SECRET)) and not self.is_alone:
            section = self._of_config()
        key, secret = section.get(_KEY, ""), section.get(_SECRET, "")
        if key and secret:
            return key, secret, section.get(_TOKEN, "")
        if self.is_asked or key or secret:
            raise NotFoundError(
                f"{self.keys} has no keys in its section [{self.profile}]",
                mend=f"write {_KEY} and {_SECRET} there, both: nothing of the environment's keys is taken along",
            )
        return None

    def region(self) -> str:
        """The section's region, or nothing."""
        return self._of_keys().get("region") or self._of_config().get("region", "")

    def _of_keys(self) -> dict[str, str]:
        if self.is_alone and self.keys is not None and not self.keys.exists():
            raise NotFoundError(f"there is no file {self.keys} with keys", mend="make it, readable by its owner alone")
        sections = _sections(self.keys, secret=True)
        if self.is_asked and self.profile not in sections:
            where = self.keys or "~/.aws/credentials of a user without a home"
            mend = f"there are: {', '.join(sections) or 'none'}"
            raise NotFoundError(f"{where} has no section [{self.profile}]", mend=mend)
        return sections.get(self.profile, {})

    def _of_config(self) -> dict[str, str]:
        named = self.profile if self.profile == "default" else f"profile {self.profile}"
        return _sections(self.config, secret=False).get(named, {})


def _sections(path: Path | None, *, secret: bool) -> dict[str, dict[str, str]]:
    """The file's sections; none where there is no file."""
    if path is None:
        return {}
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            if secret and mode & 0o077:
                raise UsageError(f"{path} holds keys, and others may read it (mode {mode:o})", mend=f"chmod 600 {path}")
            text = file.read(_FILE_BYTES_MAX)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read: {getattr(error, 'strerror', '') or 'not UTF-8'}") from None
    parser = configparser.RawConfigParser(default_section="no such section")
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise UsageError(f"{path} isn't a file of sections: line {getattr(error, 'lineno', '?')}") from None
    return {name: dict(parser.items(name)) for name in parser.sections()}
