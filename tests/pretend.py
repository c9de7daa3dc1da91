"""A GPU that does not exist: tensors lie in main memory, but have the device 'cuda', and mixing devices raises as on a GPU"""
import contextlib
from concurrent.futures import Executor, Future
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

GPU, T = torch.device('cuda', 0), torch.Tensor
copies = {T.copy_, T.to, T.cpu, T.cuda, T.type_as, T.__setitem__, T.set_, T.data.__set__, T.grad.__set__, T.__repr__, T.__format__}
free = {T.shape.__get__, T.dtype.__get__, T.ndim.__get__, T.requires_grad.__get__, T.layout.__get__}

def is_gpu(d): return isinstance(d, torch.device) and d.type == 'cuda' or isinstance(d, str) and d.startswith('cuda')

class PretendCUDA(TorchFunctionMode):
    "Inside: storages made on, moved to or computed from tensors on 'cuda' count as lying there"
    there = {}                                             # of all modes: tables are kept between them

    def on(self, t): return t.untyped_storage()._cdata in self.there
    def put(self, t):
        "Count the storage of `t` as on the GPU; a weak reference keeps its address from being used again"
        if len(self.there) % 10_000 == 9_999:
            for k in [k for k, r in self.there.items() if r.expired()]: del self.there[k]
        s = t.untyped_storage()
        self.there[s._cdata] = StorageWeakRef(s)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.device or func in free or getattr(func, '__name__', '') in ('_parse_to', '_has_compatible_shallow_copy_type'): return func(*args, **kwargs)
        if func == T.device.__get__: return GPU if self.on(args[0]) else func(*args)
        if func == T.is_cuda.__get__: return self.on(args[0])
        given = [o for o in tree_flatten((args, kwargs))[0]]
        tensors = [o for o in given if isinstance(o, T)]
        there = [self.on(t) for t in tensors]
        to = next((o for o in given if isinstance(o, (str, torch.device)) and (is_gpu(o) or str(o) == 'cpu')), None)
        name = getattr(func, '__name__', str(func))
        if func == T.cuda: to, func, args = 'cuda', T.to, (args[0], 'cuda')
        if func == T.cpu: to = 'cpu'
        if func in (T.numpy, T.__array__) and there[0]: raise TypeError("can't convert cuda:0 device type tensor to numpy")
        self._check(func, name, args, tensors, there, kwargs, to)
        clean = lambda o: torch.device('cpu') if is_gpu(o) else o
        args, kwargs = tree_map(clean, args), tree_map(clean, {k: v for k, v in kwargs.items() if k != 'pin_memory'})
        out = func(*args, **kwargs)
        moves = name in ('to', 'cpu', 'tensor', 'as_tensor') and (to is not None or name == 'cpu')
        known = {t.untyped_storage()._cdata for t in tensors}
        def mark(o):
            if not isinstance(o, T): return o
            gpu = is_gpu(to) if to is not None else any(there)
            if moves and tensors and gpu != there[0] and o.untyped_storage()._cdata == tensors[0].untyped_storage()._cdata:
                o = o.clone()                              # on a GPU this copies
            elif o.untyped_storage()._cdata in known: return o   # a view, or changed in place
            if gpu: self.put(o)
            return o
        return tree_map(mark, out)

    def _check(self, func, name, args, tensors, there, kwargs, to):
        "Raise as CUDA does for tensors, indices and generators on other devices"
        g = kwargs.get('generator')
        if g is not None and 'device' not in name:
            where = is_gpu(to) or (bool(there) and there[0])
            if getattr(g, 'on_gpu', False) != where: raise RuntimeError(f"{name}: generator and tensor are on different devices")
        if func in copies or name in ('tensor', 'as_tensor', 'clone', '__deepcopy__') or not (any(there) and not all(there)):
            if func == T.__setitem__:
                key = [o for o in tree_flatten(args[1])[0] if isinstance(o, T)]
                if not self.on(args[0]) and any(self.on(o) and o.ndim for o in key):
                    raise RuntimeError(f"{name}: a tensor on the CPU is indexed by one on cuda")
                if key and isinstance(args[2], T) and args[2].ndim and self.on(args[2]) != self.on(args[0]):
                    raise RuntimeError(f"{name}: value and tensor are on different devices")
            return
        if func == T.__getitem__ and there[0]: return          # an index may lie on the CPU
        rest = [t for t, o in zip(tensors, there) if not o]
        if all(t.ndim == 0 for t in rest) and there[0] and name not in ('stack', 'cat'): return         # numbers
        raise RuntimeError(f"{name}: tensors on cuda:0 and cpu {[(tuple(t.shape), 'cuda' if o else 'cpu') for t, o in zip(tensors, there)]}")

class Now(Executor):
    "Runs what is submitted at once"
    def __init__(self, *_, **__): pass
    def submit(self, f, *args):
        (out := Future()).set_result(f(*args))
        return out

@contextlib.contextmanager
def pretend_cuda(bf16=False):
    "Run the block as if torch had found one GPU; yields the mode"
    m = PretendCUDA()
    class Generator(torch.Generator):
        def __new__(cls, device='cpu'):
            g = super().__new__(cls, 'cpu')
            g.on_gpu = is_gpu(device)
            return g
    class Props: name, total_memory, major, minor, multi_processor_count = 'pretended', 80 << 30, 9, 0, 1
    patches = dict(is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0, get_device_name=lambda *_: 'pretended',
                   is_bf16_supported=lambda *_, **__: bf16, synchronize=lambda *_: None, get_device_properties=lambda *_: Props,
                   device=lambda *_: contextlib.nullcontext(), is_initialized=lambda: False, empty_cache=lambda: None,
                   get_device_capability=lambda *_: (9, 0))
    with contextlib.ExitStack() as s:
        for k, v in patches.items(): s.enter_context(mock.patch.object(torch.cuda, k, v))
        s.enter_context(mock.patch.object(torch, 'Generator', Generator))
        s.enter_context(mock.patch.object(torch.optim.Optimizer, '_accelerator_graph_capture_health_check', lambda self: None))
        s.enter_context(mock.patch('synthrob.data.rows.ThreadPoolExecutor', Now))     # a mode ends at its thread
        s.enter_context(m)
        yield m
