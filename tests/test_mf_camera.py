"""The camera against formulas written another way."""
import math
import numpy as np
import pytest
import torch
from llmwatch_course.memory_forcing.camera import Camera, axes, back_project, patch_rays, pixel_rays, project, relative_rays

def a_camera(seed):
    g = torch.Generator().manual_seed(seed)
    yaw, pitch = torch.rand(2, generator=g) * torch.tensor([6.3, 2.]) - torch.tensor([0., 1.])
    return axes(yaw, pitch), 50 * torch.rand(3, generator=g), g

@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("camera", [Camera(8, 32), Camera(33, 17, 60.), Camera(64, 64, 110.)])
def test_round_trip_and_sky(seed, camera):
    R, C, g = a_camera(seed)
    depth = .5 + 40 * torch.rand(camera.H, camera.W, generator=g)
    sky = torch.rand(depth.shape, generator=g) < .2
    xyz, pixel = back_project(camera, R, C, depth.masked_fill(sky, math.inf))
    assert torch.equal(pixel, (~sky).flatten().nonzero()[:, 0]) and len(xyz) == len(pixel)
    u, v, z = project(camera, R, C, xyz)
    assert (u - pixel % camera.W - .5).abs().max() < 1e-3 and (v - pixel // camera.W - .5).abs().max() < 1e-3
    torch.testing.assert_close(z, depth.flatten()[pixel], atol=1e-5, rtol=1e-5)

@pytest.mark.parametrize("seed", range(5))
def test_handedness(seed):
    R, _, _ = a_camera(seed)
    torch.testing.assert_close(R.T @ R, torch.eye(3), atol=1e-6, rtol=0)
    assert torch.linalg.det(R).item() == pytest.approx(1, abs=1e-5)
    right, down, forward = R.T
    assert down[1] < 0 and abs(right[1]) < 1e-6  # no roll: down is down, right is level

def test_directions():
    level = torch.tensor(0.)
    camera = Camera(32, 32)
    def at(yaw, pitch, point):
        u, v, _ = project(camera, axes(torch.tensor(yaw), torch.tensor(pitch)), torch.zeros(3), torch.tensor([point]))
        return u.item(), v.item()
    assert at(0., 0., [-1., 0., 4.])[0] > 16  # -x is right of +z
    assert at(.2, 0., [0., 0., 4.])[0] < 16  # a turn to the right moves things left
    assert at(0., 0., [0., 1., 4.])[1] < 16  # up is in the upper half
    assert at(0., .2, [0., 0., 4.])[1] > 16  # looking up moves things down
    torch.testing.assert_close(axes(level, torch.tensor(math.pi / 4))[:, 2], torch.tensor([0., .5, .5]).sqrt())

def test_focal_length_and_pixel_centres():
    camera = Camera(4, 6, 60.)
    rays = pixel_rays(camera)
    assert rays.shape == (4, 6, 3) and (rays[..., 2] == 1).all()
    assert math.degrees(math.atan(3 / camera.f)) == pytest.approx(30)
    torch.testing.assert_close(rays[2, 5, :2] * camera.f, torch.tensor([2.5, .5]))

def test_project_in_batches():
    cameras = [a_camera(s)[:2] for s in range(3)]
    R, C = (torch.stack(o) for o in zip(*cameras))
    xyz = 10 * torch.rand(3, 7, 3, generator=torch.Generator().manual_seed(0))
    both = project(Camera(8, 32), R, C, xyz)
    for i in range(3):
        for one, all_ in zip(project(Camera(8, 32), R[i], C[i], xyz[i]), both): torch.testing.assert_close(one, all_[i])

def test_wrong_shapes_are_said():
    with pytest.raises(ValueError, match="the camera makes"): back_project(Camera(8, 32), torch.eye(3), torch.zeros(3), torch.ones(32, 8))
    with pytest.raises(ValueError, match="no whole patches"): patch_rays(Camera(8, 30))

def test_patch_rays_in_reading_order():
    local = patch_rays(Camera(16, 32), (8, 8))
    assert local.shape == (8, 3)
    torch.testing.assert_close(local.norm(dim=-1), torch.ones(8))
    assert (local[:4, 1] < 0).all() and (local[4:, 1] > 0).all() and (local[:4, 0].diff() > 0).all()

def test_relative_rays_are_lines():
    "A point on a memory ray, moved into the query camera, lies on the line that the six numbers describe."
    g = torch.Generator().manual_seed(1)
    yaw, pitch = torch.rand(2, 2, 5, generator=g)
    R, C, local = axes(6 * yaw, pitch), 30 * torch.rand(2, 5, 3, generator=g), patch_rays(Camera(8, 32))
    rays = relative_rays(R[:, :2], C[:, :2], R[:, 2:], C[:, 2:], local)
    assert rays.shape == (2, 2, 3, 8, 6)
    for b, t, m, n in ((0, 0, 0, 0), (1, 1, 2, 7), (0, 1, 1, 3)):
        world = (C[b, 2 + m] + 12.5 * R[b, 2 + m] @ local[n]).double().numpy()
        point = R[b, t].double().numpy().T @ (world - C[b, t].double().numpy()) / 8
        moment, d = rays[b, t, m, n].double().numpy().reshape(2, 3)
        np.testing.assert_allclose(np.cross(point, d), moment, atol=1e-5)
