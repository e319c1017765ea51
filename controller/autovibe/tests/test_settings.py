"""Where a setting comes from, and what is said when it is wrong."""

from pathlib import Path

import pytest
from autovibe.errors import SettingsError
from autovibe.settings import load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    import os

    for name in list(os.environ):
        if name.startswith(("AUTOVIBE_", "ANTHROPIC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AUTOVIBE_STATE_DIR", str(tmp_path))


def test_the_environment_comes_before_the_file(monkeypatch, tmp_path):
    (tmp_path / "autovibe.toml").write_text('hub_port = 1234\nworker_batch = 7\ninventory = "inventory/example"\n')
    monkeypatch.setenv("AUTOVIBE_HUB_PORT", "4321")
    settings = load_settings()
    assert (settings.hub_port, settings.worker_batch) == (4321, 7)
    assert settings.inventory == settings.project_root / "inventory" / "example"
    assert load_settings(hub_port=99).hub_port == 99


def test_a_named_configuration_file_is_used(monkeypatch, tmp_path):
    file = tmp_path / "other.toml"
    file.write_text("lease_seconds = 77\n")
    monkeypatch.setenv("AUTOVIBE_CONFIG", str(file))
    assert load_settings().lease_seconds == 77
    file.unlink()
    with pytest.raises(SettingsError, match="AUTOVIBE_CONFIG names"):
        load_settings()


@pytest.mark.parametrize("variable", ["AUTOVIBE_ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY"])
def test_a_secret_comes_from_a_variable_or_from_the_file_that_it_names(monkeypatch, tmp_path, variable):
    assert load_settings().anthropic_api_key is None
    (tmp_path / "key").write_text("sk-secret\n")
    monkeypatch.setenv(f"{variable}_FILE", str(tmp_path / "key"))
    assert load_settings().anthropic_api_key.get_secret_value() == "sk-secret"
    monkeypatch.setenv(variable, "sk-nearer")
    settings = load_settings()
    assert settings.anthropic_api_key.get_secret_value() == "sk-nearer"
    assert "sk-" not in repr(settings)


def test_an_empty_key_is_no_key(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "")
    assert load_settings().anthropic_api_key is None


def test_a_secret_file_that_is_not_there_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("AUTOVIBE_DATABASE_URL_FILE", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="AUTOVIBE_DATABASE_URL_FILE names .* cannot be read: No such file"):
        load_settings()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("hub_port = 70000", "Setting 'hub_port' is wrong"),
        ("hub_prot = 7", "no setting named 'hub_prot'"),
        ("hub_port =", "not valid TOML"),
        ('api_proxy = ["proxy.example"]', "Setting 'api_proxy.0' is wrong: .*network"),
        ('api_proxy = ["*"]', "Setting 'api_proxy.0' is wrong: .*network"),
        ('machine_network = "192.168.100.1/24"', "Setting 'machine_network' is wrong"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_what_is_wrong(tmp_path, content, said):
    (tmp_path / "autovibe.toml").write_text(content)
    with pytest.raises(SettingsError, match=said) as error:
        load_settings()
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_the_state_folder_is_absolute(monkeypatch):
    monkeypatch.setenv("AUTOVIBE_STATE_DIR", "~/somewhere")
    assert load_settings().state_dir == Path.home() / "somewhere"
