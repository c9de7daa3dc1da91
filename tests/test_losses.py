"Losses and augmentation against numbers known by other means"
from __future__ import annotations
import pytest, torch
from synthrob.core.basics import generator
from synthrob.gan.losses import AdaptiveStrength, DiffAugment, LeCam, adversarial_losses

every_loss = pytest.mark.parametrize('name', adversarial_losses)

@every_loss
def test_slopes_equal_difference_quotients(name):
    o = adversarial_losses[name]
    real, fake = (torch.randn(6, dtype=torch.float64, generator=generator(k), requires_grad=True) for k in 'rf')
    for part in (o.d, o.g): assert torch.autograd.gradcheck(part, (real, fake))

@every_loss
def test_only_some_need_real_images(name):
    o, fake = adversarial_losses[name], torch.zeros(3)
    if o.needs_real:
        with pytest.raises(TypeError): o.g(None, fake)
    else: assert torch.equal(o.g(None, fake), o.g(torch.randn(3), fake))

@every_loss
def test_the_two_pull_in_opposite_directions(name):
    "Around logits of zero each loss falls in the direction that its net wants"
    o, zero, up = adversarial_losses[name], torch.zeros(4), torch.full((4,), .1)
    assert o.d(up, zero) < o.d(zero, zero) < o.d(zero, up)
    assert o.g(zero, up) < o.g(zero, zero)

@every_loss
def test_the_mean_of_halves_is_the_whole(name):
    o = adversarial_losses[name]
    real, fake = torch.randn(2, 8, generator=generator('halves'))
    for part in (o.d, o.g):
        halves = [part(r, f) for r, f in zip(real.chunk(2), fake.chunk(2))]
        torch.testing.assert_close(sum(halves)/2, part(real, fake))

def test_lecam_is_no_force_between_equal_logits():
    lecam, l = LeCam(), torch.zeros(5, requires_grad=True)
    p = lecam(l + 2, l + 2)
    assert p.item() == 0 and torch.autograd.grad(p, l)[0].abs().max() == 0

@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('strength', [0., .4, 1.])
def test_augmentation_of_grey_is_grey(channels, strength):
    "A grey image in three channels is augmented as in one"
    x = torch.rand(6, 1, 32, 32, generator=generator('grey'))*2 - 1
    augment = lambda x: DiffAugment(strength=strength)(x, generator('augment'))
    torch.testing.assert_close(augment(x.expand(-1, channels, -1, -1)), augment(x).expand(-1, channels, -1, -1))

def test_a_number_and_a_tensor_are_one_strength():
    x = torch.rand(20, 1, 32, 32, generator=generator('x'))
    by = [DiffAugment(strength=s)(x, generator('augment')) for s in (.5, torch.tensor(.5))]
    assert torch.equal(*by) and not torch.equal(by[0], DiffAugment()(x, generator('augment')))

def test_strength_settles_at_the_target():
    "With a discriminator that recognises fewer images under stronger augmentation, the controller finds the balance"
    ada, rng = AdaptiveStrength(target=.6, images=2000), generator('signs')
    ps = []
    for _ in range(400):
        recognised = torch.rand(64, generator=rng) < 1 - ada.p/2                     # recognised, or a guess
        ada.update(torch.where(recognised, 1., -1.))
        ps.append(ada.p.item())
    assert sum(ps[-200:])/200 == pytest.approx(.4, abs=.05)                   # 1 - 2p/2 = .6

def test_a_penalty_that_grows_from_nothing(monkeypatch):
    "gamma=0 with gamma_end: the penalty is taken"
    from conftest import drawn_faces
    from synthrob.gan.learner import gan_learner
    from synthrob.gan.trainer import GANTrainer, gan_recipe
    seen, penalty = [], GANTrainer.penalty
    monkeypatch.setattr(GANTrainer, 'penalty', lambda self, *args: seen.append(float(self.gamma)) or penalty(self, *args))
    learn = gan_learner(drawn_faces(60, 1), gan_recipe('default', gamma=0., gamma_end=10., nf=8, bs=20), device='cpu')
    with learn.no_bar(), learn.no_logging(): learn.fit_gan(400)
    assert max(seen) > 0
