"""The calculator of block-sparse kernels counts as one would by hand; the gallery shows every scheme."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_modern_schemes import GRIDS, OPTIONS, SIZES
from test_schemes import Case

import attention_zoo
from attention_zoo import Grid, _gallery, _speedup
from attention_zoo._speedup import masks, speedup, tiles
from attention_zoo.laws import example

DOCS = Path(__file__).parents[1] / "docs"
BLOCKS = st.integers(1, 50)


def by_hand(table, order, queries, keys):
    """Tiles with an allowed pair, of a table whose tokens are put into another order."""
    table = table[order][:, order]
    n = len(table)
    return sum(
        bool(table[i : i + queries, j : j + keys].any()) for i in range(0, n, queries) for j in range(0, n, keys)
    )


def in_boxes(grid, box):
    """The tokens of a grid, box after box."""
    at = [(t, h, w) for t in range(grid.t) for h in range(grid.h) for w in range(grid.w)]
    return sorted(range(len(at)), key=lambda n: [i // size for i, size in zip(at[n], box, strict=True)])


@pytest.mark.parametrize("name", ["neighborhood", "sliding_tile", "radial"])
def test_tiles_of_a_rule_are_those_of_its_reach(name, monkeypatch):
    @given(GRIDS, OPTIONS[name], BLOCKS, BLOCKS, st.none() | SIZES, st.sampled_from([1, 4096]))
    def counted(grid, options, queries, keys, box, few):
        monkeypatch.setattr(_speedup, "FEW", few)  # one by one, and by products
        module = Case(name, grid, 2, 6, options).build()
        allowed = masks(module, grid)
        touched = tiles(allowed, grid, queries, keys, None if box is None else Grid(*box))
        reach = module.reach()
        order = range(grid.tokens) if box is None else in_boxes(grid, grid.clipped(Grid(*box)))
        assert touched.touched == by_hand(reach, list(order), queries, keys)
        if name != "sliding_tile":
            assert touched.pairs == reach.sum()
        assert touched.executed * touched.pairs == pytest.approx(touched.touched * queries * keys)

    counted()


@pytest.mark.parametrize("name", ["local_window", "time_only", "block_topk", "mixture_of_blocks", "video_sparse"])
def test_tiles_of_other_masks_and_of_choices(name):
    @given(GRIDS, BLOCKS, BLOCKS)
    def counted(grid, queries, keys):
        module = example(name, grid).build().float()
        torch.manual_seed(0)
        touched = tiles(masks(module, grid), grid, queries, keys)
        torch.manual_seed(0)
        if hasattr(module, "selection"):
            tables = module.selection(_speedup.clip(grid, module.dim))[0]
        else:
            tables = module.reach()[None]
        order = list(range(grid.tokens))
        assert touched.touched == pytest.approx(sum(by_hand(t, order, queries, keys) for t in tables) / len(tables))
        assert touched.pairs == pytest.approx(tables.sum().item() / len(tables))

    counted()


def test_a_rule_in_whole_tiles_touches_no_tile_in_vain():
    text = speedup(["sliding_tile", "grid=8x14x14", "tile=[4,7,7]", "window=[1,1,1]", "block=196", "order=4x7x7"])
    lines = text.splitlines()
    assert lines[0].startswith("sliding_tile tile=[4, 7, 7] window=[1, 1, 1] on 8x14x14, 1,568 tokens: 307,328 of")
    raster, boxes = (line.split() for line in lines if line.startswith("196 x 196"))
    assert raster[-3:] == ["50.0%", "4.0", "2.00"]  # 784 tokens of four frames in a row, of which a window is a quarter
    assert boxes[-3:] == ["12.5%", "1.0", "8.00"]
    assert lines[-1].startswith(
        "It can be fast: in tiles of 196 x 196, tokens in the order of boxes, the products take 1/8"
    )


def test_what_cannot_be_fast_is_said_before_anything_runs():
    text = speedup(["neighborhood", "grid=4x8x8", "window=[3,3,3]", "block=128"])
    assert "It cannot be fast: 100% of the tiles of 128 x 128" in text


def test_large_grids_need_no_table_of_pairs():
    assert "230,400 tokens" in speedup(["neighborhood", "grid=64x60x60", "window=[3,3,3]", "block=256"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["neighbourhood"], "did you mean 'neighborhood'?"),
        ([], "say speedup NAME, then settings such as grid=16x56x56"),
        (["full", "block=0"], "block (0, 0) is not a number of queries and one of keys; say block=128x64 or block=64"),
        (["full", "block=1x2x3"], "block (1, 2, 3) is not"),
        (["full", "windows=3"], "full has no option 'windows'"),
        (
            ["full", "grid=64x60x60"],
            "grid (64, 60, 60) has 230400 tokens, whose table of pairs takes 49.4 GiB; allowed",
        ),
        (["divided"], "divided is no masked attention: a token depends on 1568 tokens"),
        (["linear"], "linear is no masked attention"),
        (["depthwise_relation"], "depthwise_relation is no masked attention"),
    ],
)
def test_what_cannot_be_counted_says_why(arguments, message):
    with pytest.raises((ValueError, KeyError)) as caught:
        speedup(arguments)
    assert message in str(caught.value)


def test_the_command_prints_the_table():
    command = [sys.executable, "-m", "attention_zoo", "speedup", "full", "grid=2x4x4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("full on 2x4x4, 32 tokens: 1,024 of 1,024 pairs (100.00%)")


# The gallery --------------------------------------------------------------------------------------------------------


def test_the_page_in_docs_is_what_the_command_makes():
    grid = Grid(4, 8, 8)
    every = [_gallery.shown(name, grid) for name in attention_zoo.schemes.names()]
    remedy = "made by another version: run python -m attention_zoo gallery"
    assert (DOCS / "gallery.md").read_text(encoding="utf-8") == _gallery.page(every, grid, "gallery.png"), remedy
    assert (DOCS / "gallery.png").read_bytes().startswith(b"\x89PNG")


def test_shades_show_what_the_rule_alone_weighs():
    grid = Grid(2, 2, 3)
    full = _gallery.shades(_gallery.shown("full", grid), grid).seen
    assert torch.allclose(full, torch.ones_like(full))  # everything alike
    divided = _gallery.shades(_gallery.shown("divided", grid), grid).seen
    own, frame, place, other = divided[0, 0], divided[0, 1], divided[0, 6], divided[0, 7]
    assert own > max(frame, place) > min(frame, place) > 0
    assert 0 < other < frame
    local = _gallery.shown("local_window", grid)
    assert torch.equal(_gallery.shades(local, grid).seen > 0, local.table.seen > 0)


def test_a_gallery_somewhere_else(tmp_path, monkeypatch):
    monkeypatch.setattr(_gallery.schemes, "names", lambda: ("full", "pooling", "block_topk"))
    assert _gallery.gallery([f"out={tmp_path}", "grid=2x4x4"]) == f"{tmp_path}/gallery.md\n{tmp_path}/gallery.png"
    assert "Each scheme on a clip of 2x4x4 tokens" in (tmp_path / "gallery.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out=/nowhere"], "out /nowhere is no folder: make it, or say another one"),
        (["window=3"], "gallery has no window; allowed: out=docs grid=4x8x8 query=2,3,4"),
        (["query=9,9,9"], "query [9, 9, 9] is no place of grid (4, 8, 8); allowed: (3, 7, 7) at most"),
    ],
)
def test_a_gallery_that_cannot_be_says_why(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _gallery.gallery(arguments)
