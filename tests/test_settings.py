from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import settings
from relay.settings import OPTIONS, Settings, SettingsError

ENVIRONS = st.dictionaries(
    st.sampled_from([settings.env_name(field) for field in Settings.__struct_fields__])
    | st.text("ABC_", max_size=6).map("RELAY_".__add__),
    st.text(max_size=12)
    | st.integers(-2, 10**6).map(str)
    | st.sampled_from(["nan", "inf", "-inf", "1e999", "true", "tcp://10.0.0.1:8000"]),
    max_size=4,
)

QUEUE = "https://sqs.eu-central-1.amazonaws.com/1234/stream"


def problem(**environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        settings.read({f"RELAY_{name.upper()}": value for name, value in environ.items()})
    return str(caught.value)


def test_an_empty_environment_gives_the_defaults() -> None:
    assert settings.read({"PATH": "/bin", "OTHER_PORT": "x"}) == Settings()


def test_the_environment_is_read_by_type_and_flags_go_over_it() -> None:
    environ = {"RELAY_PORT": "9000", "RELAY_STRICT_CALLS": "true", "RELAY_HISTORY_AGE": "1.5"}
    read = settings.read(environ, {"port": 9001, "host": None})
    assert (read.port, read.strict_calls, read.history_age) == (9001, True, 1.5)
    assert read.host == "127.0.0.1"


def test_every_setting_is_explained() -> None:
    assert list(OPTIONS) == list(Settings.__struct_fields__)
    assert all(option.help for option in OPTIONS.values())


def test_secrets_are_marked() -> None:
    secret = {name for name, option in OPTIONS.items() if option.secret}
    assert secret == {"api_secret", "keys", "redis_url", "ingest_sqs_secret", "admin_token"}


@given(ENVIRONS)
def test_any_environment_is_settings_or_a_clear_refusal(environ: dict[str, str]) -> None:
    try:
        read = settings.read(environ)
    except SettingsError:
        return
    for field in Settings.__struct_fields__:
        value = getattr(read, field)
        if isinstance(value, float):
            assert 0 <= value < float("inf"), field


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    assert (
        problem(redis_ulr="x") == "RELAY_REDIS_ULR is not a setting: did you mean RELAY_REDIS_URL?"
    )
    assert "'relay settings' lists" in problem(zzzzzzzzzz="1")


@pytest.mark.parametrize(
    "name",
    [
        "RELAY_SERVICE_HOST", "RELAY_SERVICE_PORT", "RELAY_SERVICE_PORT_HTTP",
        "RELAY_PORT_8000_TCP", "RELAY_PORT_8000_TCP_PROTO", "RELAY_PORT_8000_TCP_PORT",
        "RELAY_PORT_8000_TCP_ADDR",
        "RELAY_REDIS_SERVICE_HOST", "RELAY_REDIS_PORT",
    ],
)  # fmt: skip
def test_what_an_orchestrator_injects_is_ignored(name: str) -> None:
    assert settings.read({name: "10.0.0.1"}) == Settings()


def test_an_injected_port_is_told_from_a_chosen_one() -> None:
    assert settings.read({"RELAY_PORT": "tcp://10.0.0.1:8000"}).port == 8000
    assert settings.read({"RELAY_PORT": "9000"}).port == 9000


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("port", "http", "must be a whole number"),
        ("port", "65536", "must be a port"),
        ("port", "-1", "must be above 0"),
        ("workers", "0", "must be above 0"),
        ("history_age", "long", "must be a number"),
        ("history_age", "nan", "must be a number"),
        ("history_age", "inf", "must be a number"),
        ("strict_calls", "perhaps", "must be true or false"),
        ("log_level", "loud", "must be debug, info"),
        ("log_format", "xml", "must be text or json"),
        ("keys", "key", "must be 'key:secret"),
        ("keys", "key:", "must be 'key:secret"),
        ("workers", "2", "needs RELAY_REDIS_URL"),
        ("webhook_freshness", "7201", "must not be over RELAY_DEDUPE_WINDOW"),
        ("soft_buffer_bytes", "99999999", "must not be over RELAY_HARD_BUFFER_BYTES"),
        ("tls_cert", "/nowhere", "go together"),
        ("sources", "/nowhere/sources.toml", "there is no such file"),
    ],
)
def test_a_value_that_cannot_be_is_refused(name: str, value: str, words: str) -> None:
    text = problem(**{name: value})
    assert words in text
    assert f"RELAY_{name.upper()}" in text


def test_zero_turns_off_what_can_be_turned_off() -> None:
    read = settings.read({"RELAY_CUSTOM_MAX_BYTES": "0", "RELAY_COMMAND_RATE": "0"})
    assert (read.custom_max_bytes, read.command_rate) == (0, 0)


def test_windows_may_be_equal() -> None:
    assert settings.read({"RELAY_WEBHOOK_FRESHNESS": "7200"}).webhook_freshness == 7200


def test_files_that_exist_are_taken(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.touch()
    assert "there is no such file" in problem(tls_cert=str(cert), tls_key=str(key))
    key.touch()
    read = settings.read({"RELAY_TLS_CERT": str(cert), "RELAY_TLS_KEY": str(key)})
    assert read.tls_key == str(key)


def test_a_key_may_come_twice_and_the_main_secret_is_first() -> None:
    read = Settings(api_key="a", api_secret="1", keys="a:2, b:3:4 ,")
    assert read.accepted_keys == {"a": ["1", "2"], "b": ["3:4"]}
    assert Settings(keys="b:3").accepted_keys == {"b": ["3"]}


def test_origins_are_a_list() -> None:
    assert Settings().origins == ("*",)
    assert Settings(allowed_origins="https://a.example, https://b.example,").origins == (
        "https://a.example",
        "https://b.example",
    )


@pytest.mark.parametrize("missing", ["api_key", "api_secret"])
def test_serve_needs_a_key_and_its_secret(missing: str) -> None:
    complete = Settings(api_key="k", api_secret="s")
    with pytest.raises(SettingsError, match=f"RELAY_{missing.upper()} is not set.*relay demo"):
        settings.check_serve(msgspec.structs.replace(complete, **{missing: ""}))
    settings.check_serve(complete)


@pytest.mark.parametrize("text", ["*", "10.0.0.1/8", "proxy.example", "::1,*"])
@pytest.mark.parametrize("name", ["RELAY_TRUSTED_PROXIES", "RELAY_HOOK_ALLOW"])
def test_networks_that_are_none_are_refused(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=name):
        settings.read({name: text})


@pytest.mark.parametrize("name", ["RELAY_SOURCES", "RELAY_HOOKS"])
def test_a_file_must_be_there(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}='/nowhere.toml': there is no such file"):
        settings.read({name: "/nowhere.toml"})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ingest_sqs_url": "my-queue"}, "RELAY_INGEST_SQS_URL must be a URL"),
        ({"ingest_sqs_url": QUEUE, "ingest_sqs_region": "Ireland"}, "RELAY_INGEST_SQS_REGION must"),
        ({"ingest_sqs_url": QUEUE, "ingest_sqs_key": "AKIA"}, "and RELAY_INGEST_SQS_SECRET go"),
    ],
)
def test_a_queue_is_named_completely(given: dict[str, str], said: str) -> None:
    assert said in problem(**given)


def test_a_queue_may_be_on_this_machine_and_needs_no_keys() -> None:
    for url in (QUEUE, "http://127.0.0.1:4566/1234/stream"):
        assert settings.read({"RELAY_INGEST_SQS_URL": url}).ingest_sqs_url == url
