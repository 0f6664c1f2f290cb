"""Which log a URL names, and what is said of those that can't be opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.errors import ConflictError, NotFoundError, UsageError
from replicator.log.names import MARKER
from replicator.log.opening import is_log, log_folder, log_url, open_log


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_directory_by_its_path_or_url(tmp_path: Path, form: str) -> None:
    place = form.format(tmp_path / "a log")
    with pytest.raises(NotFoundError, match="no log directory"):
        open_log(place)
    open_log(place, create=True).close()
    assert open_log(place).name == str(tmp_path / "a log")
    assert is_log(str(tmp_path / "a log")) and not is_log(str(tmp_path))
    assert log_url(place) == str(tmp_path / "a log")


def test_escapes_of_a_file_url(tmp_path: Path) -> None:
    assert log_folder(f"file://{tmp_path}/a%20b") == tmp_path / "a b"


@pytest.mark.parametrize("url", ["", "ftp://host/x", "file://relative", "a\0b"])
def test_what_names_no_log(url: str) -> None:
    with pytest.raises(UsageError, match="names no"):
        open_log(url)


def test_nothing_is_made_where_something_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotFoundError, match="it is a file"):
        open_log(str(tmp_path / "file"), create=True)
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "x").touch()
    with pytest.raises(ConflictError, match="holds other things"):
        open_log(str(tmp_path / "things"), create=True)
    with pytest.raises(NotFoundError, match="no folder"):
        open_log(str(tmp_path / "no" / "log"), create=True)
    with pytest.raises(NotFoundError, match=MARKER):
        open_log(str(tmp_path / "things"))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "things"]
