"""The package's names, each in a process of its own where what else was imported would matter."""

import ast
import inspect
import subprocess
import sys

import pytest


def run(code):
    """What ``code`` prints to stdout in a fresh interpreter, which must print nothing to stderr."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def test_every_exported_name_is_there_and_is_no_module(skn):
    for name in skn.__all__:
        value = getattr(skn, name)
        assert callable(value)
        assert value.__name__ == name
        assert value.__module__ == f"tl_skillneurons.{skn._MODULES[name]}"


def test_the_exported_names_are_sorted_and_the_same_at_run_time_and_for_type_checkers(skn):
    assert skn.__all__ == sorted(skn.__all__)
    assert list(skn._MODULES) == skn.__all__
    blocks = [node for node in ast.parse(inspect.getsource(skn)).body if isinstance(node, ast.If)]
    imported = {
        alias.name: node.module
        for node in blocks[0].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {name: f"tl_skillneurons.{module}" for name, module in skn._MODULES.items()}


def test_dir_lists_every_exported_name_before_it_is_used():
    assert run("import tl_skillneurons as skn; print(set(skn.__all__) <= set(dir(skn)))") == "True\n"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("score_neuron", "did you mean 'score_neurons'"),
        ("SoftPromt", "did you mean 'SoftPrompt'"),
        ("loadin", "did you mean 'loading'"),
        ("xyzzy", "choose from 'AblationEffect', "),
    ],
)
def test_an_unknown_name_is_refused_with_the_near_ones(skn, name, hint):
    with pytest.raises(AttributeError, match=f"'tl_skillneurons' has no attribute '{name}'; {hint}"):
        getattr(skn, name)
    assert not hasattr(skn, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}'"):
        exec(f"from tl_skillneurons import {name}", {})


def test_importing_the_package_loads_no_library_and_prints_nothing():
    code = (
        "import sys, tl_skillneurons; "
        "print(sorted({'datasets', 'numpy', 'pandas', 'pyarrow', 'rich', 'torch', 'transformer_lens', "
        "'transformers'} & set(sys.modules)))"
    )
    assert run(code) == "[]\n"


SETTINGS = """
import importlib, locale, logging, os, pkgutil, random, warnings
import datasets, huggingface_hub, numpy, pandas, rich.progress, torch, transformers
import transformer_lens.model_bridge.sources.transformers

def settings():
    return [
        torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_rng_state().tolist(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        random.getstate(), numpy.random.get_state()[1].tolist(), numpy.geterr(), pandas.options.display.max_rows,
        list(warnings.filters), dict(os.environ), locale.setlocale(locale.LC_ALL),
        logging.root.level, logging.root.handlers[:], logging.getLogger("huggingface_hub").level,
        transformers.logging.get_verbosity(), datasets.are_progress_bars_disabled(),
        huggingface_hub.utils.are_progress_bars_disabled(),
    ]

before = settings()
import tl_skillneurons
for module in pkgutil.iter_modules(tl_skillneurons.__path__):
    importlib.import_module(f"tl_skillneurons.{module.name}")
print([number for number, (was, now) in enumerate(zip(before, settings())) if was != now])
"""


def test_importing_every_module_changes_no_setting_that_its_libraries_have_not_changed_already():
    assert run(SETTINGS) == "[]\n"


def test_a_module_is_reached_by_import_or_as_an_attribute():
    assert run("import tl_skillneurons.tasks.roles; print(tl_skillneurons.tasks.roles.ROLES[0])") == "train\n"
    assert run("import tl_skillneurons as skn; print(skn.tasks.roles.ROLES[0])") == "train\n"
    assert run("from tl_skillneurons tasks; print(tasks.ROLES[0])") == "train\n"


def test_no_module_hides_an_exported_name_even_when_it_is_imported_first():
    code = (
        "import importlib, pkgutil, types, tl_skillneurons as skn\n"
        "for module in pkgutil.iter_modules(skn.__path__):\n"
        "    importlib.import_module(f'tl_skillneurons.{module.name}')\n"
        "    if module.name not in skn.__all__:\n"
        "        assert isinstance(getattr(skn, module.name), types.ModuleType)\n"
        "for name in skn.__all__:\n"
        "    assert getattr(skn, name).__name__ == name\n"
    )
    assert run(code) == ""


def test_a_star_import_brings_every_exported_name():
    code = (
        "import tl_skillneurons; from tl_skillneurons import *; "
        "print(set(tl_skillneurons.__all__) - set(globals()))"
    )
    assert run(code) == "set()\n"


def test_an_exported_name_can_be_replaced_and_put_back(skn, monkeypatch):
    real = skn.ablate
    with monkeypatch.context() as patch:
        patch.setattr(skn, "ablate", len)
        assert skn.ablate is len
    assert skn.ablate is real
