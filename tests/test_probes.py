"""The probes prove themselves: their answers cannot be guessed, a network without attention stays at chance, full
attention passes, a scheme that does less than it states is found out, and what did not learn is called so.
"""

from dataclasses import replace

import pytest
import torch
from small_cases import tiny
from torch import nn

import attention_zoo
from harness import plan
from harness.call import Call
from harness.cost.metrics import probes as metric
from harness.probes.tasks import TASKS
from harness.probes.train import FULL, QUICK, Block, Effort, train
from harness.spec import case
from records import learning
from records.record import MANIFEST, Record, read_record, write_manifest, write_record
from reports import build, probes, table

NO_MIXING = [Block("local_window", {"window": [1, 1, 1]})] * 2
BRIEF = Effort(steps=20, batch=8, tested=64)
SHORT = Effort(steps=160, batch=20, tested=128)  # enough for most questions


def folder_of(folder, **answers):
    """An ablation's folder with one row per keyword: what `train` gave, by the name of the task."""
    rows = []
    for row, of_tasks in answers.items():
        details = {"machine": "cpu"}
        measured = [
            metric.measured(name, [Block(row)] * 2, 1, BRIEF, answer, details) for name, answer in of_tasks.items()
        ]
        record = Record(
            f"{row}-0",
            "probes",
            row,
            {"clip": {"frames": 8, "size": 64}},
            {measurement.name: measurement for measurement in measured},
        )
        write_record(record, folder)
        rows.append({"row": row, "case_id": record.case_id})
    write_manifest({"name": "probes", "question": "?", "rows": rows, "figures": ["probes"]}, folder)
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_maps_and_the_query_is_marked(name):
    task = TASKS[name]
    first, again = (task.sample(16, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert first.x.shape == (16, task.grid.tokens, task.features)
    assert (first.x[..., 0].argmax(1) == first.query).all()
    assert (first.x[..., 0].sum(1) == 1).all()
    assert first.needs.any(1).all()
    assert all(len(values) == len(task.values) for values in (task.weights,))


@pytest.mark.parametrize("name", TASKS)
def test_place_and_content_of_the_query_do_not_tell_the_answer(name):
    """The best guess from them, learnt from as many maps as there are, is no better than chance; a vote may be one."""
    task = TASKS[name]
    for value in task.values:
        if name == "majority":
            continue
        seen, asked = (task.sample(20_000, torch.Generator().manual_seed(seed), value) for seed in (1, 2))
        alone = ~asked.needs[torch.arange(20_000), asked.query]
        table_of = torch.zeros(task.grid.tokens, task.classes).index_put_(
            (seen.query, seen.answer), torch.ones(20_000), accumulate=True
        )
        right = (table_of[asked.query].argmax(1) == asked.answer)[alone].float().mean().item()
        assert right < 1 / task.classes + 0.03, (name, value)


@pytest.mark.parametrize("name", ["space", "time", "order", "motion", "cut"])
def test_a_network_without_attention_stays_at_chance(name):
    answer = train(TASKS[name], NO_MIXING, 1, Effort(steps=60, batch=16, tested=512))
    chance = 100 / TASKS[name].classes
    assert max(answer["reach"]) < 3
    assert abs(sum(answer["by_dial"]) / len(answer["by_dial"]) - chance) < 5


@pytest.mark.parametrize("name, effort", [(name, FULL if name == "motion" else SHORT) for name in TASKS])
def test_full_attention_passes_at_the_easy_end(name, effort):
    answer = train(TASKS[name], [Block("full")] * 2, 1, effort)
    assert max(answer["by_dial"]) > 95
    assert set(answer["reach"]) == {100.0}


def test_attention_over_space_alone_knows_nothing_of_time_and_windows_end_at_their_edge():
    assert max(train(TASKS["time"], [Block("space_only")] * 2, 1, BRIEF)["reach"]) == 0
    windows = train(TASKS["space"], [Block("local_window", {"window": [2, 3, 4]})] * 2, 1, BRIEF)["reach"]
    near, *_, far = windows
    assert 50 < near < 100
    assert far == 0


class Framewise(nn.Module):
    """A planted bug: it looks at nothing outside of its frame and states that it sees everything."""

    example = {}

    def __init__(self, dim, num_heads, grid, *, kernel="auto"):
        super().__init__()
        self.inner, self.grid = attention_zoo.build("space_only", dim, num_heads, grid, kernel=kernel), grid

    def forward(self, x):
        return self.inner(x)

    def reach(self):
        return torch.ones(self.grid.tokens, self.grid.tokens, dtype=torch.bool)


@pytest.fixture
def framewise():
    attention_zoo.schemes.names()  # all are there, to be there afterwards
    before = dict(attention_zoo.schemes._entries)
    attention_zoo.register("framewise")(Framewise)
    yield "framewise"
    attention_zoo.schemes._entries.clear()
    attention_zoo.schemes._entries.update(before)


def test_a_scheme_that_sees_less_than_it_states_stands_out_in_the_table(framewise, tmp_path):
    names = ("space", "time")
    rows = {
        row: {name: train(TASKS[name], [Block(row)] * 2, 1, SHORT) for name in names} for row in ("full", "framewise")
    }
    text = build.build(folder_of(tmp_path, **rows)) and (tmp_path / "report.md").read_text()
    assert "- framewise, recall in time: reach says yes, the probe no at 1 " in text
    assert "- framewise, recall in space" not in text
    assert "- full" not in text
    line = next(line for line in text.splitlines() if line.startswith("| framewise "))
    assert ": blind**" in line
    assert line.count("blind") == 1
    assert (tmp_path / "probes.png").stat().st_size > 10_000
    assert "probe_time_7_blind" in (tmp_path / "table.csv").read_text()


def test_what_sees_more_than_it_states_is_told_too(tmp_path):
    answer = {"curve": [100.0] * 10, "by_dial": [100.0] * 5, "reach": [100.0, 0.0, 0.0, 0.0, 0.0]}
    lines = probes.findings(table.load(folder_of(tmp_path, wide={"time": answer})))
    assert lines == [
        "wide, recall in time: reach says no, the probe yes at 2 (100 %), 3 (100 %), 5 (100 %), 7 (100 %) frames apart"
    ]


def test_a_scheme_that_answers_nothing_of_what_it_partly_reaches_is_found_out(tmp_path):
    """Half of the answers within reach allow 56 %; windows that have these are no finding, one that guesses is."""
    partly = {"curve": [56.0] * 10, "by_dial": [56.0] * 5, "reach": [50.0] * 5}
    guessing = partly | {"by_dial": [13.0] * 5}
    folder = folder_of(tmp_path, local_window={"time": partly}, recurrent={"time": guessing})
    text = build.build(folder) and (folder / "report.md").read_text()
    places = ", ".join(f"{value} (13 %, 56 % allowed)" for value in TASKS["time"].values)
    assert f"- recurrent, recall in time: reach says yes, the probe no at {places} frames apart." in text
    assert "- local_window" not in text


def test_the_report_says_with_which_options_a_scheme_was_probed(tmp_path):
    answer = {"curve": [100.0] * 10, "by_dial": [100.0] * 5, "reach": [100.0] * 5}
    measured = metric.measured("time", [Block("global_pyramid", {"scales": [[2, 2, 2]]})] * 2, 1, BRIEF, answer, {})
    folder_of(tmp_path, full={"time": answer})
    record = read_record(tmp_path / "full-0.json")
    write_record(replace(record, measurements={measured.name: measured}), tmp_path)
    assert "full: `global_pyramid {'scales': [[2, 2, 2]]}`." in probes.section(table.load(tmp_path))


def test_a_question_is_held_to_its_controls(tmp_path):
    """Full attention has to learn it, and what reaches nothing has to guess."""
    solved = {"curve": [100.0] * 10, "by_dial": [100.0] * 5, "reach": [100.0] * 5}
    guessed = {"curve": [12.5] * 10, "by_dial": [12.5] * 5, "reach": [0.0] * 5}
    good = table.load(folder_of(tmp_path / "good", full={"space": solved}, nothing={"space": guessed}))
    assert (probes.controls(good).unlearnt, probes.controls(good).given_away) == ([], [])
    assert (
        "95 % or more at the easy end of 1 of 1 questions (least: recall in space, 100 %); rows that "
        in (probes.summary(good)[0])
    )
    half = solved | {"by_dial": [91.0] * 5}
    bad = table.load(
        folder_of(tmp_path / "bad", full={"space": half}, nothing={"space": guessed | {"by_dial": [40.0] * 5}})
    )
    assert probes.controls(bad).unlearnt == probes.controls(bad).given_away == ["probe_space"]
    assert "**recall in space is not learnt even so" in probes.summary(bad)[0]
    assert "**recall in space can be answered without attention**" in probes.summary(bad)[0]


def test_a_training_that_did_not_learn_or_was_not_done_is_never_a_plain_figure(tmp_path):
    still = train(TASKS["time"], [Block("full")] * 2, 1, Effort(steps=20, batch=16, rate=0.0, tested=64))
    climbing = {"curve": [12.0] * 8 + [20.0, 70.0], "by_dial": [70.0] * 5, "reach": [100.0] * 5}
    done = {"curve": [12.0] * 5 + [99.0] * 5, "by_dial": [99.0] * 5, "reach": [100.0] * 5}
    far = {"curve": [12.0] * 10, "by_dial": [12.0] * 5, "reach": [0.0] * 5}  # where there is nothing to learn
    answers = {"still": still, "climbing": climbing, "done": done, "far": far}
    folder = folder_of(tmp_path, **{row: {"time": answer} for row, answer in answers.items()})
    build.build(folder)
    cells = {line.split(" | ")[0][2:]: line for line in reversed((folder / "report.md").read_text().splitlines())}
    assert f"{learning.NOT_LEARNT} (train " in cells["still"]
    assert f"{learning.UNFINISHED} (train 70)" in cells["climbing"]
    assert learning.NOT_LEARNT not in cells["done"]
    assert learning.UNFINISHED not in cells["done"]
    assert {row.name: probes.training_word(row.measurement("probe_time")) for row in table.load(folder).measured} == {
        "still": learning.NOT_LEARNT,
        "climbing": learning.UNFINISHED,
        "done": "learnt",
        "far": probes.OUT_OF_REACH,
    }


def test_a_grid_that_a_scheme_refuses_is_a_reason_and_not_a_failure():
    answer = metric.answer("time", [Block("local_window", {"window": [0, 1, 1]})] * 2, 1, BRIEF, "auto")
    assert isinstance(answer, str)
    assert answer.startswith("not on a map of 8x2x4: ")
    absent = metric.measured("time", [], 1, BRIEF, answer, {"machine": "cpu"})
    assert absent.missing == answer
    assert not absent.retry


def test_blocks_are_those_of_the_first_stage_with_small_options_and_what_a_case_changes():
    entries = {entry.case.row: entry.case for entry in case.resolve(case.load("probes"), case.Settings(threads=1))}
    assert set(attention_zoo.schemes.names()) <= set(entries)
    local, pyramid = metric.blocks_of(entries["local + global"])
    assert (local.scheme, pyramid.scheme) == ("local_window", "global_pyramid")
    assert local.options == {"window": (2, 3, 4)}
    assert [block.options["window"] for block in metric.blocks_of(entries["no mixing"])] == [[1, 1, 1]] * 2


@pytest.mark.slow
def test_every_round_is_a_seed_and_a_run_goes_on_with_the_next(tmp_path):
    from harness import measuring

    ablation = case.load("probes")
    case.choose([ablation], ["no mixing"])
    for rounds in (1, 2):
        assert measuring.run(Call([ablation], case.Settings(quick=True), None, tmp_path, rounds=rounds)) == 0
        (path,) = (p for p in (tmp_path / "quick" / "probes").glob("*.json") if p.name != MANIFEST)
        measured = read_record(path).get("probe_space")
        assert [visit.round for visit in measured.visits] == list(range(1, rounds + 1))
    assert measured.said("seed") == [1, 2]
    assert len(measured.said("curve")) == 2


def test_the_short_form_already_tells_what_sees_from_what_does_not(tmp_path):
    """Minutes for all schemes, so that a look costs little; it says of itself that the full form decides."""
    names = ("space", "time", "cut")
    answers = {
        row: {name: train(TASKS[name], blocks, 0, QUICK) for name in names}
        for row, blocks in (("full", [Block("full")] * 2), ("nothing", NO_MIXING))
    }
    loaded = table.load(folder_of(tmp_path / "quick" / "probes", **answers))
    text = probes.summary(loaded)[0]
    assert text.startswith("Probes (1 seed of a short training; the full form decides)")
    assert "95 % or more at the easy end of 3 of 3 questions" in text
    assert probes.controls(loaded).given_away == []


def test_a_plan_of_probes_knows_their_trainings_and_not_the_clip():
    guesses = [
        plan.estimated(tiny(frames=frames), None, ["probes"], rounds, quick).guessed
        for frames, rounds, quick in ((4, 1, True), (8, 1, True), (4, 5, True), (4, 1, False))
    ]
    assert guesses[0] == guesses[1] == plan.START + metric.predicted(len(TASKS), QUICK.maps)
    assert guesses[2] == 5 * guesses[0]
    assert guesses[3] - plan.START == pytest.approx(FULL.maps / QUICK.maps * (guesses[0] - plan.START))
