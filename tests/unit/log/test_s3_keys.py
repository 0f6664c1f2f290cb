"""Where an S3 log's keys come from: one source, which is the only one; files that are refused; keys that change."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from replicator.errors import NotFoundError, UsageError
from replicator.log.s3_credentials import KeyFiles, s3_settings
from replicator.log.s3_opening import open_bucket
from replicator.log.s3_url import parse_object_url

IDENTITY = {"AWS_ACCESS_KEY_ID": "other", "AWS_SECRET_ACCESS_KEY": "other", "AWS_SESSION_TOKEN": "other"}


def keys_file(path: Path, mode: int = 0o600, section: str = "default", *, token: str = "") -> Path:
    path.parent.mkdir(exist_ok=True)
    rotated = f"aws_session_token = {token}\n" if token else ""
    path.write_text(f"[{section}]\naws_access_key_id = k%y\naws_secret_access_key = s\nregion = eu-1\n{rotated}")
    path.chmod(mode)
    return path


def found(url: str, environment: dict[str, str], home: Path | None) -> tuple[str, str, str] | None:
    return KeyFiles.of(parse_object_url(url), environment, home).found()


def region(url: str, environment: dict[str, str], home: Path | None) -> str | None:
    settings = s3_settings(parse_object_url(url), environment, home)
    assert settings.keys() <= {"region", "credential_provider", "skip_signature"}, "keys come by the provider alone"
    return settings.get("region")


def test_the_chain_of_keys(tmp_path: Path) -> None:
    keys = keys_file(tmp_path / ".aws" / "credentials")
    assert found("s3://bucket/x", {}, tmp_path) == ("k%y", "s", "") and region("s3://bucket/x", {}, tmp_path) == "eu-1"
    assert region("s3://bucket/x?region=us", {}, tmp_path) == "us"
    environment = {"AWS_ACCESS_KEY_ID": "other", "AWS_REGION": "ap-1"}
    assert s3_settings(parse_object_url("s3://bucket/x"), environment, tmp_path) == {"region": "ap-1"}
    assert found(f"s3://bucket/x?credentials={keys}", environment, tmp_path) == ("k%y", "s", "")
    assert s3_settings(parse_object_url("s3://bucket/x"), {}, tmp_path / "nobody") == {}
    keys_file(tmp_path / "p" / "keys", section="backup")
    asked = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "p" / "keys")}
    assert found("s3://bucket/x?profile=backup", asked, tmp_path) == ("k%y", "s", "")


def test_keys_that_are_refused(tmp_path: Path) -> None:
    open_file = keys_file(tmp_path / "k" / "open", mode=0o644)
    with pytest.raises(UsageError, match="others may read it") as caught:
        s3_settings(parse_object_url(f"s3://bucket/x?credentials={open_file}"), {}, tmp_path)
    assert caught.value.mend == f"chmod 600 {open_file}"
    with pytest.raises(NotFoundError, match="no file"):
        s3_settings(parse_object_url("s3://bucket/x?credentials=/nonexistent/keys"), {}, tmp_path)
    with pytest.raises(NotFoundError, match="no section"):
        s3_settings(parse_object_url("s3://bucket/x?profile=other"), {}, tmp_path)
    torn = tmp_path / "torn"
    torn.write_text("no section\n")
    torn.chmod(0o600)
    with pytest.raises(UsageError, match="line 1"):
        s3_settings(parse_object_url(f"s3://bucket/x?credentials={torn}"), {}, tmp_path)


@pytest.mark.parametrize("lines", ["region = eu-1", "aws_access_key_id = half", "aws_secret_access_key = half"])
def test_a_profile_without_keys_takes_nobody_elses(lines: str, tmp_path: Path) -> None:
    keys = keys_file(tmp_path / "keys")
    keys.write_text(f"[default]\n{lines}\n")
    keys_file(tmp_path / ".aws" / "config")
    for asked in (f"credentials={keys}", f"credentials={keys}&region=us"):
        with pytest.raises(NotFoundError, match=r"no keys in its section \[default\]") as caught:
            s3_settings(parse_object_url(f"s3://bucket/x?{asked}"), IDENTITY, tmp_path)
        assert caught.value.mend and "both" in caught.value.mend


def test_a_token_is_of_the_keys_section(tmp_path: Path) -> None:
    keys_file(tmp_path / ".aws" / "credentials")
    keys_file(tmp_path / ".aws" / "config", token="another's")
    assert found("s3://bucket/x", {}, tmp_path) == ("k%y", "s", "")
    keys_file(tmp_path / ".aws" / "credentials", token="mine")
    assert found("s3://bucket/x", {}, tmp_path) == ("k%y", "s", "mine")


def test_keys_are_read_anew_whenever_they_are_asked_for(tmp_path: Path) -> None:
    keys = keys_file(tmp_path / "keys", token="first")
    current = s3_settings(parse_object_url(f"s3://bucket/x?credentials={keys}"), IDENTITY, tmp_path)[
        "credential_provider"
    ]
    assert current()["token"] == "first"
    keys_file(keys, token="second")
    assert current()["token"] == "second" and current()["access_key_id"] == "k%y"
    keys.chmod(0o644)
    with pytest.raises(UsageError, match="others may read it"):
        current()


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name, value in IDENTITY.items():
        monkeypatch.setenv(name, value)
    assert open_bucket(parse_object_url("s3://bucket/x?region=us")).name == "s3://bucket/x"
    with pytest.raises(NotFoundError, match="without a home"):
        open_bucket(parse_object_url("s3://bucket/x?profile=backup"))
