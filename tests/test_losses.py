"Losses and augmentation against numbers known by other means"
from __future__ import annotations
import pytest, torch
from fastai.callback.core import Callback
from conftest import drawn_faces
from synthrob.cnn.models import PosterNet
from synthrob.core.basics import BadInput, generator, seeded
from synthrob.data.dataset import Dataset
from synthrob.data.loaders import Augment, device_dls
from synthrob.gan.learner import gan_learner
from synthrob.gan.losses import AdaptiveStrength, ClassMatching, DiffAugment, LeCam, adversarial_losses
from synthrob.gan.trainer import GANTrainer, gan_recipe

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
    seen, penalty = [], GANTrainer._penalty
    monkeypatch.setattr(GANTrainer, '_penalty', lambda self, *args: seen.append(float(self.gamma)) or penalty(self, *args))
    learn = gan_learner(drawn_faces(60, 1), gan_recipe('default', gamma=0., gamma_end=10., nf=8, bs=20), device='cpu')
    with learn.no_bar(), learn.no_logging(): learn.fit_gan(400)
    assert max(seen) > 0

@pytest.mark.parametrize('arch, n_critic', [('study', 5), ('mlp_wgan', 5), ('default', 2)])
def test_resume_where_the_generator_waits(tmp_path, arch, n_critic):
    "An epoch may begin with a batch that trains the discriminator alone: the loss shown there is that of the last step"
    data = drawn_faces(60, 1)
    if arch == 'mlp_wgan': data = Dataset(torch.randn(60, 6, generator=generator('v')), data.y, data.vocab)
    def learner():
        learn = gan_learner(data, gan_recipe(arch, nf=8, n_critic=n_critic), device='cpu')
        learn.dls.train.n_steps = 7
        return learn
    whole = learner()
    bs = whole.dls.train.bs
    class Stop(Callback):
        order = 80
        def after_epoch(self):
            if self.epoch == 1: raise KeyboardInterrupt
    with whole.no_bar(), whole.no_logging(): whole.fit_gan(4*7*bs, tmp_path/'whole.safetensors', every=0.)
    cut = learner()
    with cut.no_bar(), cut.no_logging(), pytest.raises(KeyboardInterrupt): cut.fit_gan(4*7*bs, tmp_path/'a.safetensors', every=0., cbs=[Stop()])
    again = learner()
    with again.no_bar(), again.no_logging(): again.fit_gan(4*7*bs, tmp_path/'a.safetensors', every=0.)
    assert again.history == whole.history and len(again.recorder.losses) == len(whole.recorder.losses)//2 > 2, 'two of four epochs are trained again'
    for a, b in zip(again.model.state_dict().values(), whole.model.state_dict().values()): assert torch.equal(a, b)

def test_a_checkpoint_knows_function_and_classifier(tmp_path, monkeypatch):
    "The name of an augmentation, not its address; another classifier to match is another training"
    data, file = drawn_faces(60, 1), tmp_path/'a.safetensors'
    def train(recipe, **kw):
        learn = gan_learner(data, gan_recipe(recipe, nf=8, bs=20, **kw.pop('changes', {})), device='cpu', **kw)
        with learn.no_bar(), learn.no_logging(): learn.fit_gan(400, file)
        return len(learn.recorder.losses)
    def flips():
        def flip(x, rng): return x.flip(-1)
        return flip
    for k in range(2): assert (train('default', changes=dict(augment=flips())) == 0) == k, 'the second finds the first'
    file.unlink()
    nets = []
    for k in range(2):
        with seeded('net', k): nets.append(PosterNet(32, 1, 5))
    assert train('matched', classifier=nets[0])
    init = ClassMatching.__init__
    def elsewhere(self, *args, **kwargs):                        # another chip rounds the class means differently
        init(self, *args, **kwargs); self.mean0 += 1e-6
    with monkeypatch.context() as m:
        m.setattr(ClassMatching, '__init__', elsewhere)
        assert not train('matched', classifier=nets[0])
    with pytest.raises(BadInput, match='another classifier to match'): train('matched', classifier=nets[1])

def test_trained_further_a_gan_sees_new_noise(tmp_path):
    "A second call of `fit_gan` draws neither the same items nor the same noise again; a checkpoint goes on as if never left"
    class Watch(Callback):
        order, seen = 66, []                                                            # after `GANTrainer`
        def before_train(self): self.seen.append((self.dls.train.epoch, self.gan_trainer.rng.initial_seed()))
    def learner(): return gan_learner(drawn_faces(60, 1), gan_recipe('default', nf=8, bs=20), device='cpu')
    def fit(learn, *args):
        Watch.seen = []
        with learn.no_bar(), learn.no_logging(): learn.fit_gan(400, *args, cbs=[Watch()])
        return Watch.seen
    learn = learner()
    first, second = fit(learn), fit(learn)
    assert len({e for e, _ in first + second}) == len({s for _, s in first + second}) == 2*len(first)
    file = tmp_path/'gan.safetensors'
    assert fit(learner(), file) == first == fit(learn, tmp_path/'other.safetensors')

def test_what_a_gan_cannot_use_is_refused():
    "An augmentation for images in [0,1] would cut off half of all greys; few images of a class have no mean to match"
    with pytest.raises(BadInput, match=r'images in \[0,1\]'): gan_recipe('default', augment=Augment())
    net = PosterNet(32, 1, 5)
    with pytest.raises(BadInput, match='a batch has 5 of 5 classes'):
        gan_learner(device_dls(drawn_faces(60, 1), bs=5, device='cpu'), gan_recipe('matched', nf=8), classifier=net)
