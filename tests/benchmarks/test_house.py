"""Drawing of the packages and their imports."""

from pathlib import Path
from xml.etree import ElementTree

from benchmarks.house import draw, list_levels, main, read_imports


def test_drawing_and_table_are_up_to_date() -> None:
    assert main(["--check"]) == 0


def test_imports_inside_functions_count_and_every_package_has_a_box(tmp_path: Path) -> None:
    for name, text in (("runtime/a", ""), ("ops/b", "def f():\n    from uumamba.runtime import a")):
        file = tmp_path / "uumamba" / f"{name}.py"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    (tmp_path / "uumamba" / "cli.py").write_text("import torch\nimport uumamba.ops.b")
    imports = read_imports(tmp_path)
    assert imports == {"runtime": frozenset(), "ops": {"runtime"}, "cli": {"ops"}}
    assert list_levels(imports) == [["runtime"], ["ops"], ["cli"]]
    texts = [each.text for each in ElementTree.fromstring(draw(imports)).iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["runtime", "ops", "cli"]
