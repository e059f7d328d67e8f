import contextlib
import io
import re
import subprocess
import sys

from conftest import ROOT

PAGE = (ROOT / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_prints_what_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {}
    assert len(BLOCKS) >= 3
    for code, printed in BLOCKS:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(code, names)
        assert output.getvalue() == printed


def test_type_checkers_take_the_page(tmp_path):
    page = tmp_path / "page.py"
    page.write_text("".join(code for code, _ in BLOCKS) + "\nx: int = model.name  # wrong\n")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(page)],
        capture_output=True,
        text=True,
    )
    errors = [line for line in checked.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1 and 'expression has type "str"' in errors[0], checked.stdout
