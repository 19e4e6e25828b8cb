"""Proxies of the environment are used or refused, never passed over without a word; a folder's options are those it began with."""

import os
import subprocess
import sys

import pytest

from data_pipeline.download.job import what_differs
from data_pipeline.download.options import chosen_proxies
from data_pipeline.errors import UserError

PROXY = "http://proxy.example:3128"


@pytest.fixture
def environment(monkeypatch):
    """Sets variables in an environment without proxies."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)

    def change(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return change


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {}),
        ({"no_proxy": "localhost"}, {}),
        ({"http_proxy": ""}, {}),
        ({"http_proxy": PROXY}, {"http": PROXY}),
        ({"HTTPS_PROXY": PROXY, "no_proxy": "a.example"}, {"https": PROXY, "no": "a.example"}),
        ({"ALL_PROXY": "proxy.example:3128", "ftp_proxy": PROXY}, {"all": "proxy.example:3128"}),
    ],
)
def test_proxies_are_used_where_asked_for(environment, variables, expected):
    environment(**variables)
    assert chosen_proxies("environment") == expected
    assert chosen_proxies("none") == {}
    if not expected:
        assert chosen_proxies(None) == {}
        return
    (name,) = (name for name in expected if name != "no")
    with pytest.raises(UserError, match=f"^{name}_proxy: .*--proxy environment .*--proxy none"):
        chosen_proxies(None)


@pytest.mark.parametrize("address", ["socks5://me:secret@proxy.example:1080", "https://proxy.example", "http://", "http://a:b"])
def test_proxies_that_cannot_be_used(environment, address):
    environment(https_proxy=address)
    with pytest.raises(UserError, match="^https_proxy: .*http://HOST:PORT") as error:
        chosen_proxies("environment")
    assert "secret" not in str(error.value)


def test_only_proxies_that_are_asked_need_be_of_use(environment):
    environment(http_proxy=PROXY, https_proxy=PROXY, all_proxy="socks5://127.0.0.1:7890", no_proxy="a.example")
    assert chosen_proxies("environment") == {"http": PROXY, "https": PROXY, "no": "a.example"}
    with pytest.raises(UserError, match="^all_proxy, http_proxy, https_proxy: the environment names a proxy"):
        chosen_proxies(None)
    environment(https_proxy="")
    with pytest.raises(UserError, match="^all_proxy: .*http://HOST:PORT"):
        chosen_proxies("environment")


@pytest.mark.parametrize("words", [("download", "--data", "nowhere"), ("build", "--metadata", "nowhere.tsv", "--out", "nowhere")])
def test_a_proxy_is_refused_before_anything_is_done(tmp_path, words):
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "http_proxy": PROXY}
    done = subprocess.run(
        [sys.executable, "-m", "data_pipeline", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "http_proxy: the environment names a proxy" in done.stderr
    assert not list(tmp_path.iterdir())


SETTINGS = {"rows": [["a", 60, "1"], ["b", 30, "2"]], "image_size": 48, "max_pixels": 10**6}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"image_size": 32, "max_pixels": 7}, "with --image-size 48 (now 32), --max-pixels 1000000 (now 7)"),
        ({"rows": [["a", 60, "1"], ["b", 28, "3"]]}, "from 90 curated rows (now 88)"),
        ({"rows": [["a", 60, "1"], ["b", 30, "3"]]}, "from 90 curated rows (now 90 others)"),
        ({"rows": [["a", 60, "1"]], "image_size": 32}, "with --image-size 48 (now 32) and from 90 curated rows (now 60)"),
        ({"shard_size": 100}, "with --shard-size not noted (now 100)"),
    ],
)
def test_what_a_folder_was_begun_with_is_told_beside_what_is_asked_now(changes: dict, said: str) -> None:
    assert what_differs(SETTINGS, SETTINGS | changes) == said
