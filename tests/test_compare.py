"""Two runs side by side: what changed beyond noise, what ran differently, and what cannot be compared."""

import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from flat import flat
from rich.console import Console
from test_reports import MACS, one_record, write

from records.record import Quantity, RecordError, Visit, read_record
from reports import compare

ROOT = Path(__file__).parents[1]
ROUNDS = [1, 1, 2, 2, 3, 3]


def run(folder, rows, name="scales", baseline=None):
    """A folder of records: `rows` maps each row to what differs in it."""
    records = [record(row, **changes) for row, changes in rows.items()]
    return write(folder / name, records, [{"baseline": baseline}] * len(rows), table=None)


def record(row, level=500.0, kernel="sdpa", operators=("flash",), machine="Example CPU", spread=0.01, **changes):
    """A record with three rounds of latency around `level` and of memory."""
    of_row = one_record(row, machine=machine, **changes)
    details = {"machine": machine, "kernel": kernel, "operators": list(operators), "torch": "2.13.0", "threads": 2}
    details |= {"rounds": ROUNDS, "rounds_wanted": 3}
    shares = (0.0, 1.0, 0.5, -0.5, -1.0, 0.2)
    samples = tuple(level * (1 + spread * share) for share in shares)
    timed = {
        "latency": flat("latency", "ms", "lower", samples, details=details),
        "throughput": flat("throughput", "clips/s", "higher", tuple(1000 / s for s in samples), details=details),
    }
    return replace(of_row, measurements={**of_row.measurements, **timed})


def lines(comparison, name="latency"):
    return {line.row: line for line in comparison.timings if line.name == name}


def compared(first, second):
    return compare.compare(compare.load(first), compare.load(second))


def test_what_is_slower_faster_and_neither(tmp_path):
    before = run(tmp_path / "a", {"same": {}, "slow": {}, "fast": {}, "little": {}})
    after = run(
        tmp_path / "b", {"same": {}, "slow": dict(level=700), "fast": dict(level=300), "little": dict(level=503)}
    )
    comparison = compared(before, after)
    latency, throughput = lines(comparison), lines(comparison, "throughput")
    assert {row: line.verdict for row, line in latency.items()} == {
        "same": "not distinguishable",
        "slow": "slower",
        "fast": "faster",
        "little": "not distinguishable",
    }
    assert (throughput["slow"].verdict, throughput["fast"].verdict) == ("slower", "faster")
    assert latency["slow"].ratio.interval.value == pytest.approx(1.4)
    assert {line.row for line in comparison.worse(["slower"])} == {"slow"}
    assert (comparison.counts, comparison.lost, comparison.circumstances) == ([], [], {})
    page = compare.markdown(comparison, "A", "B")
    assert "| example | slow | latency | 500.5 ms | 700.7 ms | 1.40 (" in page
    assert "| same |" not in page
    assert "What is not distinguishable is not listed: B / A lies from 0.994 to 1.01." in page
    assert "2 faster, 8 not distinguishable, 2 slower" in page
    assert "Exact counts: 20 equal, 0 differ." in page


def test_exact_counts_that_differ_are_listed(tmp_path):
    comparison = compared(run(tmp_path / "a", {"x": {}}), run(tmp_path / "b", {"x": dict(macs=MACS + 1)}))
    (line,) = comparison.counts
    assert (line.name, line.before, line.after) == ("macs", f"{MACS:,} MAC", f"{MACS + 1:,} MAC")
    assert "Exact counts that differ" in compare.markdown(comparison, "A", "B")


def test_different_kernels_are_never_compared_in_silence(tmp_path):
    other = dict(kernel="reference", operators=["explicit softmax"], level=900)
    comparison = compared(run(tmp_path / "a", {"x": {}, "y": {}}), run(tmp_path / "b", {"x": {}, "y": other}))
    assert lines(comparison)["x"].notes == ()
    assert lines(comparison)["y"].notes == ("kernel: sdpa → reference", "operators: flash → explicit softmax")
    assert list(comparison.circumstances["kernel"].values()) == [["example: y"]]
    page = compare.markdown(comparison, "A", "B")
    assert "Different kernels or operators ran" in page
    assert "## Different circumstances" in page


def test_two_machines_and_formats_are_matched_and_told(tmp_path):
    second = run(tmp_path / "b", {"x": dict(machine="Example GPU", dtype="bfloat16", level=50)})
    comparison = compared(run(tmp_path / "a", {"x": {}}), second)
    assert comparison.matched == 1
    assert set(comparison.circumstances) == {"device", "dtype"}
    assert "The machines differ" in compare.markdown(comparison, "A", "B")


def test_rows_ablations_and_measurements_in_one_only(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    run(first, {"x": {}, "gone": {}, "full": {}})
    run(second, {"x": {}, "new": {}, "full": dict(latency="out of memory")}, name="scales")
    run(second, {"z": {}}, name="other")
    lost = compare.read_record(next((second / "scales").glob("full-*.json")))
    empty = replace(lost.measurements["latency"], visits=(), missing="out of memory")
    write(
        second / "scales",
        [record("x"), record("new"), replace(lost, measurements=lost.measurements | {"latency": empty})],
        table=None,
    )
    comparison = compared(first, second)
    assert comparison.only == {"A": ["scales: gone"], "B": ["other (all 1 rows)", "scales: new"]}
    (line,) = comparison.lost
    assert (line.row, line.after, line.worse) == ("full", "— (out of memory)", "slower")


def test_an_ablation_s_folder_and_an_outputs_folder_both_do(tmp_path):
    folder = run(tmp_path / "a", {"x": {}})
    assert compared(folder, tmp_path / "a").matched == compared(tmp_path / "a", folder).matched == 1


def test_a_partial_measurement_says_so(tmp_path):
    part = record("x")
    latency = part.measurements["latency"]
    latency = replace(latency, visits=latency.visits[:2])
    second = write(tmp_path / "b" / "scales", [replace(part, measurements={"latency": latency})], table=None)
    assert lines(compared(run(tmp_path / "a", {"x": {}}), second))["x"].notes == ("B has 2 of 3 rounds",)


def test_what_moves_all_rows_alike_is_told(tmp_path):
    rows = "abcd"
    first = run(tmp_path / "a", {row: {} for row in rows})
    comparison = compared(first, run(tmp_path / "b", {row: dict(level=1000) for row in rows}))
    assert "latency B / A is 2 in the median over all rows" in compare.markdown(comparison, "A", "B")
    assert {line.verdict for line in comparison.timings if line.name == "peak_memory"} == {"not distinguishable"}


def test_the_command_and_its_exit_status(tmp_path, capsys):
    before = run(tmp_path / "a", {"x": {}})
    after = run(tmp_path / "b", {"x": dict(level=900)})
    assert compare.main([str(before), str(after)]) == 0
    assert "| slower |" in capsys.readouterr().out
    assert compare.main([str(before), str(after), "fail_on=slower"]) == 1
    assert compare.main([str(after), str(before), "fail_on=slower"]) == 0
    assert compare.main(["--help"]) == 0
    assert "fail_on=[slower,larger,counts,accuracy,missing]" in capsys.readouterr().out


def test_what_b_has_not_is_told_and_fails_where_it_shall(tmp_path, capsys):
    whole, row_less = run(tmp_path / "a", {"x": {}, "y": {}}), run(tmp_path / "b", {"x": {}})
    every = "fail_on=[slower,larger,counts,accuracy]"
    assert compare.main([str(whole), str(row_less), every]) == 0
    assert "not judged: 1 rows and measurements of A that B has not" in capsys.readouterr().err
    assert compare.main([str(whole), str(row_less), "fail_on=missing"]) == 1
    assert "failed on missing: scales, y, all measurements" in capsys.readouterr().err
    assert compare.main([str(row_less), str(whole), "fail_on=missing"]) == 0
    less = with_measurements(tmp_path / "c")
    path = next(less.glob("x-*.json"))
    of_row = read_record(path)
    del of_row.measurements["latency"]
    write(less, [of_row], table=None)
    assert compare.main([str(with_measurements(tmp_path / "d")), str(less), "fail_on=missing"]) == 1
    assert "failed on missing: example, x, latency" in capsys.readouterr().err


def test_a_gate_that_has_nothing_to_judge_does_not_pass(tmp_path, capsys):
    first, second = run(tmp_path / "a", {"x": {}}), run(tmp_path / "b", {"y": {}})
    assert compare.main([str(first), str(second)]) == 0
    assert compare.main([str(first), str(second), "fail_on=slower"]) == 2
    assert "no row of" in capsys.readouterr().err


def test_answers_of_probes_are_scores(tmp_path, capsys):
    def probed(*answers):
        quantity = Quantity("probe_order", "probed", "order of two events", "percent", "higher")
        return replace(quantity.of([0]), visits=tuple(Visit((answer,), round=n) for n, answer in enumerate(answers)))

    sides = [
        with_measurements(tmp_path / str(n), probe_order=probed(*answers))
        for n, answers in enumerate([(98.0, 99.0, 97.0), (51.0, 50.0, 49.0)])
    ]
    assert compare.main([*map(str, sides), "fail_on=accuracy"]) == 1
    printed = capsys.readouterr()
    assert "| example | x | probe_order | 98 percent | 50 percent | -48.0 points [" in printed.out
    assert "Accuracies: 0 equal, 1 differ, 1 of them lower." in printed.out
    assert re.search(r"Exact counts: \d+ equal, 0 differ\.", printed.out)


def test_a_narrow_terminal_loses_no_letter(tmp_path):
    slower = run(tmp_path / "b", {"a_row_of_a_long_name": dict(level=900)})
    comparison = compared(run(tmp_path / "a", {"a_row_of_a_long_name": {}}), slower)
    console = Console(width=40, record=True, file=io.StringIO())
    compare._show(comparison, [Path("A"), Path("B")], console)
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 40


def seeded(top1, videos=400):
    """An accuracy with one training for each value."""
    quantity = Quantity("top1_quick", "scored", "top-1", "percent", "higher")
    visits = tuple(Visit((value,), details={"seed": seed}) for seed, value in enumerate(top1))
    return replace(quantity.of([0], {"videos": videos}), visits=visits)


def with_measurements(folder, **changed):
    of_row = record("x")
    return write(folder / "scales", [replace(of_row, measurements=of_row.measurements | changed)], [{}], table=None)


GATES = {  # before, after, the word that fails on it; another word does not
    "slower": ({}, {"latency": flat("latency", "ms", "lower", (900.0, 901.0, 902.0))}),
    "larger": (
        {"peak_memory": flat("peak_memory", "bytes", "lower", (2**30,))},
        {"peak_memory": flat("peak_memory", "bytes", "lower", (2**31,))},
    ),
    "counts": ({}, {"macs": Quantity("macs", "counted", "multiply-adds", "MAC", "lower").of([MACS + 10**9])}),
    "accuracy": ({"top1_quick": seeded([82, 81, 83])}, {"top1_quick": seeded([12.5, 12, 13])}),
}


@pytest.mark.parametrize("word", GATES)
def test_a_gate_fails_on_what_it_names_and_on_nothing_else(word, tmp_path, capsys):
    before, after = (
        with_measurements(tmp_path / side, **changed) for side, changed in zip("ab", GATES[word], strict=True)
    )
    every = "fail_on=[slower,larger,counts,accuracy]"
    assert compare.main([str(before), str(after), every]) == 1
    assert compare.main([str(before), str(after), f"fail_on={word}"]) == 1
    assert f"failed on {word}: example, x, " in capsys.readouterr().err
    others = ",".join(other for other in GATES if other != word)
    assert compare.main([str(before), str(after), f"fail_on=[{others}]"]) == 0
    assert compare.main([str(before), str(before), every]) == 0
    if word != "slower":  # a better one is no fault
        assert compare.main([str(after), str(before), every]) == 0


@pytest.mark.parametrize(
    "videos, top1, fails", [(400, (82, 12.5), True), (8, (75, 62.5), False), (None, (82, 81), True)]
)
def test_the_accuracy_of_one_seed_is_judged_by_its_videos(videos, top1, fails, tmp_path):
    sides = [with_measurements(tmp_path / str(n), top1_quick=seeded([value], videos)) for n, value in enumerate(top1)]
    assert compare.main([*map(str, sides), "fail_on=accuracy"]) == fails


def test_a_count_that_its_closed_form_contradicts_is_an_error(tmp_path, capsys):
    counted = Quantity("macs", "counted", "multiply-adds", "MAC", "lower").of([MACS], {"closed_form": MACS})
    before = with_measurements(tmp_path / "a", macs=counted)
    after = with_measurements(tmp_path / "b", macs=replace(counted, visits=(Visit((MACS + 10**9,)),)))
    (path,) = after.glob("x-*.json")
    with pytest.raises(RecordError, match="their closed form says") as caught:
        read_record(path)
    assert path.name in str(caught.value)
    assert compare.main([str(before), str(after)]) == 2
    assert "their closed form says" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give two folders of records, A and B; given: 0"),
        (["{a}", "nowhere"], "nowhere is not a folder"),
        (["{a}", "{empty}"], "no records in"),
        (["{a}", "{a}", "fail_on=slow"], "did you mean 'slower'"),
        (["{a}", "{a}", "fail_on=[slower,count]"], "unknown fail_on 'count'; did you mean 'counts'"),
        (["{a}", "{a}", "fial_on=slower"], "unknown option 'fial_on'; did you mean 'fail_on'"),
        (["{a}", "{a}", "--fail"], "unknown flag '--fail'"),
        (["{a}", "{a}", "fail_on=slower", "fail_on=counts"], "fail_on is given twice"),
        (["{a}", "{broken}"], "cannot be read as a record"),
    ],
)
def test_a_wrong_command_is_refused_with_the_way_out(tmp_path, capsys, arguments, message):
    places = {
        "a": run(tmp_path / "a", {"x": {}}),
        "empty": tmp_path / "empty",
        "broken": run(tmp_path / "c", {"x": {}}),
    }
    places["empty"].mkdir()
    next(places["broken"].glob("x-*.json")).write_text("{")
    assert compare.main([argument.format(**places) for argument in arguments]) == 2
    assert message in capsys.readouterr().err


def test_no_torch_is_needed(tmp_path):
    code = "import sys; from reports import compare; compare.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    folder = str(run(tmp_path / "a", {"x": {}}))
    subprocess.run([sys.executable, "-c", code, folder, folder], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_accuracies_are_compared_over_shared_seeds(tmp_path):
    from reports.compare import _accuracies

    def measured(samples, seeds):
        return flat("top1_quick", "percent", "higher", samples, details={"seeds": seeds, "machine": "m"})

    before = measured([50.0, 52.0, 51.0], [0, 1, 2])
    assert _accuracies(before, measured([60.1, 61.9, 61.0], [0, 1, 2]))[0].startswith("+10.0 points")
    assert "not distinguishable" in _accuracies(before, measured([50.5, 51.0, 52.0], [0, 1, 2]))[0]
    assert "fewer than 2" in _accuracies(before, measured([60.0], [0]))[0]


def test_accuracy_has_no_noise_floor_and_counts_as_none_of_the_timings(tmp_path):
    accuracy = flat("top1_quick", "percent", "higher", (10.0,), details={"machine": "Example CPU"})

    def with_accuracy(folder):
        of_row = record("x")
        return write(folder / "scales", [replace(of_row, measurements={**of_row.measurements, "top1_quick": accuracy})])

    comparison = compared(with_accuracy(tmp_path / "a"), with_accuracy(tmp_path / "b"))
    assert (
        set(comparison.floors) == {line.name for line in comparison.timings} == {"latency", "throughput", "peak_memory"}
    )
    assert "top1" not in compare.markdown(comparison, "A", "B")


def test_what_runs_no_attention_has_no_kernel_to_differ_in(tmp_path):
    details = {"machine": "Example CPU", "kernel": None}
    ceilings = flat("matmul_ceiling", "MAC/s", "higher", (1e11,), details=details)

    def run(folder, choice):
        of_row = record("x")
        case = of_row.case | {"kernel": choice}
        return write(folder / "scales", [replace(of_row, case=case, measurements={"matmul_ceiling": ceilings})])

    comparison = compared(run(tmp_path / "a", "auto"), run(tmp_path / "b", "reference"))
    assert lines(comparison, "matmul_ceiling")["x"].notes == ()


def told(comparison, name="latency"):
    """What is said of one measurement, and what is known of it."""
    (agreement,) = [agreement for agreement in comparison.agreements if agreement.name == name]
    start = f"scales, {name.replace('_', ' ')}: "
    return next(line for line in compare.summary(comparison) if line.startswith(start)), agreement


def test_two_rows_that_changed_places_are_named(tmp_path):
    levels = {"full": 900, "fast": 300, "slow": 700}
    swapped = {"full": 900, "fast": 700, "slow": 300}
    first, same, second = (
        run(tmp_path / name, {row: dict(level=level) for row, level in rows.items()}, baseline="full")
        for name, rows in (("a", levels), ("same", levels), ("b", swapped))
    )
    text, agreement = told(compared(first, same))
    assert "3 of 3 pairs of rows can be told apart in both runs, all in the same order" in text
    assert (
        "of 2 ratios to full, 2 have intervals that overlap or differ by less than the noise floor, 2 with each" in text
    )
    assert (agreement.reversed, agreement.outside) == ([], [])

    comparison = compared(first, second)
    text, agreement = told(comparison)
    assert "3 of 3 pairs of rows can be told apart in both runs, 2 in the same order, 1 reversed" in text
    assert (
        "of 2 ratios to full, 0 have intervals that overlap or differ by less than the noise floor, 0 with each" in text
    )
    ((rows, before, after),) = agreement.reversed
    assert (rows, before.split()[0], after.split()[0]) == ("fast and slow", "300.3", "700.7")
    assert (" < " in before, " > " in after) == (True, True)
    assert [line[0] for line in agreement.outside] == ["fast / full", "slow / full"]
    page = compare.markdown(comparison, "A", "B")
    assert "| scales | latency | fast and slow | 300.3 (" in page
    assert "| scales | latency | fast / full | 0.33333 (" in page


def test_intervals_that_overlap_and_rows_of_different_clips_are_not_ranked(tmp_path):
    first = run(tmp_path / "a", {"x": dict(level=500), "y": dict(level=502), "z": dict(level=900, frames=16)})
    second = run(tmp_path / "b", {"x": dict(level=502), "y": dict(level=500), "z": dict(level=100, frames=16)})
    text, agreement = told(compared(first, second))
    assert text == "scales, latency: 0 of 1 pair of rows can be told apart in both runs."
    assert (agreement.pairs, agreement.reversed, agreement.baselines) == (1, [], [])


def test_a_pair_apart_in_one_run_only_is_not_judged(tmp_path):
    first = run(tmp_path / "a", {"x": dict(level=500), "y": dict(level=900)})
    second = run(tmp_path / "b", {"x": dict(level=502), "y": dict(level=500)})
    assert told(compared(first, second))[1].apart == 0


def with_one_sample(folder, **levels):
    """Rows with memory and latency of one round and one sample, in MiB and ms."""
    records = []
    for row, level in levels.items():
        of_row = record(row)
        once = {
            name: replace(of_row.measurements[name], visits=(Visit((sample,)),), details={"machine": "Example CPU"})
            for name, sample in (("peak_memory", int(level * 2**20)), ("latency", float(level)))
        }
        records.append(replace(of_row, measurements=once))
    return write(folder / "scales", records, [{"baseline": "full"}] * len(records), table=None)


def test_memory_of_one_round_is_not_held_to_the_floor_of_timings(tmp_path):
    first = with_one_sample(tmp_path / "a", full=700, more=500, steady=500)
    comparison = compared(first, with_one_sample(tmp_path / "b", full=700, more=515, steady=502))
    assert comparison.floors == {"peak_memory": 0.01, "latency": 0.10}
    memory = {row: line.verdict for row, line in lines(comparison, "peak_memory").items()}
    assert memory == {"full": "not distinguishable", "more": "more", "steady": "not distinguishable"}
    assert {line.verdict for line in lines(comparison).values()} == {"not distinguishable"}


def test_one_round_reaches_as_far_as_the_noise_floor(tmp_path):
    first = with_one_sample(tmp_path / "a", full=700, more=500, steady=501)
    comparison = compared(first, with_one_sample(tmp_path / "b", full=700, more=515, steady=500))
    _, memory = told(comparison, "peak_memory")
    assert (memory.pairs, memory.apart, memory.reversed) == (3, 2, [])  # not 500 and 501
    assert [line[0] for line in memory.outside] == ["more / full"]
    assert told(comparison)[1].outside == []  # timings of one process drift by more


def test_another_generation_of_one_processor_s_name_is_told(tmp_path):
    def of_generation(folder, machine="Example CPU", **generation):
        of_row = record("x", machine=machine)
        made = replace(of_row, provenance=of_row.provenance | {"cpu_generation": generation})
        return write(folder / "scales", [made if generation else of_row], table=None)

    first = of_generation(tmp_path / "a", family=25, model=1, vectors=["avx2"])
    second = of_generation(tmp_path / "b", family=25, model=17, vectors=["avx2", "avx512f"])
    comparison = compared(first, second)
    (change,) = comparison.circumstances["cpu generation"]
    assert change == ("model 1, vectors avx2", "model 17, vectors avx2 avx512f")
    assert "Under one machine's name the processors differ" in compare.markdown(comparison, "A", "B")

    assert compared(first, first).circumstances == {}
    assert compared(first, of_generation(tmp_path / "old")).circumstances == {}  # not recorded then
    other = of_generation(tmp_path / "c", machine="Another CPU", family=6, vectors=[])
    assert set(compared(first, other).circumstances) == {"device"}
