"""launch/mutation.py: annotations are left out, survivors are counted, its tests exist."""

import json

from launch import mutation

SOURCE = "def f(x: int | None) -> int | str:\n    y: int = x + 1\n    return y\n"


def test_annotations_are_found():
    assert sorted(mutation.annotations(SOURCE)) == [
        ((1, 9), (1, 19)),
        ((1, 24), (1, 33)),
        ((2, 7), (2, 10)),
    ]


def test_survivors_count_as_explained_or_not(monkeypatch, tmp_path):
    file = tmp_path / "explained.json"
    file.write_text(json.dumps({"metrics": {"a -> b": "the same"}}))
    monkeypatch.setattr(mutation, "EXPLAINED_FILE", file)
    tried = [
        mutation.Change("killed", "op", 1, "x", "y"),
        mutation.Change("incompetent", "op", 1, "x", "z"),
        mutation.Change("survived", "op", 2, "a", "b"),
        mutation.Change("survived", "op", 3, "c", "d"),
        mutation.Change(mutation.SKIPPED, "op", 4, "", ""),
    ]
    result = mutation.counts("metrics", tried)
    assert [result[name] for name in ("possible", "tried", "killed", "explained")] == [5, 4, 2, 1]
    assert mutation.summary("metrics", result).endswith("  line 3: c -> d")
    assert mutation.total({"metrics": result}).startswith("all: 2 of 4 killed (50 per cent), 1 exp")


def test_every_module_has_tests():
    for module, paths in mutation.TESTS.items():
        assert (mutation.ROOT / "sigma_jax" / f"{module}.py").exists(), module
        assert all((mutation.ROOT / path).exists() for path in paths), module
    explained = json.loads(mutation.EXPLAINED_FILE.read_text())
    assert set(explained) <= set(mutation.TESTS)
