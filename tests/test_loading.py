import sys

import pytest

from autoclip.errors import UsageError
from autoclip.lab.loading import construct, load_object


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into a folder of its own; what importing it changes is undone."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)

    def write(name, text):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return tmp_path

    yield write
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_a_class_is_found_in_the_folder_and_in_packages_within(module):
    folder = module("load_a", "class A:\n    x = 5\n")
    module("load_package/inner", "class B:\n    y = 6\n")
    assert load_object("load_a:A", folder).x == 5
    assert load_object("load_package.inner:B", folder).y == 6


def test_the_folder_comes_first_during_the_import_and_last_afterwards(module):
    folder = module("load_helper", "VALUE = 3\n")
    later = "def later():\n    import load_late\n    return load_late.X\n"
    module("load_order", f"import sys\nimport load_helper\nFIRST = sys.path[0]\n{later}")
    assert load_object("load_order:FIRST", folder) == str(folder)
    assert sys.path[0] != str(folder)
    assert sys.path[-1] == str(folder)
    module("load_late", "X = 4\n")
    assert load_object("load_order:later", folder)() == 4
    assert sys.path.count(str(folder)) == 1


def test_a_folder_that_is_on_the_path_already_stays_where_it_is(module):
    folder = module("load_once", "X = 1\n")
    sys.path.insert(1, str(folder))
    before = list(sys.path)
    load_object("load_once:X", folder)
    assert sys.path == before


@pytest.mark.parametrize(
    "target", ["load_a", "load_a:", ":A", "load a:A", "load_a:A:B", "../load_a:A", "load_a.py:A.b"]
)
def test_a_target_is_module_and_class(tmp_path, target):
    with pytest.raises(UsageError, match="must be module:Class, as in my_module:MyTask"):
        load_object(target, tmp_path)


def test_a_missing_module_says_where_was_looked_and_what_is_close(module):
    folder = module("load_mine", "X = 1\n")
    with pytest.raises(UsageError) as error:
        load_object("load_mien:X", folder)
    assert str(error.value) == (
        f"load_mien:X: there is no module 'load_mien' (did you mean load_mine?); looked in {folder} and among the "
        "installed packages"
    )
    with pytest.raises(UsageError, match=r"load_mine\.inner:X: there is no module 'load_mine\.inner'"):
        load_object("load_mine.inner:X", folder)


def test_a_missing_attribute_says_what_is_close(module):
    folder = module("load_attribute", "class MyTask:\n    pass\n")
    with pytest.raises(UsageError) as error:
        load_object("load_attribute:MyTaks", folder)
    path = folder / "load_attribute.py"
    assert str(error.value) == (
        f"load_attribute:MyTaks: load_attribute ({path}) has no 'MyTaks' (did you mean MyTask?)"
    )


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("\nimport load_not_there\n", "ModuleNotFoundError: No module named 'load_not_there'", 2),
        ("def f():\n    return 1 / 0\nf()\n", "ZeroDivisionError: division by zero", 2),
        ("x = 1\ndef f(:\n", "SyntaxError: invalid syntax", 2),
        ("import sys\nsys.exit('bye')\n", "SystemExit: bye", 2),
        ("raise ValueError('two\\nlines')\n", "ValueError: two lines", 1),
        ("raise ValueError\n", "ValueError", 1),
    ],
)
def test_an_error_in_the_module_is_named_with_its_line(module, text, what, line):
    folder = module("load_broken", text)
    with pytest.raises(UsageError) as error:
        load_object("load_broken:X", folder)
    assert (
        str(error.value) == f"load_broken:X: importing load_broken failed: {what} ({folder / 'load_broken.py'}:{line})"
    )


def test_a_module_that_could_not_be_imported_can_be_mended(module):
    folder = module("load_mended", "1/0\n")
    with pytest.raises(UsageError):
        load_object("load_mended:X", folder)
    module("load_mended", "X = 12345\n")
    assert load_object("load_mended:X", folder) == 12345


CLASSES = """\
class Task:
    def __init__(self, *, width: int = 8):
        if width < 1:
            raise ValueError(f"width must be at least 1,\\ngot {width}")
        if width == 13:
            raise KeyError("unlucky")
        self.width = width
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widht": 3}, "got an unexpected keyword argument 'widht'; it takes width"),
        ({"width": 0}, r"refuses its arguments: ValueError: width must be at least 1, got 0 \(.*\.py:4\)$"),
        ({"width": 13}, r"refuses its arguments: KeyError: 'unlucky' \(.*\.py:6\)$"),
    ],
)
def test_construct_tells_in_one_line_what_the_class_refuses(module, arguments, message):
    target = "load_classes:Task"
    task = load_object(target, module("load_classes", CLASSES))
    assert construct(target, task, {"width": 3}).width == 3
    with pytest.raises(UsageError, match=message) as error:
        construct(target, task, arguments)
    assert "\n" not in str(error.value)
