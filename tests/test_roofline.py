"""Bytes that operators move, and how near a model comes to what its machine can do."""

import csv
import io
from dataclasses import replace

import pytest
import torch
from flat import flat
from small_cases import tiny
from torch import nn

import attention_zoo
from harness.cost import metrics
from harness.cost.build import build, example
from harness.cost.metrics.bytes_moved import by_operator
from harness.spec import case
from records.record import Record, case_id
from reports import data, figures, markdown, roofline
from reports.table import AblationTable, Row

# The last one chooses no block of so small a clip.
NO_SOFTMAX = ("linear", "depthwise_relation", "recurrent_gate", "sparse_linear")
# Products beside attention: of means, of sums, of some tokens.
POOLED_SCORES = ("video_sparse", "block_topk", "mixture_of_blocks", "pyramid_sparse")
MODELS = [f"pyramid_tiny_{scheme}" for scheme in attention_zoo.schemes.names()] + ["dualformer_tiny"]
FLOAT = 4  # bytes


class Does(nn.Module):
    """Some operators as a model."""

    def __init__(self, forward):
        super().__init__()
        self.forward = forward


def moved(forward, *shapes):
    """By operator, in numbers of float32, of some code on tensors of these shapes."""
    by_name = by_operator(Does(forward), *(torch.empty(shape, device="meta") for shape in shapes))
    return {name: count / FLOAT for name, count in by_name.items() if count}


# what is counted


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_a_model_computed_by_hand(dtype, size):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, x):
            return x + self.norm(self.linear(x))

    model, x = Residual().to("meta", dtype), torch.empty(2, 3, 4, device="meta", dtype=dtype)
    assert by_operator(model, x) == {
        "linear": (24 + 16 + 4 + 24) * size,  # tokens, weights and bias in, tokens out
        "layer_norm": (24 + 4 + 4 + 24) * size,
        "add": (24 + 24 + 24) * size,
    }


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.view(6, 4).t()[1:].unsqueeze(0).expand(5, -1, -1),
        lambda x: x.flatten(1).unflatten(1, (3, 4)).transpose(1, 2).permute(2, 0, 1).squeeze(),
        lambda x: x.chunk(2, dim=-1)[0].unbind(1),
        lambda x: x.contiguous().to(torch.float32).detach().reshape(-1),
        lambda x: torch.empty_like(x).new_empty(3),
        lambda x: nn.functional.dropout(x, 0.5, training=False),
    ],
)
def test_views_and_memory_without_content_count_nothing(view):
    assert moved(view, (2, 3, 4)) == {}


@pytest.mark.parametrize(
    ("forward", "counted"),
    [
        (lambda x: x.transpose(1, 2).contiguous(), {"contiguous": 24 + 24}),
        (lambda x: x.transpose(1, 2).reshape(-1), {"reshape": 24 + 24}),
        (lambda x: x + x[:1, :1].expand(2, 3, 4), {"add": 24 + 4 + 24}),
        (lambda x: x.unfold(0, 2, 1).expand(9, -1, -1, -1, -1).sum(0), {"sum": 24 + 24}),
        (lambda x: x.add_(1), {"add_": 24 + 24}),
        (lambda x: x.zero_(), {"zero_": 24}),
        (lambda x: x[0].copy_(x[1]), {"copy_": 12 + 12}),
        (lambda x: torch.mul(x[0], x[1], out=torch.empty_like(x[0])), {"mul": 12 + 12 + 12}),
        (lambda x: torch.zeros_like(x), {"zeros_like": 24}),
        (lambda x: torch.cat([x, x[:1]]), {"cat": 24 + 12 + 36}),
    ],
)
def test_reads_and_writes(forward, counted):
    assert moved(forward, (2, 3, 4)) == counted


def test_what_follows_from_shapes_alone_is_read_and_not_made():
    def forward(x):
        mask = torch.arange(12.0, device=x.device).view(3, 4) * 2 + 1
        kept = torch.zeros(2, 3, 4, device=x.device)
        kept[0] = x[0]  # no longer a constant: what is made of it is work of each pass
        return x + mask, kept * 2

    assert moved(forward, (2, 3, 4)) == {"add": 24 + 12 + 24, "copy_": 12 + 12, "mul": 24 + 24}


def test_fused_attention_reads_and_writes_tokens_and_bias_alone():
    def forward(q, k, v, bias):
        return attention_zoo.kernels.attend(q, k, v, bias.expand(2, 3, 7, 5), kernel="sdpa")

    by_name = moved(forward, (2, 3, 7, 4), (2, 3, 5, 4), (2, 3, 5, 4), (1, 3, 7, 5))
    assert by_name == {"scaled_dot_product_attention": 168 + 120 + 120 + 105 + 168}


@pytest.mark.parametrize("model", MODELS)
def test_attention_is_one_operator_of_every_scheme_on_every_kernel(model):
    chosen = tiny(model)
    by_name = by_operator(build(chosen, device="meta", kernel="sdpa"), example(chosen))
    scheme = model.removeprefix("pyramid_tiny_")
    assert (by_name.get("scaled_dot_product_attention", 0) > 0) == (scheme not in NO_SOFTMAX)
    if scheme not in NO_SOFTMAX + POOLED_SCORES:
        assert not {"softmax", "_softmax", "bmm", "baddbmm", "matmul", "einsum"} & set(by_name)
    counted = {kernel: bytes_of(replace(chosen, kernel=kernel)) for kernel in ("auto", "reference", "sdpa")}
    assert set(counted.values()) == {sum(by_name.values())}


def bytes_of(of_case):
    (measured,) = metrics.get("bytes_moved").run(of_case)
    assert (measured.name, measured.unit, measured.better) == ("bytes_moved", "bytes", "lower")
    return measured.value


def test_attention_of_a_model_computed_by_hand():
    chosen = tiny("pyramid_tiny_full")  # 4x32x32 pixels in patches of 2x4x4; each later stage halves height and width
    by_name = by_operator(build(chosen, device="meta", kernel="sdpa"), example(chosen))
    tokens, widths, blocks = (128, 32, 8, 2), (12, 24, 48, 96), 2
    of_stages = [4 * n * d * blocks * FLOAT for n, d in zip(tokens, widths, strict=True)]  # q, k, v and what was found
    assert by_name["scaled_dot_product_attention"] == sum(of_stages)


def test_a_batch_reads_the_weights_once_and_half_the_size_is_half_the_bytes():
    chosen = tiny("pyramid_tiny_full")
    single, double = bytes_of(chosen), bytes_of(replace(chosen, batch_size=2))
    weights = sum(p.numel() for p in build(chosen, device="meta").parameters()) * FLOAT
    assert single < double < 2 * single
    assert 2 * single - double == pytest.approx(weights, rel=0.05)
    assert bytes_of(replace(chosen, dtype="bfloat16")) * 2 == single


def test_the_ablation_of_operators_counts_them():
    assert {"macs", "bytes_moved", "latency", "ceilings"} <= set(case.load("operators").metrics)


# what reports make of it


def row(name="full", missing=(), dtype="float32", ceilings_from="Example CPU", ceilings_in="a run", **values):
    """A row whose pass of 2 clips of 10 GMAC takes 500 ms and moves 4 GB."""
    by_name = {"macs": 10**10, "bytes_moved": 4 * 10**9, "latency": 500.0, "matmul_ceiling": 8e10, "copy_ceiling": 1e10}
    units = {
        "macs": "MAC",
        "bytes_moved": "bytes",
        "latency": "ms",
        "matmul_ceiling": "MAC/s",
        "copy_ceiling": "bytes/s",
    }
    details = {"machine": "Example CPU", "kernel": "sdpa", "threads": 2, "run": "a run"}
    made = {}
    for key, value in (by_name | values).items():
        about = {} if units[key] in ("MAC", "bytes") else details
        about = details | {"machine": ceilings_from, "run": ceilings_in} if "ceiling" in key else about
        lacking = {"missing": "not counted"} if key in missing else {"samples": (value,)}
        made[key] = flat(key, units[key], "lower" if key[-7:] != "ceiling" else "higher", details=about, **lacking)
    settings = {"row": name, "device": "cpu", "dtype": dtype, "kernel": "auto", "batch_size": 2, "threads": 2}
    return Row(name, record=Record(case_id(name, settings), "x", name, settings, made, {"commit": "0123456789"}))


def table(*rows):
    return AblationTable("x", "How near?", rows)


def test_rates_are_counts_over_the_latency_and_shares_are_of_the_ceilings():
    measured = row()
    assert roofline.achieved(measured) == pytest.approx(4e10)
    assert roofline.achieved_bytes(measured) == pytest.approx(8e9)
    assert roofline.shares(measured) == pytest.approx((0.5, 0.8))
    assert roofline.intensity(measured) == pytest.approx(5)


@pytest.mark.parametrize("lost", ["macs", "bytes_moved", "latency", "matmul_ceiling", "copy_ceiling"])
def test_what_lacks_a_part_is_absent_with_its_reason(lost):
    lacking = row(missing=[lost])
    assert (roofline.share(lacking) is None) == (lost in ("macs", "latency", "matmul_ceiling"))
    assert (roofline.share_bytes(lacking) is None) == (lost in ("bytes_moved", "latency", "copy_ceiling"))
    written = markdown.report(table(row("whole"), lacking), {})
    assert "Not counted." in written
    assert figures.draw("roofline", table(lacking)) is None


def test_the_columns_stand_in_the_report_and_in_the_csv():
    written = markdown.report(table(row()), {}).partition("### How near the machine's limits")[2]
    heading, _, cells = (line.strip("| ").split(" | ") for line in written.strip().splitlines()[:3])
    assert dict(zip(heading, cells, strict=True)) == {
        "row": "full",
        "bytes moved ↓, GB a pass, counted": "4.00",
        "MAC per byte, counted": "5.00",
        "achieved ↑, GMAC/s": "40.0",
        "of the matrix product ↑, %": "50.0",
        "achieved ↑, GB/s of counted bytes": "8.00",
        "of the copy ↑, %": "80.0",
    }
    assert "measured in the same run as the latency" in written
    assert "fused attention being one operator" in written
    (line,) = csv.DictReader(io.StringIO(data.csv(table(row()))))
    expected = {"bytes_moved": 4e9, "macs_per_byte": 5, "achieved_macs_per_second": 4e10}
    expected |= {"achieved_bytes_per_second": 8e9, "share_of_matmul_ceiling": 0.5, "share_of_copy_ceiling": 0.8}
    assert {name: float(line[name]) for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("elsewhere", [{"ceilings_from": "Another CPU"}, {"ceilings_in": "a later run"}])
def test_no_share_of_a_ceiling_that_was_not_measured_together(elsewhere):
    moved_here = row(**elsewhere)
    assert roofline.shares(moved_here) == (None, None)
    footnote = "The ceiling was measured on another machine or in another run."
    assert footnote in markdown.report(table(row(), moved_here), {})
    assert figures.draw("roofline", table(moved_here)) is None


def test_a_report_without_ceilings_and_bytes_says_nothing_of_limits():
    lost = ["bytes_moved", "matmul_ceiling", "copy_ceiling"]
    assert "limits" not in markdown.report(table(row(missing=lost)), {})
    assert "macs_per_byte" not in data.csv(table(row(missing=lost)))


def test_the_figure_has_a_roof_for_each_dtype_and_is_the_same_each_time():
    both = table(row(), row("narrow", dtype="bfloat16", matmul_ceiling=2e11, bytes_moved=2 * 10**9))
    first, second = figures.draw("roofline", both), figures.draw("roofline", both)
    assert first.files["png"].startswith(b"\x89PNG")
    assert first == second
    assert "measured in the same run" in first.caption
