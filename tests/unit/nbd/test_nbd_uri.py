"""NbdUri: each form of the URI specification as a value, and what isn't one."""

from __future__ import annotations

import pytest

from replicator.errors import UsageError
from replicator.nbd.uri import NbdUri

FORMS = [
    ("nbd://host/", NbdUri(host="host")),
    ("nbd://host/disk", NbdUri("disk", host="host")),
    ("nbd://host:10810/a/b", NbdUri("a/b", host="host", port=10810)),
    ("nbd://host//disk", NbdUri("/disk", host="host")),
    ("nbd://[::1]/disk", NbdUri("disk", host="::1")),
    ("nbd://[::1]:99/", NbdUri(host="::1", port=99)),
    ("nbd://host/two%20words%3F%23%25", NbdUri("two words?#%", host="host")),
    ("nbds://host/disk", NbdUri("disk", host="host", tls=True)),
    ("nbds://10.0.0.1/?tls-certificates=/etc/pki&tls-hostname=disks.example",
     NbdUri(host="10.0.0.1", tls=True, tls_certificates="/etc/pki", tls_hostname="disks.example")),
    ("nbd+unix:///?socket=/run/nbd.sock", NbdUri(socket_path="/run/nbd.sock")),
    ("nbd+unix:///vol@7?socket=/run/a%20b", NbdUri("vol@7", socket_path="/run/a b")),
    ("nbds+unix:///x?socket=s&tls-hostname=h", NbdUri("x", socket_path="s", tls=True, tls_hostname="h")),
]  # fmt: skip


@pytest.mark.parametrize(("text", "uri"), FORMS)
def test_each_form(text: str, uri: NbdUri) -> None:
    assert NbdUri.parse(text) == uri
    assert NbdUri.parse(str(uri)) == uri  # U2


def test_the_shortest_forms_parse() -> None:
    """No slash behind the host is the default export too."""
    assert NbdUri.parse("nbd://host") == NbdUri(host="host")
    assert NbdUri.parse("nbd://HOST/") == NbdUri(host="host")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "disk.img",
        "/dev/nbd0",
        "http://host/",
        "nbd+vsock://2/",
        "nbd://",
        "nbd:///disk",
        "nbd://host:port/",
        "nbd://host:0/",
        "nbd://host:65536/",
        "nbd://[::1/",
        "nbd://user@host/",
        "nbd://host/disk#part",
        "nbd://host/?socket=/run/s",
        "nbd+unix:///",
        "nbd+unix:///?socket=",
        "nbd+unix://host/?socket=/run/s",
        "nbd+unix:///?socket=a&socket=b",
        "nbd+unix:///?sokcet=/run/s",
        "nbd+unix:///?socket",
        "nbd://host/?tls-hostname=h",
        "nbds://host/?tls-psk-file=keys",
        "nbd://host/%ff",
        "nbd://host/%00",
        "nbd://host/\udcff",
        "nbd://host/" + "x" * 4097,
    ],
)
def test_what_is_no_nbd_uri(text: str) -> None:
    with pytest.raises(UsageError):
        NbdUri.parse(text)


def test_a_uri_has_one_place() -> None:
    """U1: neither none nor two."""
    for host, path in ((None, None), ("h", "s")):
        with pytest.raises(UsageError):
            NbdUri("x", host=host, socket_path=path)
