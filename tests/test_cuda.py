"""What a GPU would refuse: the same work on a pretended one, where mixed devices raise (`pretend`), and in bf16 on torch's fake tensors

Nothing here computes on a GPU. Not seen: kernels, memory, streams, several GPUs, and numbers.
"""
import functools
from unittest import mock

import pytest, torch
from faults import draw_images, toy
from pretend import pretend_cuda
from torch._subclasses.fake_tensor import FakeTensorMode
from synthrob.cnn.corruptions import corrupt
from synthrob.cnn.learner import _loss_of, cnn_learner, evaluate, learning_problem, recipe
from synthrob.core.basics import BadInput, default_device
from synthrob.cnn.robustness import RobustnessLevel, evaluate_robustness, robustness_levels
from synthrob.data.dataset import Dataset, concat
from synthrob.data.loaders import Augment
from synthrob.gan.learner import gan_learner, sample_sheet
from synthrob.gan.losses import DiffAugment, LeCam, adversarial_losses
from synthrob.gan.metrics import fid, kid, prdc
from synthrob.gan.nets import GAN, architectures
from synthrob.gan.pools import filter_pool, sample_pool
from synthrob.gan.trainer import gan_recipes
from synthrob.split.params import check_params
from synthrob.split.run import SplitRun, _launch
from synthrob.sweep.cluster import _slurm, run_cells
from synthrob.sweep.grid import Sweep

gpu = torch.device('cuda')

def on_gpu(f):
    "Decorator: run a test on a pretended GPU, which must end before pytest shows a failure"
    @functools.wraps(f)
    def test(*args, **kwargs):
        with pretend_cuda(): return f(*args, **kwargs)
    return test

def images(n=48, size=32, c=1): return Dataset(torch.randint(0, 256, (n, c, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 3)
def vectors(n=48): return Dataset(torch.randn(n, 16), torch.arange(n) % 3)

@on_gpu
def test_pretended_gpu_refuses_what_a_gpu_refuses():
    a, b = torch.ones(3, device=gpu), torch.ones(3)
    assert a.device == (a + 1).device == a[:2].device == torch.device('cuda:0') and a.cpu().device == b.device and a.is_cuda
    for bad in (lambda: a + b, lambda: b[a > 0], lambda: torch.cat([a, b]), lambda: a.numpy(), lambda: b.add_(a), lambda: torch.where(a > 0, b, a),
                lambda: torch.rand(3, generator=torch.Generator(), device=gpu), lambda: torch.nn.Linear(3, 3)(a)):
        with pytest.raises((RuntimeError, TypeError)): bad()
    assert a[torch.tensor([0])].is_cuda and (a*torch.tensor(2.)).is_cuda and b.copy_(a).device.type == 'cpu'   # a GPU allows these

@pytest.mark.parametrize('arch', gan_recipes)
@on_gpu
def test_gans_train_and_sample(arch):
    data = vectors() if gan_recipes[arch].net == 'mlp' else images()
    net = recipe('poster').build((1, 32, 32), 3) if gan_recipes[arch].matching else None
    learn = gan_learner(data, arch, device='cuda', nf=16, bs=16, lecam=.1 if arch == 'sngan' else 0, classifier=net)
    learn.fit_gan(64)
    assert next(learn.model.parameters()).is_cuda and len(sample_pool(learn.model, 4)) == 12
    if data.is_images: sample_sheet(learn.model, 2)

@pytest.mark.parametrize('changes', [dict(), dict(mix='mixup'), dict(mix='cutmix'), dict(loss='focal', smooth=0.), dict(net=None)],
                         ids=['strong', 'mixup', 'cutmix', 'focal', 'poster'])
@on_gpu
def test_classifiers_train(changes):
    r = recipe('poster') if 'net' in changes else recipe('strong', **changes)
    learn = cnn_learner(images(), images(), recipe(r, epochs=1), class_weights='balanced' if changes else None, device='cuda')
    learn.fit_recipe()
    ev = evaluate(learn, images())
    assert next(learn.model.parameters()).is_cuda and not ev.probs.is_cuda
    learning_problem(learn)

@on_gpu
def test_heads_train():
    for arch in 'linear', 'mlp': cnn_learner(vectors(), vectors(), recipe(arch, epochs=1), device='cuda').fit_recipe()

@pytest.mark.parametrize('c', [1, 3])
@on_gpu
def test_robustness(c):
    level = RobustnessLevel(robustness_levels['full'].corruptions, (3,), 12, 12, (('fgsm', 'inf', 1, (2/255,)), ('pgd', 'inf', 2, (2/255,)),
                            ('deepfool', '2', 2, (.5,))))
    net = recipe('poster').build((c, 32, 32), 3).to(gpu).eval()
    evaluate_robustness(net, images(c=c), level, images(c=c), progress=False)
    assert corrupt(images(4).x.to(gpu), 'frost', 2).is_cuda

@on_gpu
def test_a_data_set_on_the_gpu():
    ds = images().to(gpu)
    assert ds.subset(ds.y == 1).x.is_cuda and ds.subset(torch.arange(3, device=gpu)).y.is_cuda and ds.select(['2', '0']).y.is_cuda
    assert len(concat(ds, ds)) == 96 and ds.hash and len(ds.group) == 48 and len(ds.counts()) == 3
    ds.show(2)
    Dataset(torch.randn(6, 4), torch.arange(6) % 3, list('012')).to(gpu).show()
    kept = filter_pool(ds, torch.linspace(0, 1, 48, device=gpu), .5)
    assert len(kept) == 24 and kept.x.is_cuda
    a, b = torch.randn(2, 20, 4)
    for o in fid, kid, prdc: assert o(a.to(gpu), b.to(gpu)) == o(a, b)

@on_gpu
def test_buffers_that_processes_share_are_on_the_gpu():
    "NCCL broadcasts nothing else"
    learn = gan_learner(images(), device='cuda', nf=16, bs=16)
    with learn.no_bar(), learn.no_logging(): learn.fit_gan(64)
    buffers = [b for m in learn.more_state.values() for b in m.buffers()]
    assert buffers and all(b.is_cuda for b in buffers)

@on_gpu
def test_a_gpu_for_each_process(monkeypatch, tmp_path):
    "Asked for more GPUs than there are, or for one by number, before a training starts"
    pytest.importorskip('accelerate')
    plain = dict(data='faces', ratio=0, robustness='none', out=str(tmp_path/'runs'))
    with pytest.raises(BadInput, match="each has a GPU of its own: give device='cuda'"): check_params(plain | dict(device='cuda:0', processes=2))
    run = SplitRun(check_params(plain | dict(device='cuda')))
    run.p.processes = 2
    with pytest.raises(BadInput, match='processes=2 needs as many GPUs, and torch finds 1 here'): _launch(run, '_fit_classifier', run.stages['split'], 1)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('LOCAL_RANK', '1')
    assert default_device('cuda') == default_device() == torch.device('cuda:1') and default_device('cpu').type == 'cpu'
    for device in 'cuda', None: assert check_params(plain | dict(device=device, processes=2)).processes == 2, 'as in each of the processes'
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)                # each sees its own only
    assert default_device('cuda') == torch.device('cuda')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.delenv('LOCAL_RANK')
    sweep = lambda device=None, **grid: Sweep(dict(data='faces', ratio=0, robustness='none', **grid), out=tmp_path/'sweep', device=device)
    for s, why in ((sweep('cuda:1'), 'CUDA_VISIBLE_DEVICES=1'), (sweep(processes=2), 'each training one GPU')):
        with pytest.raises(BadInput, match=why): run_cells(s)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,3')
    with pytest.raises(BadInput, match='CUDA_VISIBLE_DEVICES=3 and'): run_cells(sweep('cuda:1'))
    with pytest.raises(BadInput, match='all would use the first GPU of their job'): _slurm(tmp_path, slots=2, gpus=2)

@pytest.mark.parametrize('more', [dict(), dict(gan_pick='best', reject=.1, quality='fast', robustness='fast'), dict(refresh_every=1, cnn='strong', cnn_epochs=2),
                                  dict(treatment='class_weights'), dict(preset='study', gan_images=64, gan_width=16), dict(space='feature')],
                         ids=['plain', 'judged', 'refresh', 'weights', 'study', 'vectors'])
@on_gpu
def test_experiments(tmp_path, more, monkeypatch):
    "The whole job; images stay on the disk in one of them"
    if more.get('refresh_every'): monkeypatch.setenv('SYNTHROB_MEMORY', '1k')
    draw_images(tmp_path/'images', 120 if 'quality' in more else 60)
    p = toy | dict(device='cuda', path=str(tmp_path/'images'), out=str(tmp_path/'runs'), copies='exact', folds=1, min_steps=0) | more
    if 'preset' in more: p.pop('folds'); p.pop('copies')
    if 'space' in more: p.pop('gan_width')
    run = SplitRun(check_params(p)).fit()
    assert 'cuda' in run.record['device'] and 0 <= run.record['test']['accuracy'] <= 1

@on_gpu
def test_resuming(tmp_path):
    for name, make in dict(gan=lambda: gan_learner(images(), device='cuda', nf=16, bs=16), cnn=lambda: cnn_learner(images(), images(), recipe('strong', epochs=2), device='cuda')).items():
        history = []
        for _ in range(2):                       # the second reads the checkpoint of the first
            learn, f = make(), tmp_path/f'{name}.safetensors'
            learn.fit_gan(300, f, every=0) if name == 'gan' else learn.fit_recipe(path=f, every=0)
            history.append((learn.history, len(learn.recorder.losses)))
        assert history[0][0] == history[1][0] and history[0][1] > history[1][1] == 0

# --- bf16 on fake tensors: the types that autocast gives on CUDA ---

def to_fake(net):
    "Replace the weights of `net` by fake ones on the GPU"
    for m in net.modules():
        for d in m._parameters, m._buffers:
            for k, v in d.items():
                if v is not None: d[k] = torch.empty(v.shape, dtype=v.dtype, device=gpu)
    return net

def bf16():
    "torch's autocast, which without a GPU turns itself off"
    with mock.patch.multiple(torch.cuda, is_available=lambda: True, is_bf16_supported=lambda *_: True):
        return torch.autocast('cuda', torch.bfloat16)

def floats(n=4): return torch.rand(n, 1, 32, 32, device=gpu), torch.zeros(n, dtype=torch.int64, device=gpu)

@pytest.mark.parametrize('name', ['poster', 'strong', 'torchvision:resnet18', 'linear', 'mlp'])
def test_classifiers_in_bf16(name):
    r = recipe(name)
    net = r.net(1024, 3) if r.on_vectors else r.net(32, 1, 3)
    with FakeTensorMode():
        x, y = floats()
        if r.on_vectors: x = x.flatten(1)
        to_fake(net)
        with bf16(): logits = net(Augment(erase=.5)(x) if r.augment else x)
        loss = _loss_of(r, torch.ones(3, device=gpu)).func(logits.float(), y)
        assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32 and loss.device.type == 'cuda'
        with pytest.raises(RuntimeError): net(torch.empty_like(x, device='cpu'))

@pytest.mark.parametrize('arch', architectures)
def test_gans_in_bf16(arch):
    gan, lecam = GAN(*((1024, 0) if arch == 'mlp' else (32, 1)), 3, 8, 16, net=arch), LeCam()
    with FakeTensorMode():
        x, y = floats()
        to_fake(gan); to_fake(lecam)
        z = torch.randn(4, 8, device=gpu)
        with bf16():
            made = gan.generator(z, y).float()
            real = x.flatten(1) if arch == 'mlp' else DiffAugment(strength=torch.tensor(.5, device=gpu))(x)
            logits = gan.discriminator(torch.cat([real, made]), torch.cat([y, y]))
        a, b = logits.chunk(2)
        for o in adversarial_losses.values(): assert (o.d(a, b) + o.g(a, b)).device.type == 'cuda'
        lecam(a, b)
