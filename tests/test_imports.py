"""The package's names, each in a process of its own where what else was imported would matter."""

import ast
import importlib
import pkgutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOMS = "attention find interop interventions models plots prompts report scores stats studies tasks".split()
TOP = """
EffectPanel Findings InputCache NeuronScores NeuronSet PromptedModel RunOptions SoftPrompt Task ablate attribute_neurons
find_skill_neurons fit_soft_prompts load_model load_run measure_effects minimal_pairs packaged_model patch_neurons
plot_scores prune score_neurons
""".split()
"""What most work needs; everything else is reached through its room."""
FOLDER = Path(__file__).parents[1] / "tl_skillneurons"
PACKAGES = ["tl_skillneurons", *(f"tl_skillneurons.{room}" for room in ROOMS if (FOLDER / room).is_dir())]


def run(code):
    """What ``code`` prints to stdout in a fresh interpreter, which must print nothing to stderr."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def offered(package):
    """What the package's stub says: each name's module, relative to the package."""
    stub = FOLDER.joinpath(*package.split(".")[1:], "__init__.pyi")
    found = {}
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name, "a stub exports what it imports as itself"
                found[alias.name] = node.module or alias.name
    return found


def test_the_top_offers_the_rooms_and_the_names_that_most_work_needs_and_no_more(skn):
    assert sorted(skn.__all__) == sorted([*ROOMS, *TOP])


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_of_a_stub_is_there_and_comes_from_the_module_that_the_stub_names(package):
    room = importlib.import_module(package)
    names = offered(package)
    assert names and room.__all__ == sorted(names)
    assert set(names) <= set(dir(room))
    for name, module in names.items():
        value = getattr(room, name)
        if not isinstance(value, types.ModuleType):
            assert value is getattr(importlib.import_module(f"{package}.{module}"), name)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_offered_name_is_that_of_a_module_beside_it(package):
    """The import of such a module would put it in the place of the name."""
    folder = FOLDER.joinpath(*package.split(".")[1:])
    modules = {module.name for module in pkgutil.iter_modules([str(folder)])}
    assert not modules & set(offered(package)) - set(ROOMS)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_says_what_it_is_about_and_lists_all_it_offers(package):
    room = importlib.import_module(package)
    assert room.__doc__
    if package != "tl_skillneurons":
        missing = [name for name in room.__all__ if name not in room.__doc__]
        assert not missing


@pytest.mark.parametrize("package", PACKAGES)
def test_every_offered_name_says_what_it_is(package):
    room = importlib.import_module(package)
    for name in room.__all__:
        doc = getattr(room, name).__doc__
        assert doc and len(doc.split()) > 3, name


def test_dir_lists_every_offered_name_before_it_is_used():
    assert run("import tl_skillneurons as skn; print(set(skn.__all__) <= set(dir(skn)))") == "True\n"


@pytest.mark.parametrize(
    ("package", "name", "hint"),
    [
        ("tl_skillneurons", "score_neuron", "did you mean 'score_neurons'"),
        ("tl_skillneurons", "SoftPromt", "did you mean 'SoftPrompt'"),
        ("tl_skillneurons", "xyzzy", "choose from 'EffectPanel', "),
        ("tl_skillneurons.scores", "evaluate_rule", "did you mean 'evaluate_rules'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_near_ones(package, name, hint):
    room = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute '{name}'; {hint}"):
        getattr(room, name)
    assert not hasattr(room, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}'"):
        exec(f"from {package} import {name}", {})


def test_importing_the_package_and_its_rooms_loads_no_library_and_prints_nothing():
    code = (
        f"import importlib, sys; [importlib.import_module(package) for package in {PACKAGES}]; "
        "print(sorted({'datasets', 'numpy', 'pandas', 'pyarrow', 'rich', 'torch', 'transformer_lens', "
        "'transformers', 'typer'} & set(sys.modules)))"
    )
    assert run(code) == "[]\n"


SETTINGS = """
import importlib, locale, logging, os, pkgutil, random, warnings
import datasets, huggingface_hub, numpy, pandas, rich.progress, scipy.stats, torch, transformers
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
assert tl_skillneurons.tasks.ROLES[0] == "train"  # a room is reached as an attribute, a module of it by its import
import tl_skillneurons.tasks.roles
assert tl_skillneurons.tasks.roles.ROLES is tl_skillneurons.tasks.ROLES
for module in pkgutil.walk_packages(tl_skillneurons.__path__, "tl_skillneurons."):
    importlib.import_module(module.name)
print([number for number, (was, now) in enumerate(zip(before, settings())) if was != now])
"""
HIDDEN = f"""
import types
skn = tl_skillneurons
for package in map(importlib.import_module, {PACKAGES}):
    for name in package.__all__:
        if isinstance(getattr(package, name), types.ModuleType) != (package is skn and name in {ROOMS}):
            print("hidden:", package, name)
"""


def test_importing_every_module_changes_no_setting_that_its_libraries_have_not_changed_already_and_hides_no_name():
    assert run(SETTINGS + HIDDEN) == "[]\n"


def test_a_star_import_brings_every_offered_name():
    names = {}
    exec("from tl_skillneurons import *", names)
    assert not set(offered("tl_skillneurons")) - set(names)


def test_an_offered_name_can_be_replaced_and_put_back(skn, monkeypatch):
    real = skn.ablate
    with monkeypatch.context() as patch:
        patch.setattr(skn, "ablate", len)
        assert skn.ablate is len
    assert skn.ablate is real
