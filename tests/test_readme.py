"""The README's code runs as it stands, from the first block to the last."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_its_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, README.name, "exec"), namespace)
    assert "144 blocks, 864 parameters" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "my-adapter").iterdir()} == {"adapter.json", "adapter.safetensors"}
    assert (tmp_path / "my-run").is_dir()
    assert (tmp_path / "my-oft" / "adapter_model.safetensors").is_file()
    assert namespace["adapter"].n_parameters == 600


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#h][^)]*)\)", README.read_text()))
def test_its_links_lead_somewhere(link):
    assert (README.parent / link).exists()


def test_it_names_every_chapter():
    chapters = sorted(int(path.name[:2]) for path in (README.parent / "book").glob("[0-9][0-9]_*.py"))
    assert [int(n) for n in re.findall(r"^\|[ \w]*\| (\d+) ", README.read_text(), re.MULTILINE)] == chapters
