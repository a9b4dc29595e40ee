"""Versions of other people's libraries, as records have them."""

from mamba3_bench.bench import hardware, keys, peers


def test_a_source_tree_is_told_by_its_hash(tmp_path, monkeypatch):
    """Found before its package, it is what runs: changed text is another version."""
    library = tmp_path / "mamba_ssm"
    library.mkdir()
    (library / "__init__.py").write_text("")
    (library / "kernel.py").write_text("first")
    monkeypatch.syspath_prepend(tmp_path)
    first = hardware.package_versions.__wrapped__()["mamba-ssm"]
    (library / "kernel.py").write_text("second")
    second = hardware.package_versions.__wrapped__()["mamba-ssm"]
    assert first.startswith("source ")
    assert second.startswith("source ")
    assert first != second


def test_adapters_count_in_the_keys_of_rivals_alone(monkeypatch):
    """A change of an adapter, or of what adapters share, is another measurement of a rival."""
    peers.register()
    read = keys.Path.read_bytes
    changed = []

    def other(path):
        if path.match("bench/peers/official.py"):
            changed.append(path)
            return read(path) + b"\n"
        return read(path)

    known = [("prefill", "mamba_ssm"), ("decode", "cute")]
    before = [keys.source_hash.__wrapped__(*one, ()) for one in known]
    monkeypatch.setattr(keys.Path, "read_bytes", other)
    after = [keys.source_hash.__wrapped__(*one, ()) for one in known]
    assert changed
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True]
