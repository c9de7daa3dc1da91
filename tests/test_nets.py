"Every net works under penalties, learns, and can be saved; nets of different classes share nothing"
from __future__ import annotations
import json, pytest, torch
import torch.nn.functional as F
from torch import nn
from synthrob.core.basics import BadInput, generator, read_tensors, seeded, write_tensors
from synthrob.gan.learner import gan_learner, load_gan, save_gan
from synthrob.gan.trainer import gan_recipes
from synthrob.data.dataset import Dataset
from synthrob.data.loaders import device_dls
from synthrob.gan.losses import adversarial_losses, gradient_penalty, interpolated_penalty
from synthrob.gan.nets import GAN, architectures

images = [n for n in architectures if n != 'mlp']
every_net = pytest.mark.parametrize('net', images)
y = torch.arange(8) % 5

def pair(net, **kwargs):
    with seeded('images'): x = F.interpolate(torch.rand(8, 1, 4, 4)*2 - 1, size=32, mode='bilinear')
    return GAN(32, nf=16, net=net, attention=(8,), **kwargs), x

def perturbed(gan):
    "`gan` with random numbers for the weights that start at zero, those of attention and of residual blocks"
    with seeded('awake'), torch.no_grad():
        for p in gan.parameters():
            if not p.any(): p.normal_(std=.1)
    return gan

@every_net
@pytest.mark.parametrize('penalty', ['r1', 'between'])
def test_a_penalty_is_differentiated_exactly(net, penalty, monkeypatch):
    "The gradient of a penalty agrees with its difference quotient: no part of the second derivative is lost"
    gan, real = pair(net)
    soft = lambda x, *_: F.softplus(4*x)/4                                   # no kinks, at which slopes jump
    for place, name in ((F, 'relu'), (F, 'leaky_relu')): monkeypatch.setattr(place, name, soft)
    for layer in (nn.ReLU, nn.LeakyReLU): monkeypatch.setattr(layer, 'forward', lambda self, x: soft(x))
    D = perturbed(gan).discriminator.eval()
    def value():
        if penalty == 'between': return interpolated_penalty(D, real, real.flip(0), y, generator('t'))
        x = real.clone().requires_grad_()
        return gradient_penalty(D(x, y), x)
    ps = list(D.parameters())
    grads = torch.autograd.grad(value(), ps, allow_unused=True)
    grads = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, ps)]
    norm = sum(g.square().sum() for g in grads).sqrt()
    way = [g/norm for g in grads]
    def at(step):
        with torch.no_grad(): torch._foreach_add_(ps, way, alpha=step)
        v = value().item()
        with torch.no_grad(): torch._foreach_add_(ps, way, alpha=-step)
        return v
    assert (at(.01) - at(-.01))/.02 == pytest.approx(norm.item(), rel=.02)

@every_net
def test_the_discriminator_learns_a_batch(net):
    gan, real = pair(net)
    D, fake = gan.discriminator.train(), -real.roll(5, -1)                    # differs in sizes and places, not only in sign
    opt = torch.optim.Adam(D.parameters(), 1e-3, betas=(0., .99))
    for _ in range(60):
        loss = adversarial_losses['hinge'].d(D(real, y), D(fake, y))
        opt.zero_grad()
        loss.backward()
        opt.step()
    best = 1. if net == 'study' else 0.                                     # its sigmoid ends at 1
    assert loss.item() < best + .35

@every_net
def test_the_generator_learns_a_batch(net):
    gan, _ = pair(net)
    G, want = gan.generator.train(), torch.linspace(-.8, .8, 8)[:, None, None, None].expand(8, 1, 32, 32)
    z, opt = torch.randn(8, gan.params['nz'], generator=generator('z')), torch.optim.Adam(G.parameters(), 2e-3, betas=(.5, .99))
    for _ in range(80):
        loss = F.mse_loss(G(z, y), want)
        opt.zero_grad()
        loss.backward()
        opt.step()
    assert loss.item() < .1*want.var().item()

@every_net
def test_a_saved_pair_is_the_same(net, tmp_path):
    gan, real = pair(net)
    perturbed(gan).train()
    gan.discriminator(real, y)                                               # updates buffers
    write_tensors(tmp_path/'gan.safetensors', gan.state_dict())
    again = GAN(**gan.params, seed=7)
    again.load_state_dict(read_tensors(tmp_path/'gan.safetensors'))
    z = torch.randn(8, 100, generator=generator('z'))
    for a, b in ((gan, again), (again, gan)):                                # training mode, and once more
        torch.testing.assert_close(a.discriminator(real, y), b.discriminator(real, y), rtol=0, atol=0)
    torch.testing.assert_close(gan.eval()(z, y), again.eval()(z, y), rtol=0, atol=0)

@every_net
def test_making_a_pair_leaves_the_random_numbers_alone(net):
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    pair(net)
    assert torch.equal(torch.rand(1), want)

@pytest.mark.parametrize('net', [n for n in images if n != 'study'])
def test_logits_do_not_depend_on_the_batch(net):
    gan, x = pair(net)
    D = perturbed(gan).discriminator.eval()
    with torch.no_grad(): torch.testing.assert_close(D(x, y)[:3], D(x[:3], y[:3]), rtol=1e-4, atol=1e-5)

def test_two_calls_before_a_backward():
    "Spectral norm updates its buffers at each call, which must not break the graph of the call before"
    gan, x = pair('resnet')
    D = gan.discriminator.train()
    (D(x, y).mean() - D(-x, y).mean()).backward()
    assert all(p.grad.isfinite().all() for p in D.parameters() if p.grad is not None)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in D.modules())

@pytest.mark.parametrize('per_class', [True, False])
def test_classes_with_a_pair_each_share_nothing(per_class):
    "With other images of class 2 the nets of the other classes stay the same to the last bit; a pair for all classes does not"
    y = torch.arange(60) % 3
    with seeded('two sets'): x, other = torch.randint(256, (2, 60, 1, 32, 32), dtype=torch.uint8)
    def weights(x):
        learn = gan_learner(device_dls(Dataset(x, y, list('abc')), bs=30, n_steps=5, seed=0), next(k for k, r in gan_recipes.items() if r.net == 'study'), nf=8, per_class=per_class)
        with learn.no_bar(), learn.no_logging(): learn.fit_gan(300)
        return learn.model
    a, b = (weights(torch.where((y == 2)[:, None, None, None], o, x)) for o in (x, other))
    z = torch.randn(9, 100, generator=generator('z'))
    same = [torch.equal(a(z, torch.full((9,), c)), b(z, torch.full((9,), c))) for c in range(3)]
    assert same == ([True, True, False] if per_class else [False]*3)

def test_a_pair_each_is_saved_and_an_older_file_is_read(tmp_path):
    for per_class in (True, False):
        gan = GAN(32, nf=8, net='study', per_class=per_class).eval()
        save_gan(gan, tmp_path/'gan.safetensors')
        if not per_class:                                                    # older files do not name it
            meta = {k: json.dumps(v) for k, v in gan.params.items() if k != 'per_class'}
            write_tensors(tmp_path/'gan.safetensors', gan.state_dict(), metadata=meta)
        z, c = torch.randn(5, 100), torch.arange(5)
        assert torch.equal(load_gan(tmp_path/'gan.safetensors')(z, c), gan(z, c))

@pytest.mark.parametrize('penalty', ['r1', 'between'])
def test_penalties_and_saving_of_vectors(penalty, tmp_path):
    gan, real, y = GAN(6, 0, 3, 8, 16, net='mlp'), torch.randn(5, 6, generator=generator('x')), torch.arange(5) % 3
    x, D = real.clone().requires_grad_(), gan.discriminator
    value = gradient_penalty(D(x, y), x) if penalty == 'r1' else interpolated_penalty(D, real, real.flip(0), y, generator('t'))
    if penalty == 'between':                                                 # as for images of one pixel and six channels
        as_images = [o[..., None, None] for o in (real, real.flip(0))]
        assert torch.equal(value, interpolated_penalty(lambda x, y: D(x.flatten(1), y), *as_images, y, generator('t')))
    value.backward()
    assert all(p.grad.isfinite().all() for p in D.parameters() if p.grad is not None)
    save_gan(gan, tmp_path/'gan.safetensors')
    again, z = load_gan(tmp_path/'gan.safetensors'), torch.randn(5, 8)
    assert again.shape == (6,) and torch.equal(again(z, y), gan(z, y))

@pytest.mark.parametrize('kwargs', [dict(channels=0), dict(net='mlp'), dict(channels=0, net='mlp', attention=(8,))])
def test_vectors_and_images_are_not_mixed_up(kwargs):
    with pytest.raises(BadInput, match="for vectors choose net='mlp'"): GAN(32, **kwargs)
