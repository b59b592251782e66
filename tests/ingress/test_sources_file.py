from __future__ import annotations

import base64
from pathlib import Path

import pytest

from relay.ingress import load_sources
from relay.ingress.sources import StandardSource, StreamSource
from relay.settings import SettingsError

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
BILLING = f"""
[[source]]
name = "billing"
scheme = "standard"
secrets = ["{SECRET}"]
call = "/data/call_cid"
call_type = "default"
"""
EUROPE = """
[[source]]
name = "stream-eu"
scheme = "stream"
keys = { key = ["secret", "older"] }
"""


def load(path: Path, text: str) -> dict[str, object]:
    file = path / "sources.toml"
    file.write_text(text, "utf-8")
    return dict(load_sources(str(file), {"k": ["s"]}, max_bytes=1000, freshness_s=60))


def test_without_a_file_there_is_stream_alone() -> None:
    sources = load_sources("", {"k": ["s"]}, max_bytes=1000, freshness_s=60)
    assert list(sources) == ["stream"]
    assert isinstance(sources["stream"], StreamSource)


def test_a_file_adds_sources_of_both_schemes(tmp_path: Path) -> None:
    sources = load(tmp_path, BILLING + EUROPE)
    assert list(sources) == ["stream", "billing", "stream-eu"]
    assert isinstance(sources["billing"], StandardSource)
    assert isinstance(sources["stream-eu"], StreamSource)


def test_an_empty_file_is_no_error(tmp_path: Path) -> None:
    assert list(load(tmp_path, "")) == ["stream"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "billing"', "", "missing required field `name`"),
        ('name = "billing"', "name = 7", "Expected `str`"),
        ('name = "billing"', 'name = "Billing!"', "name must be a-z"),
        ('name = "billing"', 'name = ""', "name must be a-z"),
        ('name = "billing"', 'name = "stream"', "the name is taken"),
        ('scheme = "standard"', "", "missing required field `scheme`"),
        ('scheme = "standard"', 'scheme = "github"', "Invalid value 'github'"),
        ('call = "/data/call_cid"', "", "missing required field `call`"),
        ('call = "/data/call_cid"', 'call = "data.call"', "is not a JSON pointer"),
        ('call = "/data/call_cid"', 'call = ""', "call must point into the body"),
        ('call_type = "default"', 'call_type = "a b"', "call_type must be"),
        ('call_type = "default"', 'calltype = "default"', "unknown field `calltype`"),
        (f'["{SECRET}"]', "[]", "secrets is empty"),
        (f'["{SECRET}"]', '["whsec_%%%"]', "base64"),
        (f'["{SECRET}"]', '["whsec_YWJj"]', "less than 16 bytes"),
        ("[[source]]", "[[sources]]", "unknown field `sources`"),
        ("[[source]]", "[[source]", "sources.toml"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, BILLING.replace(old, new))
    assert words in str(caught.value)
    assert "sources.toml" in str(caught.value)
    assert "whsec" not in str(caught.value).replace("is 'whsec_' and base64", "")


@pytest.mark.parametrize("keys", ["{}", '{ "" = ["x"] }', "{ key = [] }", '{ key = [""] }'])
def test_keys_need_a_secret_each(tmp_path: Path, keys: str) -> None:
    with pytest.raises(SettingsError, match="keys must be"):
        load(tmp_path, EUROPE.replace('{ key = ["secret", "older"] }', keys))


def test_a_name_comes_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"source 2 \('billing'\): the name is taken"):
        load(tmp_path, BILLING + BILLING)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        load_sources(str(tmp_path / "nowhere.toml"), {}, max_bytes=1, freshness_s=1)
    (tmp_path / "sources.toml").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match=r"sources\.toml"):
        load_sources(str(tmp_path / "sources.toml"), {}, max_bytes=1, freshness_s=1)
