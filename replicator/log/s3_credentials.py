"""Where an S3 log's keys come from: the usual chain.

    1  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN in the environment (unless ?profile or ?credentials)
    2  a section of ?credentials=FILE, else of $AWS_SHARED_CREDENTIALS_FILE, else of ~/.aws/credentials; the region also
       of $AWS_CONFIG_FILE, else ~/.aws/config
    3  what the library finds by itself: web identity, container, instance

A file with keys that others can read is refused. Nothing of what is read here is ever part of a message.

Failures raised: UsageError (a file that can't be taken), NotFoundError (a section or file that was asked for).
"""

from __future__ import annotations

import configparser
import stat
from collections.abc import Mapping
from pathlib import Path

from replicator.errors import NotFoundError, UsageError
from replicator.log.s3_url import ObjectPlace
from replicator.units import MIB

_KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
    "region": "region",
}
_FILE_BYTES_MAX = MIB  # nobody has a thousand profiles


def s3_settings(place: ObjectPlace, environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """The keys and the region, by obstore's names; without keys where the library is to look for them."""
    asked = place.profile or place.credentials
    if environment.get("AWS_ACCESS_KEY_ID") and not asked:
        found: dict[str, str] = {}
    else:
        found = _of_files(place, environment, home)
    if place.region:
        found["region"] = place.region
    elif "AWS_REGION" in environment or "AWS_DEFAULT_REGION" in environment:
        found["region"] = environment.get("AWS_REGION") or environment["AWS_DEFAULT_REGION"]
    return found


def _of_files(place: ObjectPlace, environment: Mapping[str, str], home: Path) -> dict[str, str]:
    profile = place.profile or environment.get("AWS_PROFILE", "default")
    keys = Path(place.credentials or environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials")
    config = Path(environment.get("AWS_CONFIG_FILE") or home / ".aws" / "config")
    if place.credentials and not keys.exists():
        raise NotFoundError(f"there is no file {keys} with keys", mend="make it, readable by its owner alone")
    of_keys = _sections(keys, secret=True)
    of_config = _sections(config, secret=False)
    named = profile if profile == "default" else f"profile {profile}"
    if (place.profile or place.credentials) and profile not in of_keys:
        raise NotFoundError(f"{keys} has no section [{profile}]", mend=f"there are: {', '.join(of_keys) or 'none'}")
    joined = {**of_config.get(named, {}), **of_keys.get(profile, {})}
    return {ours: joined[theirs] for theirs, ours in _KEYS.items() if joined.get(theirs)}


def _sections(path: Path, *, secret: bool) -> dict[str, dict[str, str]]:
    """The file's sections; none where there is no file."""
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
