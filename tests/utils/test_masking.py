"""No secret of an address or of the environment is printed."""

from __future__ import annotations

import pytest

from pointsweep.utils.masking import masked, scrubbed, secrets_in


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:PASSWORD@127.0.0.1:9/x?token=TOKEN", "http://***@127.0.0.1:9/x?***"),
        ("https://TOKEN@host/path", "https://***@host/path"),
        ("https://host?TOKEN", "https://host?***"),
        ("https://host/#TOKEN", "https://host/#***"),
        ("postgresql+psycopg2://u:p%40ss@h:5432/db?sslmode=require&password=p2", "postgresql+psycopg2://***@h:5432/db?***"),
        ("Max retries exceeded with url: /x?token=TOKEN&a=b (Caused by ...)", "Max retries exceeded with url: /x?*** (Caused by ...)"),
        ("sqlite:////home/a/sto?re/mlflow.db", "sqlite:////home/a/sto?re/mlflow.db"),
        ("file:///data/#1/mlruns", "file:///data/#1/mlruns"),
        ("no address, but a question? yes", "no address, but a question? yes"),
    ],
)  # fmt: skip
def test_addresses_are_shown_without_user_password_query_and_fragment(text, shown):
    assert masked(text) == shown


def test_what_a_library_prints_of_an_address_is_taken_out(monkeypatch):
    address = "http://user:pass%2Fword@host/x?token=to%3Dken"
    text = "auth failed for pass/word with to=ken (pass%2Fword, to%3Dken)"
    assert scrubbed(text, address) == "auth failed for *** with *** (***, ***)"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert scrubbed(text) == scrubbed(text, address)


@pytest.mark.parametrize(
    "name", ["MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "POINTSWEEP_NOTIFY", "RAY_AUTH_TOKEN"]
)
def test_values_of_secret_variables_are_taken_out(monkeypatch, name):
    monkeypatch.setenv(name, "https://hooks.example/T0/B0/planted")
    assert scrubbed("no answer of https://hooks.example/T0/B0/planted") == "no answer of ***"


def test_ordinary_users_and_paths_are_no_secrets():
    assert secrets_in("postgresql://mlflow:hidden-word@db/mlflow") == ["hidden-word", "hidden-word"]
    assert secrets_in("sqlite:////a/b?c=d") == []
    assert secrets_in("/plain/folder") == []
