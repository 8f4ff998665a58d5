"""What `auto` may use on a card follows from records, and from records alone."""

import json
from pathlib import Path

import pytest

from records.record import Measurement, Record, Visit
from reports import faster
from reports.table import AblationTable, Row

ROOT = Path(__file__).parents[1]
CONFIG = {"attention": {"L": {"scheme": "local_window"}}, "stages": [["L", "global_pyramid"]]}


def row(kernel, milliseconds, config=CONFIG, name="latency", device="cuda"):
    visits = tuple(Visit((milliseconds * (1 + n / 200),), n + 1, "one run", {}) for n in range(3))
    measured = Measurement(name, "timed", "latency", "ms", "lower", visits=visits, details={"gpu": "NVIDIA H200"})
    case = {"row": f"x {kernel}", "config": config, "kernel": kernel, "device": device, "dtype": "bfloat16"}
    return Row(f"x {kernel}", record=Record(f"x-{kernel}", "kernels", f"x {kernel}", case, {name: measured}, {}))


def found(*tables):
    return [(entry["scheme"], entry["backward"], entry["kernel"]) for entry in faster.entries(tables)]


def table(*rows):
    return AblationTable("kernels", "?", rows)


def test_a_kernel_that_is_faster_beyond_noise_is_taken_for_the_schemes_of_the_model():
    assert found(table(row("auto", 10.0), row("triton", 8.0))) == [
        ("global_pyramid", False, "triton"),
        ("local_window", False, "triton"),
    ]
    (entry, _) = faster.entries([table(row("sdpa", 10.0), row("triton", 8.0))])
    assert (entry["device"], entry["dtype"]) == ("NVIDIA H200", "bfloat16")
    assert [Path(place).name for place in entry["records"]] == ["x-triton.json"]


@pytest.mark.parametrize(
    "rows",
    [
        (row("auto", 10.0), row("triton", 9.99)),  # noise
        (row("auto", 8.0), row("triton", 10.0)),
        (row("reference", 10.0), row("triton", 8.0)),  # that is not what it would replace
        (row("auto", 10.0, config={**CONFIG, "widths": [1]}), row("triton", 8.0)),  # of another model
        (row("auto", 10.0, device="cpu"), row("triton", 8.0, device="cpu")),
        (row("auto", 10.0), row("flex", 8.0)),  # which has no programs for schemes
    ],
)
def test_nothing_else_is(rows):
    assert found(table(*rows)) == []


def test_one_table_that_says_otherwise_is_enough():
    other = {**CONFIG, "stages": [["L"]]}
    slower = table(row("auto", 8.0, other), row("triton", 10.0, other))
    assert found(table(row("auto", 10.0), row("triton", 8.0)), slower) == [("global_pyramid", False, "triton")]


def test_training_is_asked_for_itself_and_only_where_there_is_a_program():
    of = table(row("auto", 10.0, name="training_latency"), row("triton", 8.0, name="training_latency"))
    assert found(of) == [("local_window", True, "triton")]


def test_the_list_that_ships_is_what_the_committed_records_say(tmp_path, capsys):
    assert faster.main([str(ROOT / "results"), "--out", str(tmp_path / "faster.json")]) == 0
    assert (tmp_path / "faster.json").read_bytes() == faster.LIST.read_bytes()
    assert isinstance(json.loads(faster.LIST.read_text()), list)


def test_a_folder_without_records_leaves_the_list_alone(tmp_path, capsys):
    broken = tmp_path / "broken" / "device" / "kernels"
    broken.mkdir(parents=True)
    (broken / "ablation.json").write_text("{")
    of_one_ablation = ROOT / "results" / "cpu-amd-epyc-2-cores" / "kernels"
    for folder in (tmp_path / "nowhere", of_one_ablation, tmp_path / "broken"):
        assert faster.main([str(folder), "--out", str(tmp_path / "faster.json")]) == 2
        assert f"{folder.name} holds no readable records; give the folder" in capsys.readouterr().err
    assert not (tmp_path / "faster.json").exists()
