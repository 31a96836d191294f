"""Which globals of a pickle build their object without looking at any tensor's values.

Only what is known to be blind is: anything else (sparse and quantized tensors, numpy, classes of the
caller's) may want the bytes while it is being built.
"""

from __future__ import annotations

__all__ = ["values_unseen"]

_BLIND = frozenset(
    {
        "_codecs.encode",
        "collections.Counter",
        "collections.OrderedDict",
        "collections.defaultdict",
        "torch.Size",
        "torch.Tensor",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch.device",
        "torch.nn.parameter.Buffer",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
    }
)
_BLIND_BUILTINS = frozenset(
    [
        "bool",
        "bytearray",
        "bytes",
        "complex",
        "dict",
        "float",
        "frozenset",
        "int",
        "list",
        "object",
        "range",
        "set",
        "slice",
        "str",
        "tuple",
    ]
)
_TORCH_DTYPES = frozenset(
    [
        "bfloat16",
        "bool",
        "cdouble",
        "cfloat",
        "chalf",
        "complex128",
        "complex32",
        "complex64",
        "double",
        "float",
        "float16",
        "float32",
        "float64",
        "float4_e2m1fn_x2",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "half",
        "int",
        "int16",
        "int32",
        "int64",
        "int8",
        "long",
        "short",
        "uint16",
        "uint32",
        "uint64",
        "uint8",
    ]
)


def values_unseen(name: str) -> bool:
    """Whether a global builds its object without looking at any tensor's values.

    Example:
        >>> values_unseen("torch._utils._rebuild_tensor_v2"), values_unseen("torch._utils._rebuild_qtensor")
        (True, False)
    """
    module, _, attribute = name.rpartition(".")
    return (
        name in _BLIND
        or (module == "builtins" and attribute in _BLIND_BUILTINS)
        or (module == "torch" and (attribute in _TORCH_DTYPES or attribute.endswith("Storage")))
    )
