"""URLs as browsers read them; the values are those of url.spec.whatwg.org (compared with ada, which browsers' engines use)."""

import pytest

from data_pipeline.fetch.urls import Url, parse_url
from data_pipeline.pictures.headers import FetchError


def shown(url: Url) -> str:
    return f"{url.scheme}://{url.authority}{url.target}"


def read(text: str, base: str | None = None) -> str:
    """The URL in full, or the reason."""
    try:
        return shown(parse_url(text, parse_url(base) if base else None))
    except FetchError as error:
        return error.reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://a.example", "http://a.example/"),
        ("http://a.example?b=1", "http://a.example/?b=1"),
        ("http://a.example#b", "http://a.example/"),
        ("http://a.example/b?", "http://a.example/b?"),
        ("HTTPS://A.Example:443/B", "https://a.example/B"),
        ("http://a.example:80/", "http://a.example/"),
        ("https://a.example:80/", "https://a.example:80/"),
        ("http://a.example:/", "http://a.example/"),
        ("http://a.example:0080/", "http://a.example/"),
        ("http://a.example:" + "0" * 5000 + "80/", "http://a.example/"),
        ("http:\\\\a.example\\b\\c.jpg?d\\e", "http://a.example/b/c.jpg?d\\e"),
        ("http:/a.example/b", "http://a.example/b"),
        ("http:a.example/b", "http://a.example/b"),
        (" \n http://a.exa\tmple/b\r\nc \x00", "http://a.example/bc"),
        ("http://user:p@ss@a.example/b", "http://a.example/b"),
        ("http://a.example/b c.jpg", "http://a.example/b%20c.jpg"),
        ("http://a.example/b%20c%2Fd%2f%zz%", "http://a.example/b%20c%2Fd%2f%zz%"),
        ("http://a.example/\u00fcber/\u732b.jpg?\u00fc=\u732b", "http://a.example/%C3%BCber/%E7%8C%AB.jpg?%C3%BC=%E7%8C%AB"),
        ("http://a.example/a|b[c]{d}^`\"<>'~;=", "http://a.example/a|b[c]%7Bd%7D%5E%60%22%3C%3E'~;="),
        ("http://a.example/?a|b[c]{d}^`\"<>'~;=#e", "http://a.example/?a|b[c]{d}^`%22%3C%3E%27~;="),
        ("http://a.example/b/./c/../d/%2e%2E/e/%2e", "http://a.example/b/e/"),
        ("http://a.example/../../b//c", "http://a.example/b//c"),
        ("http://a.example/b/..", "http://a.example/"),
        ("http://a.example/\ud800", "http://a.example/%EF%BF%BD"),
        ("http://a_b.example/", "http://a_b.example/"),
        ("http://%61.ex%41mple/", "http://a.example/"),
        ("http://fa\u00df.example/", "http://xn--fa-hia.example/"),  # IDNA 2003 asks fass.example, another site
        ("http://\u03b2\u03cc\u03bb\u03bf\u03c2.example/", "http://xn--nxasmm1c.example/"),
        ("http://B\u00dcCHER.example/", "http://xn--bcher-kva.example/"),
        ("http://\u732b\u3002example/", "http://xn--z7x.example/"),
        ("http://i\u2764.example/", "http://xn--i-7iq.example/"),
        ("http://xn--bcher-kva.example/", "http://xn--bcher-kva.example/"),
        ("http://[::1]:8080/", "http://[::1]:8080/"),
        ("http://[0:0::FFFF:1.2.3.4]/", "http://[::ffff:102:304]/"),
        ("http://2130706433/", "http://127.0.0.1/"),
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("http://0177.0.0x0.1./", "http://127.0.0.1/"),
        ("http://\uff11\uff12\uff17.1/", "http://127.0.0.1/"),
        ("http://0/", "http://0.0.0.0/"),
        ("http://1.2.3.4.example/", "http://1.2.3.4.example/"),
    ],
)
def test_what_is_asked_for(text, expected):
    assert read(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "scheme refused"),
        ("a.jpg", "scheme refused"),
        ("//a.example/b", "scheme refused"),
        ("/etc/hostname", "scheme refused"),
        ("file:///etc/hostname", "scheme refused"),
        ("a.example:80/b", "scheme refused"),
        ("ht tp://a.example/", "scheme refused"),
        ("http://", "malformed url"),
        ("http:///b", "malformed url"),
        ("http://:80/", "malformed url"),
        ("http://user@/b", "malformed url"),
        ("http://a.example:0/", "malformed url"),
        ("http://a.example:65536/", "malformed url"),
        ("http://a.example:" + "1" * 5000 + "/", "malformed url"),
        ("http://a.example:" + "0" * 5000 + "/", "malformed url"),
        ("http://" + "1" * 5000 + "/", "malformed url"),
        ("http://a.example:8o/", "malformed url"),
        ("http://a.example:-1/", "malformed url"),
        ("http://a.example:80:80/", "malformed url"),
        ("http://a b.example/", "malformed url"),
        ("http://a%00.example/", "malformed url"),
        ("http://a%2fb.example/", "malformed url"),
        ("http://a|b.example/", "malformed url"),
        ("http://\ufffd.example/", "malformed url"),
        ("http://%ff.example/", "malformed url"),
        ("http://\u00ad/", "malformed url"),
        ("http://[::1/", "malformed url"),
        ("http://[::1]x/", "malformed url"),
        ("http://[fe80::1%25eth0]/", "malformed url"),
        ("http://[1.2.3.4]/", "malformed url"),
        ("http://256.1.1.1/", "malformed url"),
        ("http://1.2.3.4.5/", "malformed url"),
        ("http://08.1.1.1/", "malformed url"),
        ("http://a.1/", "malformed url"),
        ("http://4294967296/", "malformed url"),
    ],
)
def test_what_is_not_asked_for(text, reason):
    assert read(text) == reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "https://a.example:8443/b/c?d"),
        ("#e", "https://a.example:8443/b/c?d"),
        ("?", "https://a.example:8443/b/c?"),
        ("?e", "https://a.example:8443/b/c?e"),
        ("e.jpg", "https://a.example:8443/b/e.jpg"),
        ("./e?f", "https://a.example:8443/b/e?f"),
        ("../../e", "https://a.example:8443/e"),
        ("/e f", "https://a.example:8443/e%20f"),
        ("\\e\\f", "https://a.example:8443/e/f"),
        ("//e.example/f", "https://e.example/f"),
        ("\\\\e.example/f", "https://e.example/f"),
        ("https:///e.example/f", "https://e.example/f"),  # seen at Dropbox; browsers and Python follow (curl/curl#12147)
        ("https:e", "https://a.example:8443/b/e"),
        ("http:e", "http://e/"),
        ("http://e.example", "http://e.example/"),
        ("www.e.example/f", "https://a.example:8443/b/www.e.example/f"),
        ("  /e\t\n ", "https://a.example:8443/e"),
        ("file:///e", "scheme refused"),
        ("javascript:e", "scheme refused"),
        ("e.example:80/f", "scheme refused"),
        ("http://[broken/", "malformed url"),
        ("//e.example:" + "1" * 5000 + "/", "malformed url"),
    ],
)
def test_where_a_redirect_leads(text, expected):
    assert read(text, "https://a.example:8443/b/c?d") == expected


def test_the_spelling_of_a_host_is_kept_for_those_who_allow_it():
    assert parse_url("http://LocalHost:8080/").place == "localhost:8080"
    assert parse_url("http://2130706433:8080/").place == "2130706433:8080"
    assert parse_url("http://[::1]:8080/").place == "::1:8080"
