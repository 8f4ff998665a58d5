"""Clips in training and testing: crops, flips, colours, normalisation, erasing, RandAugment, mixup and CutMix."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from moving import moving_scene
from torch.testing import assert_close

from harness import video
from harness.clips import mixing, rand_augment, transforms
from harness.motion.encoding import encode
from harness.spec.clip import Augmentation, Mixing, rand_augment_settings
from harness.spec.reader import UsageError, typed

ROOT = Path(__file__).parents[1]
PLAIN = Augmentation(size=12, resize=None, crop="center", flip=0)
EVERYTHING = Augmentation(size=14, resize=(20, 24), flip=0.5, jitter=0.4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def frames(t=3, h=18, w=26, seed=0):
    return torch.randint(0, 256, (t, h, w, 3), dtype=torch.uint8, generator=generator(seed))


def places(t, h, w):
    """Frames whose red is the row and whose green is the column: a crop shows where it was taken."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([y, x, 0 * x], dim=-1).to(torch.uint8).expand(t, h, w, 3)


def corner(clip):
    """Row and column that the top left pixel of a clip of `places` came from."""
    return clip[0, 0, 0, 0].item(), clip[1, 0, 0, 0].item()


# Settings


def test_defaults_are_the_kinetics_recipe():
    recipe = Augmentation()
    assert (recipe.size, recipe.resize, recipe.crop, recipe.flip) == (224, 256, "random_resized", 0.5)
    assert recipe.area == (0.08, 1.0)
    assert recipe.aspect == (0.75, 4 / 3)
    assert recipe.mean == (123.675, 116.28, 103.53)
    assert recipe.std == (58.395, 57.12, 57.375)
    assert (recipe.rand_augment, recipe.erasing, recipe.jitter) == (None, 0, 0)
    assert Mixing() == Mixing(mixup=0, cutmix=0, probability=1, switch=0.5, smoothing=0)


def test_lists_from_a_file_are_taken_as_tuples():
    assert Augmentation(area=[0.08, 1.0], resize=[256, 320]) == Augmentation(area=(0.08, 1.0), resize=(256, 320))


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"size": 0}, "size is 0"),
        ({"size": 2.5}, "size is 2.5"),
        ({"resize": True}, "resize is True"),
        ({"resize": (320, 256)}, "smaller first"),
        ({"crop": "centre"}, "allowed: center, random, random_resized"),
        ({"crop": "random", "resize": 200}, "allowed: resize of 224 or more"),
        ({"area": (0, 1)}, "area is 0, not a share"),
        ({"area": (0.5, 1.5)}, "area is 1.5"),
        ({"aspect": (0.75,)}, "aspect is .* a list of 2"),
        ({"aspect": (-1, 1)}, "aspect is -1, not a number above 0"),
        ({"flip": 1.5}, "flip is 1.5, not a number from 0 to 1"),
        ({"erasing": float("nan")}, "erasing is nan"),
        ({"jitter": "0.4"}, "jitter is '0.4'"),
        ({"mean": (127.5, 127.5)}, "mean is .* a list of 3"),
        ({"std": (0.225, 0.225, 0.225)}, "multiply by 255"),
        ({"mean": (0.485, 0.456, 0.406)}, "multiply by 255"),
        ({"rand_augment": "m7-n4"}, "n4-m7"),
        ({"rand_augment": "n0-m7"}, "n4-m7"),
        ({"rand_augment": "n4-m11"}, "0-10"),
    ],
)
def test_a_slip_in_the_augmentation_is_named(bad, words):
    with pytest.raises(UsageError, match=words):
        typed(Augmentation, bad, "mine.yaml")
    with pytest.raises(ValueError):  # noqa: PT011 (not by any other way either)
        Augmentation(**bad)


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"mixup": -1}, "mixup is -1"),
        ({"cutmix": None}, "cutmix is None"),
        ({"probability": 2}, "probability is 2, not a number from 0 to 1"),
        ({"switch": -0.1}, "switch is -0.1"),
        ({"smoothing": 1.1}, "smoothing is 1.1"),
    ],
)
def test_a_slip_in_the_mixing_is_named(bad, words):
    with pytest.raises(UsageError, match=words):
        typed(Mixing, bad, "mine.yaml")


def test_settings_need_no_torch():
    code = "import harness.spec.clip, sys; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# Scale and crop


@given(h=st.integers(1, 30), w=st.integers(1, 30), tall=st.integers(1, 30), wide=st.integers(1, 30))
def test_resizing_is_bilinear_with_half_pixel_centres(h, w, tall, wide):
    pixels = frames(2, h, w)
    result = transforms.resized(pixels, tall, wide)
    assert result.shape == (2, tall, wide, 3)
    assert result.dtype == torch.uint8

    def weights(before, after):
        """One row for each new pixel, with the share of each old one."""
        centre = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
        return np.maximum(0, 1 - abs(centre[:, None] - np.arange(before)))

    expected = np.einsum("yh,thwc,xw->tyxc", weights(h, tall), pixels.numpy().astype(float), weights(w, wide))
    assert abs(result.numpy() - expected).max() <= 0.5 + 1e-3


def test_smoothed_frames_keep_what_is_thinner_than_a_pixel():
    """A line of one pixel at a quarter of the size leaves a quarter of its brightness, wherever it lies."""
    plain = []
    for left in range(16, 20):
        pixels = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
        pixels[:, :, left] = 255
        sums = [transforms.with_short_side(pixels, 16, smooth).float().sum(2) for smooth in (True, False)]
        assert (sums[0] - 255 / 4).abs().max() <= 2
        plain.append(sums[1].max().item())
    assert sorted(plain) == [0, 0, 128, 128]


def test_training_clips_are_smoothed_where_the_recipe_says_so():
    smooth, plain = Augmentation(size=8, resize=12, antialias=True), Augmentation(size=8, resize=12)
    clips = [transforms.augmented(frames(2, 40, 40), setting, generator()) for setting in (smooth, plain)]
    assert clips[0].float().std() < clips[1].float().std() / 1.5  # noise averages out


def test_frames_that_have_the_size_are_not_copied():
    pixels = frames()
    assert transforms.resized(pixels, 18, 26) is pixels


@pytest.mark.parametrize("h, w, tall, wide", [(18, 26, 10, 14), (26, 18, 14, 10), (10, 10, 13, 13), (9, 31, 9, 31)])
def test_the_short_side_decides_the_scale(h, w, tall, wide):
    assert transforms.with_short_side(frames(2, h, w), min(tall, wide)).shape == (2, tall, wide, 3)


@pytest.mark.parametrize("size", [40, 56, 240])
def test_the_centre_view_is_the_decoded_clip(tmp_path, size):
    """The two ways from a file to a test clip give the same pixels."""
    path = tmp_path / "clip.mp4"
    encode(moving_scene(6), path)
    expected = video.decode(path, 6, 1, size).frames
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    pixels = torch.from_numpy(np.stack(pictures))
    assert pixels.shape == (6, 240, 320, 3)
    view = transforms.test_view(pixels, size, size, 0, 1)
    assert_close(view, torch.from_numpy(expected).permute(3, 0, 1, 2), rtol=0, atol=0)
    assert_close(transforms.normalised(view), transforms.normalise(expected), rtol=0, atol=0)


def test_three_crops_are_left_right_middle():
    wide, upright = places(2, 10, 31), places(2, 31, 10)  # 21 pixels to spare: steps of 10
    assert [corner(transforms.test_view(wide, 10, 10, i, 3)) for i in range(3)] == [(0, 0), (0, 20), (0, 10)]
    assert [corner(transforms.test_view(upright, 10, None, i, 3)) for i in range(3)] == [(0, 0), (20, 0), (10, 0)]


def test_crops_are_centred_on_the_shorter_side():
    pixels = places(2, 14, 20)
    assert [corner(transforms.test_view(pixels, 8, None, i, 3)) for i in range(3)] == [(3, 0), (3, 12), (3, 6)]
    assert corner(transforms.test_view(pixels, 8, None, 0, 1)) == (3, 6)


def test_other_numbers_of_crops_go_from_left_to_right():
    pixels = places(1, 8, 23)
    for crops, expected in ((2, [0, 15]), (4, [0, 5, 10, 15]), (5, [0, 3, 6, 9, 12])):
        assert [corner(transforms.test_view(pixels, 8, 8, i, crops))[1] for i in range(crops)] == expected


@pytest.mark.parametrize("arguments, words", [((8, 8, 3, 3), "0 to 2"), ((9, 8, 0, 1), "resize of 9 or more")])
def test_a_view_that_is_not_there(arguments, words):
    with pytest.raises(ValueError, match=words):
        transforms.test_view(frames(), *arguments)


@pytest.mark.parametrize("pixels", [frames().float(), frames()[0], frames().permute(0, 3, 1, 2)])
def test_frames_of_another_kind_are_refused(pixels):
    with pytest.raises(ValueError, match="torch.uint8 .time, height, width, 3."):
        transforms.augmented(pixels, PLAIN, generator())


def box_of(height, width, draws):
    """A random resized box from 22 numbers in [0, 1)."""
    shapes = list(zip(draws[0:20:2], draws[1:20:2], strict=True))
    return transforms.random_resized_box(height, width, (0.08, 1.0), (3 / 4, 4 / 3), shapes, tuple(draws[20:]))


@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=22, max_size=22),
)
def test_a_random_resized_box_lies_in_the_frame(height, width, draws):
    top, left, tall, wide = box_of(height, width, draws)
    assert top >= 0
    assert left >= 0
    assert 1 <= tall <= height - top
    assert 1 <= wide <= width - left


def test_area_and_aspect_of_random_resized_boxes():
    height, width = 256, 340
    draws = np.random.default_rng(0).random((4000, 22))
    boxes = np.array([box_of(height, width, row) for row in draws.tolist()])
    area = boxes[:, 2] * boxes[:, 3] / (height * width)
    aspect = np.log(boxes[:, 3] / boxes[:, 2])
    assert 0.078 <= area.min() < 0.09
    assert 0.95 < area.max() <= 1
    assert abs(aspect).max() < math.log(4 / 3) + 0.02
    # Small boxes always fit, so below a quarter of the frame nothing is refused: uniform, whatever the aspect.
    small = area[area < 0.25]
    assert abs(np.median(small) - 0.165) < 0.01
    assert abs(np.median(aspect[area < 0.25])) < 0.03  # uniform in the log: as many wide as upright
    assert abs(np.mean(abs(aspect[area < 0.25]) < math.log(4 / 3) / 2) - 0.5) < 0.05
    assert abs(np.mean(boxes[:, 0] / np.maximum(1, height - boxes[:, 2])) - 0.5) < 0.03
    assert abs(np.mean(boxes[:, 1] / np.maximum(1, width - boxes[:, 3])) - 0.5) < 0.03


def test_where_no_box_fits_it_is_the_centred_square():
    assert box_of(10, 100, [0.9, 0.5] * 11) == (0, 45, 10, 10)
    assert box_of(100, 10, [0.9, 0.5] * 11) == (45, 0, 10, 10)


def test_aspect_is_width_over_height():
    assert box_of(20, 10, [0.0, 0.0] * 10 + [0.0, 0.0])[2:] == (5, 3)  # 16 pixels at 3 / 4
    assert box_of(20, 10, [0.0, 0.999] * 10 + [0.0, 0.0])[2:] == (3, 5)


def test_the_first_box_that_fits_is_taken():
    assert box_of(10, 20, [0.999, 0.5] * 9 + [0.0, 0.5] + [0.0, 0.999]) == (0, 16, 4, 4)  # 8 % of 200 is 4 x 4


# A training clip


@pytest.mark.parametrize("crop", ["random_resized", "random", "center"])
@pytest.mark.parametrize("resize", [16, (16, 20), None])
def test_an_augmented_clip_has_its_size(crop, resize):
    for h, w in ((18, 26), (31, 17)):
        clip = transforms.augmented(
            frames(5, h, w), Augmentation(size=16, resize=resize, crop=crop, jitter=0.2), generator()
        )
        assert clip.shape == (3, 5, 16, 16)
        assert clip.dtype == torch.uint8
        assert clip.is_contiguous()


def test_frames_too_small_for_the_crop():
    with pytest.raises(ValueError, match="12 x 12 does not fit into frames of 10 x 30"):
        transforms.augmented(frames(2, 10, 30), PLAIN, generator())


@pytest.mark.parametrize("setting", [EVERYTHING, replace(EVERYTHING, rand_augment="n3-m8-s0.5")])
def test_every_frame_goes_through_the_same(setting):
    if setting.rand_augment:
        pytest.importorskip("kornia")
    pixels = frames(4)
    for seed in range(8):
        whole = transforms.augmented(pixels, setting, generator(seed))
        for t in range(4):  # a frame on its own comes out as it does in the clip
            assert_close(whole[:, [t]], transforms.augmented(pixels[[t]], setting, generator(seed)), rtol=0, atol=1)


@pytest.mark.parametrize("setting", [EVERYTHING, replace(EVERYTHING, rand_augment="n3-m8-s0.5")])
def test_the_generator_is_all_the_randomness(setting):
    if setting.rand_augment:
        pytest.importorskip("kornia")
    pixels, clips = frames(4), torch.rand(4, 3, 2, 12, 12)
    mix = Mixing(mixup=0.8, cutmix=1.0, smoothing=0.1)

    def everything(seed):
        random = generator(seed)
        return (
            transforms.augmented(pixels, setting, random),
            transforms.erased(clips, 0.7, random),
            *mixing.mixed(clips, torch.arange(4), 5, mix, random),
        )

    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    first = everything(7)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002
    torch.manual_seed(2)
    second = everything(7)
    for a, b in zip(first, second, strict=True):
        assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(everything(8)[0], first[0])


def test_one_step_does_not_move_another():
    pixels = frames(2, 30, 40)
    plain = Augmentation(size=16, resize=24, flip=0.5)
    for seed in range(5):
        crop = transforms.augmented(pixels, replace(plain, flip=0), generator(seed))
        flipped = transforms.augmented(pixels, replace(plain, flip=1), generator(seed))
        assert_close(flipped, crop.flip(3))
        same_box = transforms.augmented(pixels, replace(plain, flip=0, jitter=1e-9), generator(seed))
        assert_close(same_box, crop, rtol=0, atol=1)


def test_how_often_a_clip_is_flipped():
    pixels = places(1, 12, 12)
    for flip in (0, 0.25, 1):
        setting = replace(PLAIN, flip=flip)
        share = np.mean([corner(transforms.augmented(pixels, setting, generator(seed)))[1] > 0 for seed in range(400)])
        assert abs(share - flip) < 0.07


def test_random_crops_reach_every_place():
    setting = replace(PLAIN, size=8, crop="random")
    corners = {corner(transforms.augmented(places(1, 10, 11), setting, generator(seed))) for seed in range(200)}
    assert corners == {(y, x) for y in range(3) for x in range(4)}


def test_the_short_side_is_drawn_from_its_range():
    shown = []
    for seed in range(60):  # a centre crop of a frame with one white row shows by its width how large the frame was
        pixels = torch.zeros(1, 40, 40, 3, dtype=torch.uint8)
        pixels[:, :, 20:] = 255
        clip = transforms.augmented(pixels, replace(PLAIN, size=4, resize=(4, 80), crop="center"), generator(seed))
        shown.append(clip[0, 0, 0].tolist())
    assert len({tuple(row) for row in shown}) > 5


def test_a_random_resized_crop_is_resized_after_the_short_side():
    """The recipe in two steps, each rounded to uint8, as the configurations have it."""
    pixels = frames(2, 30, 44)
    setting = Augmentation(size=16, resize=24, flip=0)
    short = transforms.with_short_side(pixels, 24)
    for seed in range(4):
        draws = torch.rand(30, generator=generator(seed), dtype=torch.float64).tolist()
        top, left, tall, wide = box_of(24, 35, draws[1:23])
        expected = transforms.resized(short[:, top : top + tall, left : left + wide], 16, 16).permute(3, 0, 1, 2)
        assert_close(transforms.augmented(pixels, setting, generator(seed)), expected)
        assert_close(transforms.augmented(short, setting, generator(seed)), expected)  # as preloaded


def test_jitter_stays_within_its_factors():
    gray = torch.full((1, 12, 12, 3), 100, dtype=torch.uint8)  # of one gray, only brightness changes anything
    levels = [transforms.augmented(gray, replace(PLAIN, jitter=0.4), generator(seed)).unique() for seed in range(200)]
    assert all(len(level) == 1 for level in levels)
    levels = torch.cat(levels).double()
    assert levels.min() >= 60
    assert levels.max() <= 140
    assert levels.min() < 65
    assert levels.max() > 135
    assert abs(levels.mean() - 100) < 5


def test_jitter_by_hand():
    pixels = torch.tensor([[0.2, 0.4, 0.6], [0.6, 0.4, 0.2]]).T[None, :, None, :]  # two pixels
    gray = torch.tensor([[0.2 * 0.299 + 0.4 * 0.587 + 0.6 * 0.114, 0.6 * 0.299 + 0.4 * 0.587 + 0.2 * 0.114]])
    same, strong = 0.5, 1.0  # factors 1 and 1.5
    result = [
        transforms._jittered(pixels, 0.5, [strong if i == step else same for i in range(3)], [0, 1, 2])
        for step in range(3)
    ]
    assert_close(result[0], (pixels * 1.5).clamp(0, 1))
    assert_close(result[1], (gray.mean() + 1.5 * (pixels - gray.mean())).clamp(0, 1))
    assert_close(result[2], (gray + 1.5 * (pixels[:, :, 0] - gray)).clamp(0, 1)[:, :, None])


def test_the_order_of_jitter_is_drawn():
    pixels = torch.tensor([[0.2], [0.9]]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    strengths = [1.0, 1.0, 0.5]  # brightness and contrast by 1.5: what is clipped first differs
    brighter_first = transforms._jittered(pixels, 0.5, strengths, [0.1, 0.2, 0.9])
    contrast_first = transforms._jittered(pixels, 0.5, strengths, [0.2, 0.1, 0.9])
    assert_close(brighter_first[0, 0, 0], torch.tensor([0.3 * 1.5 - 0.65 / 2, 1.0]))
    assert_close(contrast_first[0, 0, 0], torch.tensor([(0.2 * 1.5 - 0.55 / 2) * 1.5, 1.0]))


# Normalisation and erasing


def test_normalisation_by_hand():
    clips = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1, 1)
    result = transforms.normalised(clips).flatten()
    assert_close(result, torch.tensor([-123.675 / 58.395, (128 - 116.28) / 57.12, (255 - 103.53) / 57.375]))
    other = transforms.normalised(clips, (104, 117, 128), (1, 1, 1)).flatten()
    assert other.tolist() == [-104, 11, 127]


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (2, 3, 2, 4, 5), (2, 4, 3, 2, 4, 5)])
def test_normalisation_keeps_leading_axes(shape):
    clips = torch.zeros(shape, dtype=torch.uint8)
    result = transforms.normalised(clips, dtype=torch.bfloat16)
    assert result.shape == shape
    assert result.dtype == torch.bfloat16
    assert clips.max() == 0


def test_erasing_is_one_box_of_noise():
    clips = torch.full((300, 3, 2, 20, 30), 9.0)
    result = transforms.erased(clips, 1.0, generator())
    assert clips.min() == 9
    changed = result != 9
    areas = []
    for clip in changed:
        rows, columns = clip.any((0, 1, 3)).nonzero(), clip.any((0, 1, 2)).nonzero()
        if not len(rows):
            continue
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        assert clip[:, :, top:bottom, left:right].all()
        areas.append(((bottom - top) * (right - left) / 600).item())
    assert len(areas) > 290
    assert 0.01 < min(areas) < 0.05
    assert 0.28 < max(areas) < 0.36
    assert abs(np.mean(areas) - (0.02 + 1 / 3) / 2) < 0.02
    assert (result[:, :, 0] == result[:, :, 1]).float().mean() == (~changed[:, :, 0]).float().mean()  # anew each frame
    noise = result[changed]
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_how_often_a_clip_is_erased():
    clips = torch.zeros(800, 3, 1, 8, 8)
    share = (transforms.erased(clips, 0.25, generator()) != 0).flatten(1).any(1).float().mean()
    assert abs(share - 0.25) < 0.05
    assert transforms.erased(clips, 0, generator()) is clips
    with pytest.raises(ValueError, match="erasing probability 2"):
        transforms.erased(clips, 2, generator())


# RandAugment


def test_the_setting_of_rand_augment():
    assert rand_augment_settings("n4-m7") == (4, 7, 0)
    assert rand_augment_settings("n2-m9.5-s0.5") == (2, 9.5, 0.5)


def test_without_kornia_the_error_says_what_to_install(monkeypatch):
    rand_augment.operations.cache_clear()
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'attention-zoo\[augment\]'"):
        rand_augment.rand_augmented(torch.rand(1, 3, 8, 8), "n1-m7", generator())


@pytest.fixture
def operations():
    pytest.importorskip("kornia", reason="RandAugment's operations are kornia's")
    return rand_augment.operations()


def levels(t=2, h=16, w=16, seed=0):
    """Frames of whole levels on the scale 0-1."""
    return frames(t, h, w, seed).permute(0, 3, 1, 2) / 255


OPERATIONS = (
    "auto_contrast equalize invert posterize solarize solarize_add color contrast brightness sharpness "
    "rotate shear_x shear_y translate_x translate_y"
).split()


def test_fifteen_operations_in_the_order_of_draws(operations):
    assert list(operations) == OPERATIONS


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_works_on_each_frame_alone(name, operations):
    pixels = levels(3)
    for sign in (1, -1):
        result = operations[name](pixels, 0.7, sign)
        assert result.shape == pixels.shape
        assert result.isfinite().all()
        for t in range(3):
            assert_close(result[[t]], operations[name](pixels[[t]], 0.7, sign))


def test_an_operation_without_magnitude_changes_nothing(operations):
    pixels = levels()
    for name in set(operations) - {"auto_contrast", "equalize", "invert", "posterize"}:
        assert_close(operations[name](pixels, 0.0, 1), pixels, rtol=0, atol=1e-4)


def test_colours_by_hand(operations):
    pixels = torch.tensor([0, 60, 127, 128, 200, 255]).view(1, 1, 2, 3).expand(1, 3, 2, 3) / 255

    def after(name, level, sign=1):
        return (operations[name](pixels, level, sign)[0, 0].flatten() * 255).round().clamp(0, 255).int().tolist()

    assert after("invert", 0.5) == [255, 195, 128, 127, 55, 0]
    assert after("solarize", 0.5) == [0, 60, 127, 127, 55, 0]
    assert after("solarize_add", 1.0) == [110, 170, 237, 128, 200, 255]
    assert after("posterize", 0.5) == [0, 0, 64, 128, 192, 192]  # two bits
    assert after("posterize", 1.0) == [0, 0, 0, 128, 128, 128]  # one bit: no frame becomes black
    assert after("brightness", 1.0, -1) == [0, 6, 13, 13, 20, 26]
    assert after("brightness", 1.0) == [0, 114, 241, 243, 255, 255]
    assert after("color", 1.0) == [0, 60, 127, 128, 200, 255]  # gray has no colour
    assert after("auto_contrast", 1.0) == [0, 60, 127, 128, 200, 255]  # is stretched already


def test_contrast_of_flat_frames_is_kept(operations):
    flat = torch.full((1, 3, 8, 8), 0.3)
    assert_close(operations["auto_contrast"](flat, 1, 1), flat)
    dull = 0.25 + levels() / 4
    stretched = operations["auto_contrast"](dull, 1, 1)
    assert_close(stretched.amin((2, 3)), torch.zeros(2, 3))
    assert_close(stretched.amax((2, 3)), torch.ones(2, 3), rtol=0, atol=1e-4)


def test_moves_by_hand(operations):
    pixels = levels(1, 20, 20)
    gray = torch.tensor(128 / 255)
    right = operations["translate_x"](pixels, 1.0, 1)  # 45 % of 20 pixels
    assert_close(right[..., 9:], pixels[..., :11], rtol=0, atol=1e-4)
    assert_close(right[..., :8], gray.expand(1, 3, 20, 8), rtol=0, atol=1e-4)
    down = operations["translate_y"](pixels, 1.0, 1)
    assert_close(down[:, :, 9:], pixels[:, :, :11], rtol=0, atol=1e-4)
    lower_sheared = operations["shear_x"](pixels, 1.0, 1)[:, :, 10]  # three tenths of a pixel for each row
    assert_close(lower_sheared[..., 3:], pixels[:, :, 10, :-3], rtol=0, atol=1e-4)
    smooth = torch.linspace(0, 1, 21).view(1, 1, 1, 21).expand(1, 3, 21, 21)
    turned = operations["rotate"](smooth, 1.0, 1)
    assert_close(turned[..., 10, 10], smooth[..., 10, 10], rtol=0, atol=1e-3)  # the centre stays
    slope = (turned[0, 0, 10, 11] - turned[0, 0, 10, 10]) * 20
    assert_close(slope, torch.tensor(math.cos(math.radians(30))), rtol=0, atol=1e-2)


def test_half_of_the_drawn_operations_take_place(operations):
    pixels = levels(1)
    same = [torch.equal(rand_augment.rand_augmented(pixels, "n1-m9", generator(s)), pixels) for s in range(300)]
    assert 0.4 < np.mean(same) < 0.62


def test_what_is_drawn_for_each_operation(monkeypatch):
    drawn = []

    def recorder(name):
        return lambda pixels, level, sign: drawn.append((name, level, sign)) or pixels

    monkeypatch.setattr(rand_augment, "operations", lambda: {name: recorder(name) for name in OPERATIONS})
    for seed in range(300):
        rand_augment.rand_augmented(torch.zeros(1, 3, 2, 2), "n4-m7-s1.5", generator(seed))
    names, strengths, signs = zip(*drawn, strict=True)
    assert abs(len(drawn) / 1200 - 0.5) < 0.05
    assert set(names) == set(OPERATIONS)
    assert abs(np.mean(signs)) < 0.12
    assert set(signs) == {-1, 1}
    assert abs(np.mean(strengths) - 0.7) < 0.03
    assert abs(np.std(strengths) - 0.15) < 0.03
    assert max(strengths) == 1  # cut off there
    drawn.clear()
    rand_augment.rand_augmented(torch.zeros(1, 3, 2, 2), "n40-m7", generator())
    assert {level for _, level, _ in drawn} == {0.7}


# Mixing


def test_targets_without_mixing():
    clips, labels = torch.rand(3, 3, 2, 4, 4), torch.tensor([2, 0, 4])
    result, targets = mixing.mixed(clips, labels, 5, Mixing(), generator())
    assert result is clips
    assert_close(targets, torch.eye(5)[labels])


def test_smoothing_by_hand():
    targets = mixing.smoothed(torch.tensor([1, 0]), 4, 0.1)
    assert_close(targets, torch.tensor([[0.025, 0.925, 0.025, 0.025], [0.925, 0.025, 0.025, 0.025]]))


@given(
    mixup=st.sampled_from([0.0, 0.2, 0.8]),
    cutmix=st.sampled_from([0.0, 1.0]),
    probability=st.floats(0, 1),
    smoothing=st.sampled_from([0.0, 0.1]),
    batch=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_targets_are_distributions(mixup, cutmix, probability, smoothing, batch, seed):
    mix = Mixing(mixup, cutmix, probability, smoothing=smoothing)
    labels = torch.arange(batch) % 3
    clips, targets = mixing.mixed(torch.rand(batch, 3, 2, 6, 8), labels, 3, mix, generator(seed))
    assert clips.shape == (batch, 3, 2, 6, 8)
    assert targets.dtype == torch.float32
    assert_close(targets.sum(1), torch.ones(batch))
    assert targets.min() >= 0


def constant_clips(batch=4, t=2, h=20, w=30):
    """Clip i is the number i everywhere."""
    return torch.arange(float(batch)).view(batch, 1, 1, 1, 1).expand(batch, 3, t, h, w)


def test_mixup_blends_clips_as_it_blends_targets():
    clips, labels = constant_clips(), torch.arange(4)
    weights = set()
    for seed in range(20):
        result, targets = mixing.mixed(clips, labels, 4, Mixing(mixup=0.8), generator(seed))
        assert_close(result, (targets @ torch.arange(4.0)).view(4, 1, 1, 1, 1).expand_as(result))
        assert_close(targets[0, 0] + targets[0, 3], torch.tensor(1.0))  # clip 0 is mixed with clip 3
        weights.add(targets[0, 0].item())
    assert len(weights) == 20
    assert clips[3].min() == 3


def test_cutmix_weighs_targets_by_area():
    clips, labels = constant_clips(), torch.arange(4)
    for seed in range(40):
        result, targets = mixing.mixed(clips, labels, 4, Mixing(cutmix=1.0), generator(seed))
        own = (result[0] == 0).float().mean()
        assert_close(own + (result[0] == 3).float().mean(), torch.tensor(1.0))
        assert_close(targets[0], torch.stack([own, own * 0, own * 0, 1 - own]))
        assert_close(result[:, :, 0], result[:, :, 1])  # the same box in every frame


def test_the_box_of_cutmix_by_hand():
    clips = constant_clips(2, 1, 20, 40)
    result, share = mixing.cutmix(clips, 0.75, (0.5, 0.5))  # a quarter of the area: half of each side
    assert share == 0.75
    assert (result[0, 0, 0, 5:15, 10:30] == 1).all()
    assert (result[0] == 1).float().mean() == 0.25
    result, share = mixing.cutmix(clips, 0.75, (0.0, 0.0))  # a quarter of that box is inside the frame
    assert share == 1 - 0.25 / 4
    assert (result[0, 0, 0, :5, :10] == 1).all()


def test_the_law_of_the_mixing_weight():
    clips, labels = constant_clips(2, 1, 4, 4), torch.arange(2)
    weights = [mixing.mixed(clips, labels, 2, Mixing(mixup=0.8), generator(s))[1][0, 0].item() for s in range(600)]
    assert abs(np.mean(weights) - 0.5) < 0.05
    assert abs(np.var(weights) - 1 / (4 * (2 * 0.8 + 1))) < 0.015  # of Beta(a, a)


def test_how_often_a_batch_is_mixed_and_how():
    clips, labels = constant_clips(2, 1, 8, 8), torch.arange(2)
    kinds = []
    for seed in range(400):
        result, _ = mixing.mixed(clips, labels, 2, Mixing(0.8, 1.0, probability=0.5, switch=0.25), generator(seed))
        blended = not set(result.unique().tolist()) <= {0, 1}
        kinds.append("mixup" if blended else "same" if torch.equal(result, clips) else "cutmix")
    # A CutMix box may be empty, so some of its batches look the same.
    assert abs(kinds.count("mixup") / 400 - 0.375) < 0.06
    assert 0.07 < kinds.count("cutmix") / 400 < 0.17
