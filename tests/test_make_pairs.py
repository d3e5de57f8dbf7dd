"""The command that writes pairs, as a user starts it: what it refuses and what it reports."""

from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "address", ["s3://bucket/pairs", "memory://x", "https://host/x", "pipe:cat > {}"]
)
def test_an_address_to_write_to_is_refused_and_no_folder_of_that_name_appears(
    tmp_path: Path, monkeypatch, here, address
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = here("make_pairs", "smoke", "--output_dir", address)
    assert refused.code == 2
    assert "expected a local folder to write to, got the address" in refused.err
    assert here("convert", "edm", "x.pkl", address).code == 2
    assert list(tmp_path.iterdir()) == []
