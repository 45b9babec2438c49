"""Files are whole or absent, say what they are, and refuse what they are not; messages name what was wrong."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from tl_skillneurons import _files
from tl_skillneurons._checks import (
    differing,
    listed,
    near,
    require_int,
    require_open_unit,
    require_option,
    selection_size,
)
from tl_skillneurons._files import (
    FORMAT,
    KEY,
    fingerprint,
    load_tensors,
    package_version,
    read_json,
    save_tensors,
    write_json,
    write_json_lines,
    write_whole,
)
from tl_skillneurons._results import html_of, one_line


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Writing


def test_what_is_written_is_read_and_missing_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    assert write_whole(path, "grün\n") == path
    assert path.read_bytes() == "grün\n".encode()
    write_whole(str(path), b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["fsync", "chmod", "replace"])
def test_a_write_that_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, where, error):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*args):
        raise error

    if where == "fsync":
        monkeypatch.setattr(_files.os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, where, fail)
    raised = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OSError
    with pytest.raises(raised) as caught:
        write_whole(path, "new")
    if raised is OSError:
        assert str(caught.value) == (
            f"can't write {path}: No space left on device; choose a folder that can be written"
        )
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_a_reader_never_meets_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    seen = []
    real = os.fsync
    monkeypatch.setattr(_files.os, "fsync", lambda fd: seen.append(path.read_text()) or real(fd))
    write_whole(path, "new")
    assert seen == ["old"] and path.read_text() == "new"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_get_the_permissions_that_the_user_gives_new_files(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "file", "text")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("path", ["file/inside", "folder"])
def test_a_place_that_cant_be_written_is_refused(tmp_path, path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"can't write .*; choose a folder that can be written"):
        write_whole(tmp_path / path, "text")
    assert names(tmp_path) == ["file", "folder"] and names(tmp_path / "folder") == []


# JSON


def test_json_is_kept_as_a_person_can_read_it(tmp_path):
    content = {"kind": "Thing", "format": FORMAT, "words": ["schön", 1, None, 0.1]}
    path = write_json(tmp_path / "thing.json", content)
    text = path.read_text(encoding="utf-8")
    assert '\n  "words": [\n    "schön",' in text and text.endswith("}\n")
    assert read_json(path, "Thing") == content


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"deep": float("-inf")}]])
def test_numbers_that_json_has_not_are_refused_and_nothing_is_written(tmp_path, value):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "new" / "thing.json", {"value": value})
    with pytest.raises(ValueError, match="JSON compliant"):
        save_tensors(tmp_path / "new" / "tensors", "Thing", {"a": torch.ones(2)}, {"value": value})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON .*; it is corrupt or another kind of file"),
        (b"", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1, 2]", "was not written by tl_skillneurons .*; expected a Thing file"),
        (b'{"neurons": []}', "was not written by tl_skillneurons"),
        (b'{"kind": "Other", "format": 1}', "holds a Other, expected a Thing"),
        (b'{"kind": "Thing", "format": 2}', "has format 2, this version of tl_skillneurons reads 1"),
        (b'{"kind": "Thing"}', "has format None"),
    ],
)
def test_json_that_is_not_ours_is_refused(tmp_path, content, message):
    path = tmp_path / "thing.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        read_json(path, "Thing")
    assert str(refusal.value).startswith(str(path))


def test_json_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        read_json(tmp_path / "absent.json", "Thing")


def test_json_in_lines_has_one_for_each_value_and_each_entry_of_a_dict(tmp_path):
    content = {
        "kind": "Thing",
        "format": FORMAT,
        "layers": {"0": [1, 2], "3": [4]},
        "none": {},
        "list": [[1]],
    }
    path = write_json_lines(tmp_path / "thing.json", content)
    assert read_json(path, "Thing") == content
    assert path.read_text().splitlines()[4:] == [
        '  "layers": {', '    "0": [1, 2],', '    "3": [4]', "  },", '  "none": {},', '  "list": [[1]]', "}",
    ]  # fmt: skip


# Tensors


def flipped(content):
    """The content with one bit of it changed, at 32 places and at every byte of its beginning."""
    for place in {*range(0, len(content), max(1, len(content) // 32)), *range(min(300, len(content)))}:
        yield content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :]


def test_one_bit_that_changed_anywhere_in_a_file_of_tensors_is_refused_by_name(tmp_path):
    tensors = {"x": torch.randn(40, 3), "checksum": torch.zeros(2), "m": torch.tensor([True, False])}
    path = save_tensors(tmp_path / "thing", "Thing", tensors, {"é": ['"checksum":"' + "0" * 64 + '"']})
    load_tensors(path, "Thing")
    for changed in flipped(path.read_bytes()):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load_tensors(path, "Thing")


@pytest.mark.parametrize("write", [write_json, write_json_lines])
def test_one_bit_that_changed_anywhere_in_a_json_file_is_refused_by_name(tmp_path, write):
    content = {"kind": "Thing", "format": FORMAT, "x": {"checksum": "0" * 64, "é": [1.5, None]}}
    path = write(tmp_path / "thing.json", content)
    assert read_json(path, "Thing") == content
    for changed in flipped(path.read_bytes()):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read_json(path, "Thing")


def test_a_file_without_a_checksum_is_refused_with_the_reason(tmp_path):
    header = json.dumps({"kind": "Thing", "format": FORMAT})
    save_file({"x": torch.ones(2)}, tmp_path / "thing", metadata={KEY: header})
    (tmp_path / "thing.json").write_text(header)
    with pytest.raises(ValueError, match=r"thing has no checksum: .* make it anew"):
        load_tensors(tmp_path / "thing", "Thing")
    with pytest.raises(ValueError, match=r"thing\.json has no checksum: .* make it anew"):
        read_json(tmp_path / "thing.json", "Thing")


def test_what_is_loaded_owns_its_memory(tmp_path):
    path = save_tensors(tmp_path / "thing", "Thing", {"x": torch.ones(5000), "y": torch.ones(3)}, {})
    loaded, _ = load_tensors(path, "Thing")
    with path.open("r+b") as file:  # in place, as another program may
        file.write(bytes(path.stat().st_size))
    assert loaded["x"].eq(1).all() and loaded["y"].eq(1).all()
    os.truncate(path, 0)
    loaded["x"][0] = 2
    assert loaded["x"].sum() == 5001 and loaded["y"].eq(1).all()
    assert loaded["x"].untyped_storage().nbytes() == 20000


def test_tensors_and_their_header_come_back_bit_for_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "float": torch.randn(2, 3, generator=generator),
        "half": torch.randn(3, generator=generator).bfloat16(),
        "double": torch.tensor(1 / 3, dtype=torch.float64),
        "transposed": torch.arange(6).view(2, 3).T,
        "empty": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(1)),
    }
    header = {"words": ["schön", None], "nested": {"a": 0.1}}
    read, told = load_tensors(save_tensors(tmp_path / "file", "Thing", tensors, header), "Thing")
    assert sorted(read) == sorted(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)
    assert told == {"kind": "Thing", "format": FORMAT, "package_version": package_version(), **header}


def write_foreign(path, header):
    save_file({"a": torch.ones(2)}, path, metadata=None if header is None else {KEY: header})


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "is corrupt or not a safetensors file"),
        (lambda path: path.write_bytes(b"\x80\x04pickle" * 9), "is corrupt or not a safetensors file"),
        (lambda path: write_foreign(path, None), "was not written by tl_skillneurons .*; expected a Thing"),
        (lambda path: write_foreign(path, "{"), "is corrupt"),
        (lambda path: write_foreign(path, "[]"), "was not written by tl_skillneurons"),
        (lambda path: write_foreign(path, '{"kind": "Other"}'), "holds a Other, expected a Thing"),
        (lambda path: write_foreign(path, '{"kind": "Thing", "format": 9}'), "has format 9, .* reads 1"),
    ],
)
def test_tensors_that_are_not_ours_are_refused(tmp_path, write, message):
    path = tmp_path / "file"
    write(path)
    with pytest.raises(ValueError, match=message) as refusal:
        load_tensors(path, "Thing")
    assert str(refusal.value).startswith(str(path))


def test_half_a_file_of_tensors_is_refused(tmp_path):
    path = save_tensors(tmp_path / "file", "Thing", {"a": torch.ones(50)}, {})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is corrupt or not a safetensors file"):
        load_tensors(path, "Thing")


@pytest.mark.parametrize("path", ["absent", ""])
def test_tensors_that_are_not_there_are_named(tmp_path, path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_tensors(tmp_path / path, "Thing")


def test_the_version_is_known_even_where_the_package_is_not_installed(monkeypatch):
    def absent(name):
        raise _files.PackageNotFoundError(name)

    monkeypatch.setattr(_files, "version", absent)
    assert package_version() == "unknown"


def test_a_fingerprint_tells_bits_shapes_and_dtypes_apart():
    a = torch.arange(6.0)
    alike = [a, a.clone(), a.view(2, 3).view(6), torch.arange(12.0)[:6], a.requires_grad_()]
    assert len({fingerprint(tensor) for tensor in alike}) == 1
    last_bit = a.detach().clone()
    last_bit[5] = torch.nextafter(last_bit[5], torch.tensor(9.0))
    unlike = [a, last_bit, a.view(2, 3), a.view(2, 3).T, a.double(), a.bfloat16(), a.int(), torch.tensor(0.0)]
    several = [fingerprint(a, a), fingerprint(a[:3], a[3:]), fingerprint(a[:2], a[2:]), fingerprint()]
    assert len({fingerprint(tensor) for tensor in unlike} | set(several)) == len(unlike) + len(several)


# Messages


@pytest.mark.parametrize(
    ("name", "known", "clause"),
    [
        ("selct", ("train", "select"), "did you mean 'select'?"),
        ("xyz", ("train", "select"), "choose from 'train', 'select'"),
        (7, (1, 2), "choose from '1', '2'"),
        ("x", (), "choose from none"),
    ],
)
def test_near_names_are_listed_or_all(name, known, clause):
    assert near(name, known) == clause


def test_names_are_listed_as_they_are_written():
    assert listed(["a", 1, None]) == "'a', 1, None" and listed(iter(())) == "none"


@pytest.mark.parametrize("value", ["zro", "", None, 0, ["zero"]])
def test_an_unknown_option_is_refused_with_the_known_ones(value):
    with pytest.raises(ValueError) as refusal:
        require_option(value, "how", ("zero", "mean"))
    assert str(refusal.value).startswith(f"how must be one of 'zero', 'mean', got {value!r}; ")
    assert require_option("zero", "how", iter(("zero", "mean"))) == "zero"


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1", None, float("nan"), np.float64(2)])
def test_what_is_not_a_count_is_refused(value):
    with pytest.raises(ValueError) as refusal:
        require_int(value, "n_steps")
    assert str(refusal.value) == f"n_steps must be an integer of at least 1, got {value!r}"


def test_any_integer_becomes_an_int():
    for value in (3, np.int64(3), np.uint8(3)):
        assert type(require_int(value, "n")) is int
    assert json.dumps(require_int(np.int64(0), "n", minimum=0)) == "0"


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1, float("nan")])
def test_a_probability_at_an_end_or_outside_is_refused(value):
    with pytest.raises(ValueError, match="alpha must be between 0 and 1, both excluded, got"):
        require_open_unit(value, "alpha")
    assert require_open_unit(0.05, "alpha") == 0.05


def test_settings_that_differ_are_told_in_the_order_of_the_new_ones():
    was = {"seed": 0, "positions": "all", "gone": 1, "prompts": [1, 2]}
    assert differing(was, {"seed": 0, "prompts": [1, 2]}) == []
    assert differing(was, {"prompts": [1], "seed": 0, "positions": "text", "role": None, "new": 3}) == [
        "prompts: [1, 2] there, [1] now",
        "positions: 'all' there, 'text' now",
        "new: None there, 3 now",
    ]


@pytest.mark.parametrize(("amount", "count"), [(0.02, 2), (0.029, 2), (1.0, 100), (7, 7)])
def test_a_share_is_rounded_down_and_an_integer_is_a_count(amount, count):
    assert selection_size(amount, 100, per="layer") == count


@pytest.mark.parametrize("amount", [0.0, 0.009, 1.01, 0, 101, True])
def test_an_amount_that_is_no_neuron_or_too_many_is_refused(amount):
    with pytest.raises(ValueError, match="amount"):
        selection_size(amount, 100, per="layer")


# What results show


class Thing:
    n_rows = 3

    def to_dataframe(self):
        return pd.DataFrame({"x": [k / 3 for k in range(self.n_rows)], "<y>": "a & b"})

    def __repr__(self):
        return one_line(self, n=3, share=1 / 3, kind="<b>")


def test_a_result_says_itself_in_one_line_with_three_digits():
    assert repr(Thing()) == "Thing(n=3, share=0.333, kind='<b>')"


def test_the_html_of_a_result_is_its_line_over_the_first_rows_escaped():
    html = html_of(Thing())
    assert "kind=&#39;&lt;b&gt;&#39;)</code>" in html and "<b>" not in html
    assert "<td>0.667</td>" in html and "&lt;y&gt;" in html and "more rows" not in html
    many = Thing()
    many.n_rows = 1234
    assert "<p>1,224 more rows in to_dataframe()</p>" in html_of(many)
