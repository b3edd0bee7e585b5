"""A pretended GPU: its tensors compute on the CPU, but can't be mixed with the CPU's or read without a copy.

PyTorch's device `meta` lends the name, since it needs no hardware. What PyTorch would put there gets a tensor with
numbers on the CPU inside; every operation runs on these.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("meta")
aten = torch.ops.aten
MIXED = (aten._to_copy.default, aten.copy_.default, aten.index.Tensor)  # copies, and rows chosen by indices on the CPU


class OnGPU(torch.Tensor):
    "A tensor of the pretended GPU."

    @staticmethod
    def __new__(cls, inner):
        layout = dict(strides=inner.stride(), storage_offset=inner.storage_offset())
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=GPU, **layout)

    def __init__(self, inner):
        self.inner = inner  # a tensor on the CPU

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})


def is_on_gpu(value) -> bool:
    return isinstance(value, OnGPU)


def run(operation, args, kwargs):
    "Run an operation of PyTorch on the tensors inside, unless it mixes the two devices."
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    asked = kwargs.get("device")
    alone = [tensor for tensor in tensors if not is_on_gpu(tensor) and tensor.dim()]  # a number may be anywhere
    if any(map(is_on_gpu, tensors)) and alone and operation not in MIXED:
        raise RuntimeError(f"{operation}: tensors on the GPU and on the CPU")

    def unwrap(value):
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return value.inner if is_on_gpu(value) else value

    result = operation(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    name = operation.__name__.split(".")[0]
    if name.endswith("_") and not name.endswith("__"):  # in place
        return args[0]
    is_there = any(map(is_on_gpu, tensors)) if asked is None else torch.device(asked) == GPU
    return tree_map(lambda value: OnGPU(value) if is_there and type(value) is torch.Tensor else value, result)


class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})


class Functions(TorchFunctionMode):
    "Name the pretended GPU `cuda`, and copy where PyTorch copies without an operation."

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def rename(value):
            return GPU if isinstance(value, (str, torch.device)) and str(value) == "cuda" else value

        if function is not torch.device:
            args, kwargs = tree_map(rename, args), tree_map(rename, kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and (kwargs or {}).get("device") == GPU:
            del kwargs["device"]
            return function(*args, **kwargs).to(GPU)
        if function is torch.Tensor.data_ptr and is_on_gpu(args[0]):
            return args[0].inner.data_ptr()
        if function is torch.Tensor.tolist and is_on_gpu(args[0]):
            return args[0].cpu().tolist()
        return function(*args, **(kwargs or {}))


@contextmanager
def pretend_gpu():
    "Pretend that there is a GPU."
    torch.__future__.set_swap_module_params_on_conversion(True)  # weights that are tied stay so
    try:
        with Functions(), Operations():
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
