"""Measures of made-up frames: against formulas, other libraries and pictures whose faults are known."""
import math
import numpy as np
import pytest, torch
from llmwatch_course.memory_forcing.baselines import last_frame, mean_frame, nearest_pose, pose_distance
from llmwatch_course.memory_forcing.camera import Camera
from llmwatch_course.memory_forcing.metrics import (EQUAL, blocks_of, features, frechet, interval, landmark_recall, looks, palette_agreement, psnr, revisit_consistency, sharpness, ssim,
                                                    turns_followed)
from llmwatch_course.memory_forcing.render import Frames
from llmwatch_course.memory_forcing.trajectories import Walk, clips
from llmwatch_course.memory_forcing.world import PALETTE, SPLITS, STYLES, SUB, TURN_LEFT, TURN_RIGHT

WALK, FRAMES = clips("turntable", list(SPLITS["test"])[:8], 32, Camera(8, 32))[1:]
RGB = FRAMES.rgb


def noisy(x, spread=.1, seed=0): return (x + spread * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


# squared error and structure

@pytest.mark.parametrize("size", [(8, 32), (32, 32)])
def test_psnr_and_ssim_agree_with_scikit_image(size):
    metrics = pytest.importorskip("skimage.metrics")
    x = clips("expedition", [5], 6, Camera(*size))[2].rgb
    y = noisy(x)
    ours = psnr(y, x), ssim(y, x)
    for i in range(6):
        a, b = (o[0, i].numpy().astype(np.float64) for o in (y, x))
        assert abs(metrics.peak_signal_noise_ratio(b, a, data_range=1) - ours[0][0, i]) < 1e-3
        whole = np.stack([metrics.structural_similarity(np.pad(a[c], 5, "reflect"), np.pad(b[c], 5, "reflect"), data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
                          for c in range(3)])      # it crops the border that we mirror
        assert abs(whole.mean() - ours[1][0, i]) < 1e-3


def test_shapes_and_equal_frames():
    assert psnr(RGB, RGB).shape == ssim(RGB, RGB).shape == RGB.shape[:2]
    assert (psnr(RGB, RGB) == EQUAL).all() and torch.allclose(ssim(RGB, RGB), torch.ones(RGB.shape[:2]), atol=1e-4)
    assert psnr(RGB[0, 0], RGB[0, 0]).shape == () and psnr(RGB, RGB[:, :1]).shape == RGB.shape[:2]
    assert torch.equal(psnr(RGB, RGB[:, :1]), psnr(RGB[:, :1].expand_as(RGB), RGB))
    assert abs(psnr(torch.full((3, 8, 8), .3), torch.full((3, 8, 8), .4)) - 20) < 1e-3


@pytest.mark.parametrize("bad", [2 * RGB - 1, RGB * 255, RGB + math.nan])
def test_values_outside_are_refused(bad):
    with pytest.raises(ValueError, match="0 to 1"): psnr(bad, RGB)
    with pytest.raises(ValueError, match="0 to 1"): ssim(RGB, bad)
    with pytest.raises(ValueError, match=r"\(\.\.\., 3, H, W\)"): psnr(RGB.movedim(2, -1), RGB.movedim(2, -1))


# what is drawn

@pytest.mark.parametrize("kind", STYLES)
def test_pixels_are_read_right_in_every_landscape(kind):
    frames = clips("expedition", list(range(8)), 12, Camera(16, 32), style=kind)[2]
    right, agreement = (blocks_of(frames.rgb, kind) == frames.block).float().mean(), palette_agreement(frames.rgb, frames.block, kind)
    assert right > .93 and agreement > .8 if kind != "snow" else right > .5      # snow in the shade is as white as its sky


def test_looks_name_their_block():
    colours, ids = looks()
    assert ((colours >= 0) & (colours <= 1.08)).all() and ids.unique().tolist() == list(range(15))
    pure = PALETTE[1:].T.reshape(3, 1, 14)
    assert blocks_of(pure)[0].tolist() == list(range(1, 15))


def test_palette_agreement_counts():
    block = torch.tensor([[1, 1, 7, 7]])
    rgb = PALETTE[torch.tensor([[1, 7, 7, 7]])].movedim(-1, 0)
    assert palette_agreement(rgb, block) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert palette_agreement(PALETTE[block].movedim(-1, 0), block) == 1
    assert palette_agreement(PALETTE[torch.full_like(block, 9)].movedim(-1, 0), block) == 0


def scene(column=(3, 4)):
    "One frame, 8 x 32: a red pillar 3 pixels wide and 4 high over grass; voxels of a 64 x 16 x 64 world."
    block = torch.ones(1, 1, 8, 32, dtype=torch.uint8)
    block[..., 2:6, 10:13] = 7
    x, z = column
    y = torch.arange(8).view(8, 1).expand(8, 32)
    voxel = torch.where(block[0, 0] == 7, (x * 16 + y) * 64 + z, 0).int()[None, None]
    return Frames(PALETTE[block.long()].movedim(-1, 2), torch.ones(1, 1, 8, 32), block, torch.ones(1, 1, 8, 32, dtype=torch.int8), voxel)


def test_landmark_recall_by_hand():
    truth = scene()
    assert landmark_recall(truth.rgb, truth) == 1
    assert landmark_recall(truth.rgb.roll(2, -1), truth) == 1 and landmark_recall(truth.rgb.roll(5, -1), truth) == 0      # within two pixels, beyond them
    green = PALETTE[torch.ones(1, 1, 8, 32, dtype=torch.long)].movedim(-1, 2)
    assert landmark_recall(green, truth) == 0
    other = torch.where((truth.block == 7)[:, :, None], PALETTE[8].view(3, 1, 1), truth.rgb)
    assert landmark_recall(other, truth) == 0                                                                           # the right place, the wrong colour
    assert math.isnan(landmark_recall(truth.rgb, truth, least=13)) and landmark_recall(truth.rgb, truth, least=12) == 1


def test_a_landmark_is_a_column_not_a_block():
    "Two pillars of the same colour are two landmarks, the blocks of one pillar are one."
    truth = scene()
    block, voxel = truth.block.clone(), truth.voxel.clone()
    block[..., 2:6, 20:23] = 7
    voxel[..., 2:6, 20:23] = voxel[..., 2:6, 10:13] + 5
    two = truth._replace(block=block, voxel=voxel)
    assert landmark_recall(truth.rgb, two) == .5


def test_recall_needs_memory():
    history, truth = RGB.split(16, 1)
    second = Frames(*(x[:, 16:] for x in FRAMES))
    assert landmark_recall(truth, second) > .95 > .6 > landmark_recall(mean_frame(history, 16), second)
    assert landmark_recall(nearest_pose(history, WALK.poses, 16), second) > .95


# coming back

def test_revisit_consistency():
    history, truth = RGB.split(16, 1)
    assert revisit_consistency(RGB, WALK) == pytest.approx(EQUAL, abs=1e-3)
    wrong = torch.cat([history, noisy(truth)], 1)
    by_hand = np.mean([[float(psnr(wrong[w, t], wrong[w, t - 16])) for t in range(16, 32)] for w in range(8)])
    assert revisit_consistency(wrong, WALK) == revisit_consistency(wrong, WALK, 16) == pytest.approx(by_hand, abs=1e-3)
    assert revisit_consistency(torch.full_like(RGB, .5), WALK) == pytest.approx(EQUAL, abs=1e-3)
    assert math.isnan(revisit_consistency(RGB[:, :16], WALK._replace(revisit=WALK.revisit[:, :16])))
    assert revisit_consistency(RGB[:, :20], WALK) == pytest.approx(EQUAL, abs=1e-3)                                       # a walk that is longer than the film


# sharp, and on command

def test_sharpness():
    assert sharpness(RGB, RGB) == 1 and sharpness(RGB / 2, RGB) == pytest.approx(.25) and sharpness(torch.full_like(RGB, .3), RGB) < 1e-9
    assert sharpness(mean_frame(RGB, 1), RGB) < .5 < 1.2 < sharpness(noisy(RGB), RGB)


def test_turns():
    rgb = torch.rand(1, 3, 3, 8, 32, generator=torch.Generator().manual_seed(0))
    rgb[:, 1], rgb[:, 2] = rgb[:, 0].roll(-6, -1), rgb[:, 0].roll(-3, -1)                                                  # left by 6, then right by 3
    right_left = torch.tensor([[0, TURN_RIGHT, TURN_LEFT]])
    assert turns_followed(rgb, right_left) == 1 and turns_followed(rgb, torch.tensor([[0, TURN_LEFT, TURN_RIGHT]])) == 0
    assert turns_followed(rgb, torch.tensor([[0, TURN_LEFT, TURN_LEFT]])) == .5 and math.isnan(turns_followed(rgb, torch.zeros(1, 3, dtype=torch.long)))
    assert turns_followed(RGB, WALK.actions) > .9 and turns_followed(last_frame(RGB, 32), WALK.actions) == 0


# heaps

def heap(n, d, seed=0, dtype=torch.float64): return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype) @ torch.randn(d, d, generator=torch.Generator().manual_seed(9), dtype=dtype)


def test_frechet_against_a_matrix_root():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = heap(300, 12), heap(250, 12, 1) * 1.4 + .3
    A, B = (np.cov(x.numpy().T) for x in (a, b))
    want = ((a.mean(0) - b.mean(0))**2).sum().item() + np.trace(A + B - 2 * np.real(linalg.sqrtm(A @ B)))
    assert frechet(a, b) == pytest.approx(want, rel=1e-9) == pytest.approx(frechet(b, a), rel=1e-9)


def test_frechet_is_a_distance():
    a = heap(100, 5)
    turn = torch.linalg.qr(heap(5, 5, 3)).Q
    assert frechet(a, a) < 1e-9 and frechet(a, a + 2) == pytest.approx(20) and frechet(a, a.flip(0)) < 1e-9
    assert frechet(a @ turn, 2 * a @ turn) == pytest.approx(frechet(a, 2 * a)) == pytest.approx((a.var(0).sum() + a.mean(0).square().sum()).item())
    assert math.sqrt(frechet(a, 3 * a)) <= math.sqrt(frechet(a, 2 * a)) + math.sqrt(frechet(2 * a, 3 * a)) + 1e-9


def test_frechet_survives_few_samples_and_dead_features():
    a = torch.cat([heap(6, 20), torch.zeros(6, 3, dtype=torch.float64)], 1)
    assert 0 <= frechet(a, a) < 1e-9 and math.isfinite(frechet(a, heap(40, 23))) and frechet(a.float(), a) < 1e-6
    big = heap(200, 30, dtype=torch.float32) * 1e4
    assert frechet(big, big) < 1e-3


class Mean(torch.nn.Module):
    "A coder of nothing: colours averaged over 4 x 4 pixels."
    def encode(self, x): return torch.nn.functional.avg_pool2d(x, 4)


def test_features_count_clips_and_forget_places():
    rgb = torch.cat([RGB, RGB.roll(8, -1)])
    made = features(Mean(), rgb)
    assert made.shape == (16 * 7, 18) and features(Mean(), rgb, stride=1).shape[0] == 16 * 25 and features(Mean(), rgb[:, :8]).shape[0] == 16
    torch.testing.assert_close(made[:56], made[56:], atol=1e-5, rtol=1e-4)                                                # rolled round, the same clip to these features
    still = features(Mean(), last_frame(RGB, 16))
    assert (still[:, 9:] == 0).all() and (still[:, :9] != 0).any()
    assert made[0, 0] == pytest.approx(RGB[0, :8, 0, :4].mean().item(), abs=1e-5)                                          # upper half of channel 0, mean of the first clip


def test_frechet_orders_faults():
    real = features(Mean(), clips("turntable", list(SPLITS["validation"])[:32], 16, Camera(8, 32))[2].rgb)
    truth = RGB[:, 16:]
    far = [frechet(features(Mean(), x), real) for x in (truth, (.9 * truth), (.6 * truth), mean_frame(RGB, 16) * .3)]
    assert far == sorted(far)


def test_interval():
    values = torch.randn(300, generator=torch.Generator().manual_seed(0)) + 5
    low, mean, high = interval(values)
    assert low < mean < high and mean == pytest.approx(values.double().mean().item()) and (high - low) / 2 == pytest.approx(1.96 * values.std().item() / 300**.5, rel=.15)
    assert interval(values) == interval(values) and interval(torch.full((5,), 2.)) == (2, 2, 2)


# baselines

def test_mean_and_last():
    history = RGB[:, :16]
    assert mean_frame(history, 3).shape == last_frame(history, 3).shape == (8, 3, 3, 8, 32)
    assert torch.equal(last_frame(history, 3)[:, 2], history[:, 15]) and torch.equal(mean_frame(history, 3)[:, 1], history.mean(1))


def test_nearest_pose_is_exact_where_a_pose_comes_back():
    assert torch.equal(nearest_pose(RGB[:, :16], WALK.poses, 16), RGB[:, 16:])


def test_nearest_pose_prefers_the_newest_of_equals():
    history = torch.rand(1, 3, 3, 4, 4)
    poses = torch.tensor([[[0, 0, 3, 0], [0, 0, 3, 0], [SUB, 0, 3, 0], [0, 0, 3, 0], [SUB, 0, 4, 0]]])
    assert torch.equal(nearest_pose(history, poses, 2), history[:, [1, 2]])
    assert torch.equal(nearest_pose(history, poses, 1), history[:, [1]])


def test_pose_distance():
    a = torch.tensor([0, 0, 15, 0])
    assert pose_distance(a, a) == 0 and pose_distance(a, torch.tensor([3 * SUB, 4 * SUB, 15, 0])) == 5
    assert pose_distance(a, torch.tensor([0, 0, 1, 0])) == 1 == pose_distance(a, torch.tensor([0, 0, 15, -2]))            # two steps of yaw over the seam, two of pitch


def test_a_walk_is_read_from_its_own_list():
    "Revisits are taken from the walk, not from the pictures."
    walk = Walk(torch.zeros(1, 3, 4, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long), torch.tensor([[-1, -1, 0]]))
    film = torch.stack([torch.full((3, 4, 4), v) for v in (.2, .2, .3)])[None]
    assert revisit_consistency(film, walk) == pytest.approx(20, abs=1e-3)
