"""Attention schemes, number for number the same as the published implementations: outputs, gradients, who sees whom.

Where the reference values lie, and what happens without them, is said in `test_goldens.py`.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_goldens import DTYPES, FLOAT64, FOLDER, _error, pytestmark  # noqa: F401 (the mark skips this file too)
from torch.func import functional_call
from torch.nn import functional

import attention_zoo
import backbones
from attention_zoo import Tokens, cpu, linear, pyramid_sparse, trajectory
from attention_zoo.factorised_dot_product import over_space, over_time
from attention_zoo.radial import block_mask

KERNELS = ("reference", "sdpa")


def read(name):
    """What the golden says about itself, its tensors, its weights."""
    facts = json.loads((FOLDER / f"{name}.json").read_text())
    return facts, *(load_file(FOLDER / f"{name}.{part}.safetensors") for part in ("data", "weights"))


def names(golden):
    """The cases of a golden; none where there are no goldens."""
    return list(json.loads((FOLDER / f"{golden}.json").read_text())["config"]["cases"]) if FOLDER.is_dir() else []


def built(scheme, config, grid, weights, precision="f64", kernel="reference", **options):
    module = attention_zoo.build(scheme, config["dim"], config["num_heads"], list(grid), kernel=kernel, **options)
    module.double().load_state_dict(weights)
    return module.to(DTYPES[precision]).eval()


def check(module, case, golden, facts, precision, input="input", probe="probe", x=None, parameters=None):
    """Output and gradients of one case, held to the tolerances of the golden; `x` and `parameters` are those in use."""
    x = golden[input].to(DTYPES[precision]).requires_grad_() if x is None else x
    y = module(x)
    (y * golden[probe].to(y.dtype)).sum().backward()
    stated, float64 = facts["tolerance"], precision == "f64"
    errors = {"output": (_error(y.detach(), golden[f"output.{case}.f64"]), stated["output_float32"])}
    gradients = {"grad.input": x.grad} | {
        f"grad.param.{n}": p.grad for n, p in (parameters or module).named_parameters()
    }
    for name, gradient in gradients.items():
        if (expected := golden.get(f"{name}.{case}.f64")) is not None:
            errors[name] = _error(gradient, expected), stated["grad_float32"]
    end = f".{case}.f64"
    stored = {name.removesuffix(end) for name in golden if name.startswith("grad.") and name.endswith(end)}
    assert "grad.input" in errors, "the golden and this test name other gradients"
    if len(gradients) > 1:
        assert stored <= gradients.keys(), f"not compared: {stored - gradients.keys()}"
    # The input of `radial` is stored rounded to float32, what was computed from it was not.
    exact = FLOAT64 if facts["name"] != "radial" else 5e-7
    assert not {name: e for name, (e, float32) in errors.items() if not e <= (exact if float64 else float32)}


def unpacked(golden, name, count):
    return torch.from_numpy(np.unpackbits(golden[name].numpy(), axis=-1, count=count)).bool()


every = pytest.mark.parametrize(
    ("precision", "kernel"), [(precision, kernel) for precision in DTYPES for kernel in KERNELS]
)


@every
@pytest.mark.parametrize("case", names("gna"))
def test_neighborhood(case, precision, kernel):
    facts, golden, weights = read("gna")
    config = facts["config"]
    module = built("neighborhood", config, config["grid"], weights, precision, kernel, **config["cases"][case])
    check(module, case, golden, facts, precision)
    assert torch.equal(module.reach(), unpacked(golden, f"reach.{case}", module.grid.tokens))


@every
@pytest.mark.parametrize("case", names("sta"))
def test_sliding_tile(case, precision, kernel):
    facts, golden, weights = read("sta")
    config, options = facts["config"], facts["config"]["cases"][case]
    window = options["window_in_tiles"] or options["window_in_tiles_per_head"]
    module = built(
        "sliding_tile", config, config["grid"], weights, precision, kernel, tile=config["tile"], window=window
    )
    check(module, case, golden, facts, precision)
    assert torch.equal(module.reach(), unpacked(golden, f"reach.{case}", module.grid.tokens))


@every
@pytest.mark.parametrize("case", names("vsa"))
def test_video_sparse(case, precision, kernel):
    facts, golden, weights = read("vsa")
    config, options = facts["config"], facts["config"]["cases"][case]
    share = options["topk"] / options["blocks"]
    module = built(
        "video_sparse", config, config["grid"], weights, precision, kernel, tile=options["tile"], keep=share - 1e-9
    )
    check(module, case, golden, facts, precision)
    assert torch.equal(module.chosen(golden["input"].to(DTYPES[precision])), golden[f"block_mask.{case}"].bool())


def block_topk_options(rule, BQ=64, BK=64, sim=None, topk=None, cdf=None, ratio=None, S=8, B=None, thr=None, P=None):
    """The options of a case in our names."""
    share = topk or ratio
    return dict(
        rule={"xattn": "xattention"}.get(rule, rule),
        query_block=B or BQ,
        key_block=B or BK,
        similarity=sim,
        threshold=cdf or thr or P,
        stride=S,
        own_block=rule == "nabla",
        **(dict(keep=share) if share else {}),
    )


@every
@pytest.mark.parametrize("case", names("block_topk"))
def test_block_topk(case, precision, kernel):
    facts, golden, weights = read("block_topk")
    options = dict(facts["config"]["cases"][case])
    size = options.pop("input")
    grid = [int(n) for n in size.split("x")]
    module = built("block_topk", facts["config"], grid, weights, precision, kernel, **block_topk_options(**options))
    check(module, case, golden, facts, precision, f"input.{size}", f"probe.{size}")
    chosen = module.chosen(golden[f"input.{size}"].to(DTYPES[precision]))
    assert torch.equal(chosen, golden[f"block_mask.{case}"].bool())


@every
@pytest.mark.parametrize("case", names("radial"))
def test_radial(case, precision, kernel):
    facts, golden, weights = read("radial")
    config, options = facts["config"], facts["config"]["cases"][case]
    how = dict(block=options["block"], decay=options["decay"], sink=options["kind"] == "wan", threshold=128)
    module = built("radial", config, config["grid"], weights, precision, kernel, **how)
    check(module, case, golden, facts, precision)
    assert module.reach().double().mean().item() == pytest.approx(options["density"])


@pytest.mark.parametrize("case", [*read("radial")[0]["config"]["mask_only"]] if FOLDER.is_dir() else [])
def test_radial_masks(case):
    facts, golden, _ = read("radial")
    options = facts["config"]["mask_only"][case]
    mask = block_mask(
        options["frames"], options["tokens_per_frame"], options["block"], options["decay"],
        options["kind"] == "wan", 128, options["sequence_length"],
    )  # fmt: skip
    assert torch.equal(torch.from_numpy(mask), unpacked(golden, f"block_mask.{case}", options["blocks"]))


def check_tokens(module, case, golden, facts, precision, input="input"):
    """A case whose tensors are (b, n, d)."""
    flat = {name: value.unflatten(1, list(module.grid)) if value.ndim == 3 else value for name, value in golden.items()}
    check(module, case, flat, facts, precision, input)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("case", ["relu", "relu_rope"])
def test_linear(case, precision, monkeypatch):
    facts, golden, weights = read("linear_attention")
    monkeypatch.setattr(linear, "rotations", lambda *grid: golden["rope.angle"][0, :, 0])  # the golden's are any
    own = {name.removeprefix(f"{case}."): value for name, value in weights.items() if name.startswith(f"{case}.")}
    ours = {f"qkv.{part}": torch.cat([own.pop(f"to_{x}.{part}") for x in "qkv"]) for part in ("weight", "bias")}
    ours |= {name.replace("to_out.0", "proj"): value for name, value in own.items()}
    video = case == "relu_rope"
    module = built("linear", facts["config"], facts["config"]["grid"], ours, precision, norm=video, rotary=video)
    for part in ("weight", "bias"):
        golden[f"grad.param.proj.{part}.{case}.f64"] = golden.pop(f"grad.param.to_out.0.{part}.{case}.f64")
        joint = [golden.pop(f"grad.param.to_{x}.{part}.{case}.f64") for x in "qkv"]
        golden[f"grad.param.qkv.{part}.{case}.f64"] = torch.cat(joint)
    check_tokens(module, case, golden, facts, precision)


@every
@pytest.mark.parametrize("feature", ["softmax", "elu"])
def test_sparse_linear(feature, precision, kernel):
    facts, golden, weights = read("linear_attention")
    own = {name.removeprefix("sla."): value for name, value in weights.items() if name.startswith("sla.")}
    config = facts["config"]["sla"]
    how = dict(keep=config["ratio"], query_block=config["query_block"], key_block=config["key_block"])
    module = built(
        "sparse_linear", facts["config"], facts["config"]["grid"], own, precision, kernel, feature=feature, **how
    )
    check_tokens(module, f"sla_{feature}", golden, facts, precision, "sla.input")
    x = golden["sla.input"].unflatten(1, list(module.grid)).to(DTYPES[precision])
    assert torch.equal(module.chosen(x), golden["sla.block_mask"].bool())


@every
@pytest.mark.parametrize("case", names("vmoba"))
def test_mixture_of_blocks(case, precision, kernel):
    facts, golden, weights = read("vmoba")
    config, options = facts["config"], facts["config"]["cases"][case]
    chunk = options["chunk"] if isinstance(options["chunk"], list) else [options["chunk"], None, None]
    chosen = {"topk": options["topk"]} if options["topk"] else {"threshold": options["threshold"]}
    how = dict(chunk=[None] * (3 - len(chunk)) + chunk, scope=options["scope"], **chosen)
    module = built("mixture_of_blocks", config, config["grid"], weights, precision, kernel, **how)
    check(module, case, golden, facts, precision)
    expected = unpacked(golden, f"selected.{case}", options["chunks"])
    assert torch.equal(module.chosen(golden["input"].to(DTYPES[precision])), expected)


def pyramid(config, case, weights, precision="f64", kernel="reference", **options):
    case = config["cases"][case]
    how = dict(mode={"topk": "topk", "thresholdbound": "threshold"}[case["mode"]])
    how |= dict(ratios=[case["ratios"][level][1] for level in "1248"], tile=config["tile"])
    sizes = dict(query_block=config["query_block"], key_block=config["key_block"])
    return built("pyramid_sparse", config, config["grid"], weights, precision, kernel, **how, **sizes, **options)


@every
@pytest.mark.parametrize("case", names("psa"))
def test_pyramid_sparse(case, precision, kernel, monkeypatch):
    facts, golden, weights = read("psa")
    monkeypatch.setattr(pyramid_sparse, "importance", lambda q, k: golden["importance"].to(q.dtype))
    monkeypatch.setattr(cpu, "inference", lambda x: False)  # the golden's importance is of all blocks at once
    module = pyramid(facts["config"], case, weights, precision, kernel)
    check(module, case, golden, facts, precision)
    assert torch.equal(module.levels(golden["input"].to(DTYPES[precision])), golden[f"levels.{case}"].long())


def test_importance_and_similarity_of_pyramid_sparse():
    facts, golden, _ = read("psa")
    sizes = facts["config"]["importance_kernel"]
    q, k = (
        golden[f"importance_kernel.{x}"].unflatten(2, (-1, sizes[f"{side}_block"]))
        for x, side in (("q", "query"), ("k", "key"))
    )
    assert _error(pyramid_sparse.importance(q, k), golden["importance_kernel.pooled"]) < 1e-6
    at = facts["config"]["similarity_thresholds"]
    keys = golden["similarity.keys"].unflatten(2, (-1, at["block"]))
    levels = pyramid_sparse.coarsest(keys, [at[level] for level in "248"])
    assert torch.equal(levels, golden["similarity.levels"].long())


@every
@pytest.mark.parametrize("case", names("trajectory"))
def test_trajectory(case, precision, kernel, monkeypatch):
    facts, golden, weights = read("trajectory")
    config, options = facts["config"], facts["config"]["cases"][case]
    if options["approximation"] == "orthoformer":
        index = golden["landmark_index.orthoformer"].view(2, config["num_heads"], -1).long()
        monkeypatch.setattr(trajectory, "landmarks", lambda q, count: index)
    how = dict(intended=case == "intended", landmarks=options["landmarks"])
    if options["landmarks"]:
        how["approximation"] = options["approximation"]
    module = built("trajectory", config, config["grid"], weights, precision, kernel, **how)
    x = golden["input"].to(DTYPES[precision]).requires_grad_()
    y, prefix = module(x[:, 1:].unflatten(1, config["grid"]), x[:, :1])
    check(lambda x: torch.cat([prefix, y.flatten(1, 3)], 1), case, golden, facts, precision, x=x, parameters=module)


def test_landmarks_of_orthoformer():
    """Those of the golden follow from one of them by the rule; which one came first was drawn."""
    facts, golden, weights = read("trajectory")
    module = built("trajectory", facts["config"], facts["config"]["grid"], weights)
    q = module.qkv(golden["input"][:, 1:])[..., :12].unflatten(-1, (3, 4)).transpose(1, 2)
    for head, expected in zip(q.flatten(0, 1), golden["landmark_index.orthoformer"].long(), strict=True):
        grown = []
        for first in expected:
            longest_first = head / head.norm(dim=-1, keepdim=True)
            longest_first[first] *= 2
            grown.append(trajectory.landmarks(longest_first[None, None], len(expected))[0, 0].sort().values)
        assert any(torch.equal(some, expected.sort().values) for some in grown)


@every
def test_factorised_dot_product(precision, kernel):
    _, golden, _ = read("vivit")
    q, k, v = (golden[f"dot_product.{x}"].to(DTYPES[precision]).flatten(1, 2) for x in "qkv")
    t, half = golden["dot_product.q"].shape[1], q.shape[2] // 2
    y = [over(*(x[:, :, part] for x in (q, k, v)), t, kernel=kernel) for over, part in (
        (over_time, slice(half)), (over_space, slice(half, None)))]  # fmt: skip
    expected = golden["dot_product.output.f64"].flatten(1, 2)
    assert _error(torch.cat(y, 2), expected) < (FLOAT64 if precision == "f64" else 1e-5)


def plain(weights, prefix):
    """The four tensors under our names."""
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    renamed = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias"}
    return {renamed.get(name, name.replace("out_proj", "proj")): value for name, value in own.items()}


def of_separable(golden, case):
    """The tensors of one attention of VidTr, its gradients under our names."""
    renames = (("in_proj_", "qkv."), ("out_proj.", "proj."))
    own = {name: value for name, value in golden.items() if case in name}
    for theirs, ours in renames:
        own = {name.replace(f"grad.param.{theirs}", f"grad.param.{ours}"): value for name, value in own.items()}
    return own


@every
def test_separable(precision, kernel):
    facts, golden, weights = read("vidtr_attention")
    config = facts["config"]
    module = built("separable", config, config["grid"], plain(weights, "no_token."), precision, kernel)
    x = golden["input.no_token"].to(DTYPES[precision]).requires_grad_()
    y = module(x[1:].transpose(0, 1).unflatten(1, config["grid"])).flatten(1, 3).transpose(0, 1)
    check(
        lambda x: torch.cat([x[:1], y]), "no_token", of_separable(golden, "no_token"), facts, precision,
        probe="probe.no_token", x=x, parameters=module,
    )  # fmt: skip


@every
@pytest.mark.parametrize("case", ["frames", "segments_of_3"])
def test_space_time_mixing(case, precision, kernel):
    """The golden has a class token in each frame, which the patches see: it is put into the grid as a place here."""
    facts, golden, weights = read("xvit")
    config = facts["config"]["attention"]
    own = {name: value for name, value in weights.items() if name.startswith(("qkv", "proj"))}
    t, (tokens, d) = config["frames"], golden["input"].shape[1:]
    segment = 3 if case == "segments_of_3" else None
    module = built("space_time_mixing", config, (t, 1, tokens), own, precision, kernel, segment=segment)
    x = golden["input"].to(DTYPES[precision]).requires_grad_()
    y = module(x.view(-1, t, 1, tokens, d)).view(x.shape)
    check(lambda x: y, case, golden, facts, precision, x=x, parameters=module)


@pytest.mark.parametrize("precision", DTYPES)
def test_global_block_of_uniformer(precision):
    """A block of the pyramid with its position encoding before, as in `pyramid_uniformer_small`."""
    facts, golden, weights = read("uniformer_blocks")
    size = facts["config"]
    model = backbones.create(
        backbones.PyramidConfig(
            attention={}, stages=(("full",),), widths=(size["channels"],), num_heads=(size["num_heads"],), depths=(1,),
            temporal_pooling=(), position="every", drop_path=0.0,
        )
    )  # fmt: skip
    block = model.stages[0].blocks[0].double()
    ours = {"attn": "attention", "pos_embed": "position"}
    own = {name.removeprefix("global."): value for name, value in weights.items() if name.startswith("global.")}
    own = {
        ours.get(name.split(".")[0], name.split(".")[0]) + "." + name.partition(".")[2]: v for name, v in own.items()
    }
    block.load_state_dict(own)
    block.to(DTYPES[precision]).eval()

    def run(x):
        return block(Tokens.of_map(x.permute(0, 2, 3, 4, 1))).map.permute(0, 4, 1, 2, 3)

    check(run, "global", golden, facts, precision, "input.global", "probe.global", parameters=torch.nn.Module())


PLAIN = ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")


def uniformer_block(w, x, heads, eps):
    """A block of UniFormer as released, of our schemes, and what its relation adds; its weights tell its kind."""
    dim, grid = x.shape[-1], list(x.shape[1:4])

    def norm(x, name):
        affine = w[f"{name}.weight"], w[f"{name}.bias"]
        if f"{name}.running_mean" not in w:
            return functional.layer_norm(x, (dim,), *affine, eps)
        running = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return functional.batch_norm(x.movedim(-1, 1), *running, *affine).movedim(1, -1)

    def scheme(name, x, ours):
        return functional_call(attention_zoo.build(name, dim, heads, grid, kernel="reference"), ours, x)

    def layer(x, name):
        return functional.linear(x, w[f"{name}.weight"].flatten(1), w[f"{name}.bias"])

    x = x + functional.conv3d(x.movedim(-1, 1), w["pos_embed.weight"], w["pos_embed.bias"], 1, 1, 1, dim).movedim(1, -1)
    if "conv1.weight" in w:
        renamed = {"value": "conv1", "relation": "attn", "proj": "conv2"}
        ours = {f"{our}.{part}": w[f"{their}.{part}"] for our, their in renamed.items() for part in ("weight", "bias")}
        ours |= {f"{name}.weight": ours[f"{name}.weight"].flatten(1) for name in ("value", "proj")}
        relation = scheme("depthwise_relation", norm(x, "norm1"), ours)
    elif "t_norm.weight" in w:  # time comes in through what space looks at, not through the residual
        in_time = scheme("time_only", norm(x, "t_norm"), {name: w[f"t_attn.{name}"] for name in PLAIN})
        relation = scheme("space_only", norm(x + in_time, "norm1"), {name: w[f"attn.{name}"] for name in PLAIN})
    else:
        relation = scheme("full", norm(x, "norm1"), {name: w[f"attn.{name}"] for name in PLAIN})
    x = x + relation
    return x + layer(functional.gelu(layer(norm(x, "norm2"), "mlp.fc1")), "mlp.fc2"), relation


def leaves(weights, prefix, precision):
    """The weights of a case in this precision, and those that have gradients as something that names its parameters."""
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    own = {name: value.to(DTYPES[precision]) for name, value in own.items() if value.is_floating_point()}
    trained = {name: value.requires_grad_() for name, value in own.items() if "running" not in name}
    return own, SimpleNamespace(named_parameters=trained.items)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("case", ["local", "global", "split"])
def test_blocks_of_uniformer(case, precision):
    facts, golden, weights = read("uniformer_blocks")
    own, parameters = leaves(weights, f"{case}.", precision)

    def block(x):
        y, relation = uniformer_block(own, x.movedim(1, -1), facts["config"]["num_heads"], 1e-5)
        if case == "local":
            expected = golden["intermediate.local.relation"]
            assert _error(relation.detach().movedim(-1, 1), expected) < 5e-6
        return y.movedim(-1, 1)

    check(block, case, golden, facts, precision, f"input.{case}", f"probe.{case}", parameters=parameters)


@pytest.mark.parametrize("precision", DTYPES)
def test_a_model_of_uniformer(precision):
    """The released model of our schemes; kernels of three frames are padded by one in time, nothing else is.

    Its output alone: the stored gradients are of other weights (that of the last `fc2.bias` follows from head, norm),
    and the input of the case "joint" is not stored, whose probe, the gradient of `head.bias`, is another one.
    """
    facts, golden, weights = read("uniformer")
    config, (w, _) = facts["config"], leaves(weights, "split_std.", precision)
    x = golden["input"].to(DTYPES[precision]).movedim(1, -1)
    for stage, depth in enumerate(config["depth"], 1):
        kernel, bias = w[f"patch_embed{stage}.proj.weight"], w[f"patch_embed{stage}.proj.bias"]
        step = (2 if stage == 1 else 1, *kernel.shape[3:])
        x = functional.conv3d(x.movedim(-1, 1), kernel, bias, step, (kernel.shape[2] // 2, 0, 0)).movedim(1, -1)
        affine = w[f"patch_embed{stage}.norm.weight"], w[f"patch_embed{stage}.norm.bias"]
        x = functional.layer_norm(x, x.shape[-1:], *affine)
        for block in range(depth):
            prefix = f"blocks{stage}.{block}."
            part = {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}
            x, _ = uniformer_block(part, x, x.shape[-1] // config["head_dim"], config["layer_norm_eps"])
    running = w["norm.running_mean"], w["norm.running_var"], w["norm.weight"], w["norm.bias"]
    y = functional.linear(
        functional.batch_norm(x.movedim(-1, 1), *running).mean((2, 3, 4)), w["head.weight"], w["head.bias"]
    )
    assert _error(y.detach(), golden["output.split_std.f64"]) <= (FLOAT64 if precision == "f64" else 1e-5)
