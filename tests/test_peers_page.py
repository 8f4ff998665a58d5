"""Our models beside public code on the page of costs: the records of `benchmarks.peers` as a reader sees them."""

from statistics import median

import pytest
from flat import flat

from records.record import Record, RecordError, case_id, write_manifest, write_record
from reports import build, cost_page, peers

MIB = 2**20
FAST, LEVEL = (2.0, 2.02, 2.04), (0.98, 1.0, 1.05)


def sides(name, unit, theirs, ours):
    values = zip(peers.SIDES, (theirs, ours), strict=True)
    return [flat(f"{name}_{side}", unit, "lower", (value,)) for side, value in values]


def compared(scheme="local_global", *, forward=FAST, training=None, memory=None, difference=2e-7, dirty=False, **case):
    """A record as `benchmarks.peers` writes it; what is None was not asked for."""
    made = [flat("difference", "1", "lower", (difference,), details={"largest_logit": 0.8})]
    for mode, found in (("forward", forward), ("training", training)):
        if found:
            made += sides(f"{mode}_latency", "ms", 1000.0 * median(found), 1000.0)
            details = {"interval": [min(found), max(found)], "coverage": 0.9375}
            made.append(flat(f"{mode}_speedup", "times", "higher", found, details=details))
    if isinstance(memory, str):
        made.append(flat("training_memory_ratio", "times", "higher", missing=memory))
    elif memory:
        made += sides("training_memory", "bytes", memory * 100 * MIB, 100 * MIB)
        made.append(flat("training_memory_ratio", "times", "higher", (memory,)))
    settings = {"scheme": scheme, "peer": "public code 1.0", "frames": 32, "size": 224, "depth": None, "batch_size": 1}
    settings |= {"device": "cpu", "dtype": "float32", "kernel": "auto", "seed": 0, "threads": 2, **case}
    source = {"commit": "0123456789abcdef", "dirty": dirty, "cpu": "Example CPU", "cores": {"usable": 4}}
    source |= {"packages": {"torch": "2.13.0"}}
    return Record(case_id(scheme, settings), "peers", scheme, settings, {one.name: one for one in made}, source)


def lines(text):
    """The cells of each line of the only table, by its headings."""
    head, _, *rows = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|"))
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_each_comparison_is_a_line():
    (line,) = lines(peers.section([compared(training=(1.5, 1.51, 1.52), memory=2.5)]))
    assert line == {
        "scheme": "local_global",
        "set beside": "public code 1.0",
        "clip": "32x224x224",
        "batch": "1",
        "dtype": "float32",
        "ours runs": "eager",
        "forward ↑": "2.02 (2.00–2.04, 93.8 %, 3 pairs); 2020 / 1000 ms",
        "training step ↑": "1.51 (1.50–1.52, 93.8 %, 3 pairs); 1510 / 1000 ms",
        "memory of a step ↑": "2.50; 250 / 100 MiB",
        "commit": "0123456789",
    }


def test_what_they_share_is_said_once():
    text = peers.section([compared(), compared("divided", difference=3e-6)])
    assert "Measured on: Example CPU, 4 cores, torch 2.13.0, 2 threads." in text
    assert "they differ by at most 3.0e-06" in text
    assert "Compiled" not in text
    text = peers.section([compared(), compared(threads=1, compile=True)])
    places = [line["measured on"] for line in lines(text)]
    assert places == ["Example CPU, 4 cores, torch 2.13.0, 2 threads", "Example CPU, 4 cores, torch 2.13.0, 1 thread"]
    assert "Compiled is ours alone" in text
    on_gpu = compared(device="cuda")
    on_gpu.provenance["gpu"] = "Example GPU"
    assert "Measured on: Example GPU, torch 2.13.0." in peers.section([on_gpu])


@pytest.mark.parametrize("samples", [LEVEL, FAST])
def test_a_ratio_whose_interval_holds_1_says_nothing(samples):
    (line,) = lines(peers.section([compared(forward=samples)]))
    assert (", not distinguishable; " in line["forward ↑"]) == (samples == LEVEL)


def test_a_wide_interval_is_marked():
    text = peers.section([compared(forward=(2.0, 2.5, 3.0), training=FAST)])
    (line,) = lines(text)
    assert line["forward ↑"].endswith(" ms [1]")
    assert line["training step ↑"].endswith(" ms")
    assert "1. The interval is wider than 10% of the median: take it as rough." in text


def test_a_scheme_has_a_line_for_each_dtype_and_for_what_is_compiled(tmp_path):
    made = [
        compared("local_global", compile=True),
        compared("local_global", dtype="bfloat16", dirty=True),
        compared("local_global"),
        compared("divided", depth=2, kernel="reference"),
    ]
    for one in made:
        write_record(one, tmp_path / "peers")
    found = lines(peers.section(peers.load(tmp_path)[0]))
    assert [[line[key] for key in ("scheme", "dtype", "ours runs", "commit")] for line in found] == [
        ["divided, depth 2, kernel reference", "float32", "eager", "0123456789"],
        ["local_global", "float32", "eager", "0123456789"],
        ["local_global", "bfloat16", "eager", "0123456789 with local changes"],
        ["local_global", "float32", "compiled", "0123456789"],
    ]


def test_what_is_absent_says_why():
    text = peers.section([compared(memory="ours: out of memory")])
    (line,) = lines(text)
    assert (line["training step ↑"], line["memory of a step ↑"]) == ("— [1]", "— [2]")
    assert "1. Not asked for.\n2. Ours: out of memory." in text
    text = peers.section([compared(forward=None, difference=0.5), compared()])
    assert "1. Nothing was timed: the outputs differ by 5.0e-01, which is too much." in text
    assert "they differ by at most 2.0e-07" in text


def test_the_page_needs_no_ablation_and_names_a_broken_file(tmp_path):
    with pytest.raises(RecordError, match="no timed record"):
        cost_page.build(tmp_path)
    write_record(compared(), tmp_path / "peers")
    (tmp_path / "peers" / "torn.json").write_text("{")
    page = cost_page.build(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(
        "# What attention costs on Example CPU, 4 cores, torch 2.13.0\n\n## Against other implementations"
    )
    assert "\n\n\n" not in text
    assert "## Not shown\n\n- peers/torn.json cannot be read as a record" in text
    assert str(tmp_path) not in text
    before = page.read_bytes()
    assert cost_page.build(tmp_path).read_bytes() == before


def test_the_list_of_ablations_links_a_page_of_comparisons_alone(tmp_path):
    write_manifest({"name": "counted", "question": "How many?", "rows": []}, tmp_path / "counted")
    assert "cost.md" not in build.build_index(tmp_path).read_text(encoding="utf-8")
    write_record(compared(), tmp_path / "peers")
    assert "(cost.md)" in build.build_index(tmp_path).read_text(encoding="utf-8")
