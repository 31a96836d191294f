"""Judges a global by its name: safe, unknown or dangerous, and the rule that says so.

Only a name that ``torch.load(weights_only=True)`` allows is safe. The list of what is dangerous only tells a
weapon from a stranger; it cannot be complete, and nothing becomes safe by not being on it.
"""

from __future__ import annotations

import _compat_pickle
import itertools
import re
import sys
from collections.abc import Iterator
from typing import Literal

__all__ = ["PERSISTENT_ID", "Verdict", "judge", "judge_in_torchscript"]

Verdict = Literal["safe", "unknown", "dangerous"]

PERSISTENT_ID = "persistent id of type "
"""What a name begins with that is no global, but something which only the file's own loader can provide."""

# -- safe --------------------------------------------------------------------------------------------------

_ALLOWED = "weights_only=True allows it"
_LEGACY_TYPES = ("BFloat16", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
_STORED_TYPES = (*_LEGACY_TYPES, "Bool", "ComplexDouble", "ComplexFloat")
_QUANTIZED_TYPES = ("QInt32", "QInt8", "QUInt2x4", "QUInt4x2", "QUInt8")

# torch/_weights_only_unpickler.py, _get_allowed_globals; tests/test_scan.py holds this against torch's own.
_SAFE = frozenset(
    [
        # Containers, and what Python's pickler makes of bytes, sets and complex numbers at protocol 2.
        *("collections.OrderedDict", "collections.Counter"),
        *("_codecs.encode", "builtins.bytearray", "builtins.complex", "builtins.set"),
        *("torch.Size", "torch.Tensor", "torch.device", "torch.nn.parameter.Parameter"),
        *("torch.serialization._get_layout", "torch._tensor._rebuild_from_type_v2"),
        *("torch.storage.TypedStorage", "torch.storage.UntypedStorage"),
        *(
            f"torch._utils._rebuild_{what}"
            for what in (
                "device_tensor_from_cpu_tensor",
                "device_tensor_from_numpy",
                "meta_tensor_no_storage",
                "nested_tensor",
                "parameter",
                "parameter_with_state",
                "qtensor",
                "sparse_tensor",
                "tensor",
                "tensor_v2",
                "tensor_v3",
                "wrapper_subclass",
            )
        ),
        # Storages and the tensor classes of torch 0.1 to 0.3, on either device.
        *(f"torch.{kind}Storage" for kind in (*_STORED_TYPES, *_QUANTIZED_TYPES)),
        *(f"torch.cuda.{kind}Storage" for kind in _STORED_TYPES),
        *(f"torch.{kind}Tensor" for kind in (*_LEGACY_TYPES, "Bool")),
        *(f"torch.cuda.{kind}Tensor" for kind in (*_LEGACY_TYPES, "Bool")),
        *(f"torch.sparse.{kind}Tensor" for kind in _LEGACY_TYPES),
        *(f"torch.cuda.sparse.{kind}Tensor" for kind in _LEGACY_TYPES),
        # dtypes
        *(f"torch.{sign}int{bits}" for sign in ("", "u") for bits in (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64)),
        *("torch.bool", "torch.bfloat16", "torch.float16", "torch.float32", "torch.float64"),
        *("torch.complex32", "torch.complex64", "torch.complex128"),
        *("torch.float8_e4m3fn", "torch.float8_e4m3fnuz", "torch.float8_e5m2", "torch.float8_e5m2fnuz"),
        *("torch.float8_e8m0fnu", "torch.float4_e2m1fn_x2"),
        *("torch.bits16", "torch.bits1x8", "torch.bits2x4", "torch.bits4x2", "torch.bits8"),
        *("torch.qint32", "torch.qint8", "torch.quint2x4", "torch.quint4x2", "torch.quint8"),
        # quantization schemes
        *("torch.per_channel_affine", "torch.per_channel_affine_float_qparams"),
        *("torch.per_channel_symmetric", "torch.per_tensor_affine", "torch.per_tensor_symmetric"),
    ]
)

# What TorchScript's own unpickler, in C++, knows beside the archive's classes (torch/jit/_pickle.py).
_TORCHSCRIPT = "torch.jit._pickle."

# -- dangerous ---------------------------------------------------------------------------------------------

_COMMANDS = "runs commands"
_CODE = "runs code"
_FILES = "opens files"
_NETWORK = "opens network connections"
_PICKLES = "loads other pickles"
_REACHES = "reaches any attribute"
_INSTALLS = "installs packages"
_LIBRARIES = "loads native libraries"
_STARTS = "starts threads or processes"
_CALLS = "calls what it is given"
_INTERNAL = "reaches into Python's own machinery"

# A module stands for all within it and beneath it; a function or class, for itself and its attributes. Many
# of the odder ones are from the published advisories about pickle scanners that missed them (GHSA and CVE
# entries of picklescan, modelscan and fickling, 2024 to 2026): each is a function somewhere in a common
# package that hands its argument on to a shell, to eval, or to an import.
_DANGEROUS_BY_RULE: dict[str, tuple[str, ...]] = {
    _COMMANDS: (
        *("os", "posix", "nt", "subprocess", "pty", "commands", "popen2", "pipes", "_posixsubprocess"),
        *("pexpect", "sh", "plumbum", "fabric", "invoke", "asyncio", "platform", "uuid", "mailcap"),
        *("_osx_support", "_aix_support", "_pyrepl", "torch.utils.collect_env", "torch.utils.hipify"),
        *("numpy.distutils", "torch._inductor", "torch._appdirs", "antigravity", "sysconfig"),
    ),
    _CODE: (
        *(f"builtins.{name}" for name in ("eval", "exec", "execfile", "compile", "__import__", "reload")),
        *("builtins.__build_class__", "builtins.breakpoint", "builtins.input", "builtins.raw_input"),
        *("builtins.help", "builtins.type.__new__", "sys", "importlib", "imp", "runpy", "code", "codeop"),
        *("pkgutil", "zipimport", "zipapp", "modulefinder", "site", "sitecustomize", "usercustomize"),
        *("bdb", "pdb", "profile", "cProfile", "pstats", "timeit", "trace", "doctest", "pydoc", "cgitb"),
        *(
            "unittest",
            "test.support",
            "pytest",
            "_pytest",
            "nose",
            "idlelib",
            "lib2to3",
            "compileall",
            "py_compile",
        ),
        *("types.CodeType", "types.FunctionType", "types.LambdaType", "types.MethodType"),
        *("types.ModuleType", "types.new_class", "types.coroutine", "atexit", "sched", "cmd", "tkinter"),
        *("ipython", "IPython", "ipykernel", "jupyter_client", "turtle", "wsgiref", "hotshot"),
        *("typing.get_type_hints", "typing.ForwardRef", "typing._eval_type", "rlcompleter"),
        *("numpy.testing", "numpy.f2py", "numpy.ma.testutils", "numpy._core.tests"),
        *("pandas.eval", "pandas.core.computation", "sympy", "jinja2", "mako", "numexpr", "asteval"),
        *("torch.jit", "torch.package", "torch.fx", "torch._dynamo", "torch.testing", "torch.compile"),
        *("torch.utils.bottleneck", "torch.utils.benchmark", "torch.utils._config_module"),
        *("torch.distributed.nn.jit", "torch.distributed.run", "torch.distributed.launch"),
        *("torch.distributed.launcher", "torch.distributed.elastic", "torch.onnx", "torchgen"),
        *("torch._export", "torch.export", "torch.cuda._sanitizer", "torch.utils.model_dump"),
        *("torch._C.import_ir_module", "torch._C.import_ir_module_from_buffer", "tensorflow.py_function"),
        *(
            "tensorflow.keras.models.load_model",
            "keras.models.load_model",
            "keras.saving",
            "keras.src.saving",
        ),
    ),
    _LIBRARIES: (
        *("ctypes", "cffi", "torch.utils.cpp_extension", "torch.ops.load_library", "torch._ops"),
        *(
            "torch.classes.load_library",
            "numpy.ctypeslib",
            "tensorflow.load_op_library",
            "numba",
            "pyximport",
        ),
        *("cython", "Cython", "cupy.RawKernel", "cupy.RawModule", "triton", "tensorflow.load_library"),
    ),
    _REACHES: (
        *("builtins.getattr", "builtins.setattr", "builtins.delattr", "builtins.globals"),
        *("builtins.locals", "builtins.vars", "builtins.hasattr", "builtins.super", "builtins.__dict__"),
        *("operator.attrgetter", "operator.methodcaller", "operator.itemgetter", "inspect", "gc"),
        *("copyreg.add_extension", "copyreg.pickle", "copyreg.constructor", "unittest.mock"),
        *("functools.cached_property", "functools.singledispatch", "functools.update_wrapper"),
        *("torch._utils_internal", "torch.utils._pytree.register_pytree_node"),
        *("torch.serialization.add_safe_globals", "torch.serialization.register_package"),
    ),
    _CALLS: (
        *("builtins.map", "builtins.filter", "builtins.apply", "functools.reduce", "operator.call"),
        *("itertools.starmap", "itertools.accumulate", "contextlib.ExitStack", "weakref.finalize"),
        *("numpy.apply_along_axis", "numpy.apply_over_axes", "numpy.vectorize", "numpy.frompyfunc"),
        *("numpy.fromfunction", "numpy.piecewise"),
    ),
    _FILES: (
        *("builtins.open", "builtins.file", "io", "shutil", "pathlib", "tempfile", "glob", "fileinput"),
        *("linecache", "filecmp", "mmap", "tarfile", "zipfile", "gzip", "bz2", "lzma", "sqlite3", "dbm"),
        *("posixpath", "ntpath", "genericpath", "macpath", "codecs.open", "aifc", "wave", "sunau", "sndhdr"),
        *("imghdr", "chunk", "mailbox", "netrc", "tokenize.open", "logging.FileHandler", "logging.handlers"),
        *("logging.config", "logging.basicConfig", "whichdb", "dumbdbm", "anydbm", "fcntl"),
        *("numpy.load", "numpy.save", "numpy.savez", "numpy.savez_compressed", "numpy.savetxt"),
        *("numpy.loadtxt", "numpy.genfromtxt", "numpy.fromfile", "numpy.memmap", "numpy.DataSource"),
        *("numpy.lib.npyio", "numpy.lib._npyio_impl", "numpy.lib.format", "numpy.lib._datasource"),
        *("numpy.lib._format_impl", "numpy._core.memmap", "numpy.ndarray.tofile"),
        *("pandas.read_csv", "pandas.read_table", "pandas.io", "distutils", "h5py.File", "tensorflow.io"),
        *("torch.save", "torch.from_file", "torch.Tensor.from_file", "torch._C.PyTorchFileReader"),
        *("torch._C.PyTorchFileWriter", "torch.storage.UntypedStorage.from_file", "torch.profiler"),
        *("torch.storage.UntypedStorage._new_with_file", "torch.utils.tensorboard", "torch.utils.file_baton"),
        *("torch.multiprocessing", "multiprocessing.shared_memory", "PIL.Image.open", "PIL.ImageShow"),
    ),
    _NETWORK: (
        *("socket", "_socket", "ssl", "_ssl", "http", "httplib", "urllib", "urllib2", "ftplib", "smtplib"),
        *("smtpd", "imaplib", "poplib", "nntplib", "telnetlib", "xmlrpc", "xmlrpclib", "socketserver"),
        *("asyncore", "asynchat", "webbrowser", "requests", "urllib3", "aiohttp", "httpx", "tornado"),
        *("twisted", "paramiko", "websocket", "websockets", "zmq", "fsspec", "s3fs", "gcsfs", "smart_open"),
        *("boto3", "botocore", "huggingface_hub", "wget", "pycurl", "torch.hub", "torch.utils.model_zoo"),
        *("torch.distributed.rpc", "torch.distributed.TCPStore", "logging.handlers.SocketHandler"),
        *("select", "selectors", "xml.sax", "xml.dom.pulldom", "pandas.read_html", "pandas.read_sql"),
    ),
    _PICKLES: (
        *("pickle", "cPickle", "_pickle", "pickle5", "dill", "cloudpickle", "joblib", "marshal", "shelve"),
        *(
            "jsonpickle",
            "klepto",
            "yaml",
            "ruamel",
            "torch.load",
            "torch.serialization",
            "pandas.read_pickle",
        ),
        *("torch.storage._load_from_bytes", "torch.utils.data.datapipes", "torch.utils.show_pickle"),
        *(
            "torch.distributed.distributed_c10d._tensor_to_object",
            "torch.distributed.distributed_c10d._unpickler",
        ),
        *("torch.distributed.checkpoint.format_utils", "torch.distributed.checkpoint.state_dict_loader"),
        *("numpy._core.multiarray.load", "numpy._core._methods.load"),
        *("sklearn.externals.joblib", "numpy.ma.core.load", "numpy.ma.core.loads"),
    ),
    _INSTALLS: (
        *("pip", "setuptools", "pkg_resources", "ensurepip", "venv", "virtualenv", "conda", "easy_install"),
        *("wheel", "_distutils_hack", "piptools", "poetry", "uv"),
    ),
    _STARTS: (
        *("threading", "_thread", "thread", "multiprocessing", "concurrent.futures", "signal", "_signal"),
        *("_interpreters", "_xxsubinterpreters", "dummy_threading", "torch.multiprocessing.spawn"),
        *("faulthandler", "resource", "syslog", "winreg", "msvcrt", "_winapi"),
    ),
}
_DANGEROUS = {prefix: rule for rule, prefixes in _DANGEROUS_BY_RULE.items() for prefix in prefixes}

# Plain values that live in a dangerous module; honest checkpoints are full of them. They stay unknown.
_PLAIN = frozenset(
    [
        *(f"pathlib.{pure}{kind}Path" for pure in ("", "Pure") for kind in ("", "Posix", "Windows")),
        *(f"pathlib._local.{pure}{kind}Path" for pure in ("", "Pure") for kind in ("", "Posix", "Windows")),
        *("uuid.UUID", "uuid.SafeUUID", "io.BytesIO", "io.StringIO", "signal.Signals", "http.HTTPStatus"),
        *("joblib.numpy_pickle.NumpyArrayWrapper", "inspect.Parameter", "inspect.Signature"),
        *("torch.fx.immutable_collections.immutable_dict", "torch.fx.immutable_collections.immutable_list"),
        *(
            f"torch.jit._pickle.{name}"
            for name in ("build_boollist", "build_doublelist", "build_intlist", "build_tensorlist")
        ),
        *("_collections_abc.dict_keys", "_collections_abc.dict_values", "_collections_abc.dict_items"),
        *("torch.torch_version.TorchVersion", "_thread.RLock", "_struct.Struct", "_random.Random"),
    ]
)

# Modules so common that others have them as an attribute: `numpy.os.system` is a name like any other.
_REACHED = frozenset(
    [
        *("os", "posix", "nt", "sys", "subprocess", "builtins", "importlib", "shutil", "pickle", "ctypes"),
        *("socket", "runpy", "marshal", "pty", "pip", "pathlib", "tempfile", "multiprocessing"),
    ]
)

# One module under several names. Those that Python 3 gave new names come from its own table, below.
_ALIASES = {
    "__builtin__": "builtins",
    "__builtins__": "builtins",
    "_io": "io",
    "_pyio": "io",
    "_operator": "operator",
    "_functools": "functools",
    "_collections": "collections",
    "_warnings": "warnings",
    "_uuid": "uuid",
    "copy_reg": "copyreg",
    "nturl2path": "urllib.request",
    "numpy.core": "numpy._core",
}

# Names with double underscores that honest pickles hold: classes of scripts, and of copyreg's protocol.
_HONEST_DUNDERS = frozenset(
    ["__main__", "__mp_main__", "__torch__", "__future__", "__newobj__", "__newobj_ex__", "__init__"]
)
_DUNDER = re.compile(r"__\w+__")
_LONGEST = 1000  # characters: those of Python's and torch's own names are below 100
_UNLISTED = "not among what weights_only=True allows"


def judge(name: str) -> tuple[Verdict, str]:
    """Judge a global.

    Args:
        name: its dotted name, module and attribute.

    Returns:
        The verdict, and in a few words the rule behind it.

    Example:
        >>> judge("collections.OrderedDict")
        ('safe', 'weights_only=True allows it')
        >>> judge("numpy.os.system")
        ('dangerous', 'runs commands')
        >>> judge("mymodels.Encoder")
        ('unknown', 'not among what weights_only=True allows')
    """
    if name in _SAFE:
        return "safe", _ALLOWED
    if name.startswith(PERSISTENT_ID):
        return "unknown", "only its own loader knows what it stands for"
    if len(name) > _LONGEST:
        return "dangerous", "longer than any honest name"
    spellings = list(_spellings(name))
    if not _PLAIN.isdisjoint(spellings):
        return "unknown", _UNLISTED
    rule = next(filter(None, map(_rule_of, spellings)), None) or _rule_on_the_way(name.split("."))
    return ("unknown", _UNLISTED) if rule is None else ("dangerous", rule)


def judge_in_torchscript(name: str) -> tuple[Verdict, str]:
    """Judge a global of a TorchScript archive, whose classes are its own and no Python module's.

    Example:
        >>> judge_in_torchscript("__torch__.torch.nn.modules.linear.Linear")
        ('safe', "a class of the archive's own")
    """
    if name.startswith("__torch__."):
        return "safe", "a class of the archive's own"
    if name.startswith(_TORCHSCRIPT):
        return "safe", "part of TorchScript's format"
    return judge(name)


def _spellings(name: str) -> Iterator[str]:
    """Yield the names under which Python may look for a global: itself, by alias, and from Python 2."""
    yield name
    for module, attribute in _splits(name):
        # What was a builtin in Python 2 need not be one now; the pickle's own spelling is lost.
        old = "__builtin__" if module == "builtins" else module
        renamed = _compat_pickle.NAME_MAPPING.get((old, attribute))
        if renamed is not None:
            yield ".".join(renamed)
        for names in (_ALIASES, _compat_pickle.IMPORT_MAPPING):
            if module in names:
                yield f"{names[module]}.{attribute}"


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield a dotted name as module and attribute, split at each of its dots."""
    for dot in re.finditer(r"\.", name):
        yield name[: dot.start()], name[dot.end() :]


def _rule_of(name: str) -> str | None:
    """Return the rule of the longest entry that holds for a name, or None."""
    prefixes = [*(module for module, _ in _splits(name)), name]
    return next((_DANGEROUS[prefix] for prefix in reversed(prefixes) if prefix in _DANGEROUS), None)


def _rule_on_the_way(parts: list[str]) -> str | None:
    """Return the rule against a name for what it passes through, or None."""
    first = parts[0]
    if first.startswith("_") and first in sys.stdlib_module_names and first not in _HONEST_DUNDERS:
        return _INTERNAL
    for at, part in itertools.islice(enumerate(parts), 1, None):
        module = _ALIASES.get(part, part)
        if module in _REACHED:
            return _rule_of(".".join([module, *parts[at + 1 :]])) or _REACHES
    if any(_DUNDER.fullmatch(part) and part not in _HONEST_DUNDERS for part in parts):
        return _INTERNAL
    return None
