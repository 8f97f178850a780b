"""An encoder is a folder, or a name on the hub; what cannot be had is named in one line."""

from pathlib import Path

import huggingface_hub
import pytest

from sigma_jax.encoders.find import load_encoder

GOLDEN = Path(__file__).parents[1] / "golden" / "encoder_bert"


def test_a_folder_is_loaded():
    assert load_encoder(str(GOLDEN)).encode(["tea"]).shape == (1, 12)


def test_a_name_is_fetched_from_the_hub(monkeypatch):
    asked = []

    def fetch(name, allow_patterns):
        asked.append(name)
        return str(GOLDEN)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert load_encoder("someone/model").encode(["tea"]).shape == (1, 12)
    assert asked == ["someone/model"]


def test_what_the_hub_refuses_is_one_line(monkeypatch):
    def refuse(name, allow_patterns):
        raise OSError(f"no model {name}\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match=r"hub \(no model MiniLM\); give the folder of a model.$"):
        load_encoder("MiniLM")
