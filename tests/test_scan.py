"""`torchwick scan` tells what is dangerous, in few bytes, and runs and imports none of it."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch._weights_only_unpickler import _get_allowed_globals
from typer.testing import CliRunner, Result

from checkpoints.assembly import (
    Code,
    call,
    legacy_of,
    name,
    program,
    push,
    storage,
    tensor,
    zip_of,
    zip_records,
)
from checkpoints.base import save_bytes
from checkpoints.zipcraft import Record, write_zip
from conftest import run_python
from torchwick import FormatError, ObjectNotFoundError
from torchwick.cli import app
from torchwick.inspection import ScanReport, scan
from torchwick.inspection.rules import judge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from faulty import FaultyServer

MIB = 1 << 20
PAYLOAD = call(name("os", "system"), "true")


def _scan(tmp_path: Path, content: bytes) -> ScanReport:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    return scan(path)


def _named(report: ScanReport, verdict: str) -> list[str]:
    return [finding.name for finding in report.findings if finding.verdict == verdict]


def _five(system: Any = None, object: Any = None) -> list[bytes]:
    """The pickles of a legacy file."""
    values: tuple[Any, ...] = (0x1950A86A20F9469CFC6C, 1001, system, object, [])
    return [pickle.dumps(value, 2) for value in values]


def _stack_global(module: str, attribute: str) -> Code:
    return Code(push(module) + push(attribute) + b"\x93")


def _at_protocol(protocol: int) -> bytes:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return eval, ("1",)

    return pickle.dumps({"weight": [1.5], "extra": Payload()}, protocol)


def _from_memo() -> bytes:
    """Its names come out of the memo, which MEMOIZE and BINPUT fill in each other's way."""
    texts = push("os") + b"q\x00" + push("system") + b"q\x01" + push("torch._utils") + b"\x94" + b"000"
    return program(Code(texts), Code(b"h\x00h\x01\x93" + push(("true",)) + b"R"), protocol=4)


def _in_state() -> bytes:
    """It lies in the state of an ordered dict, in a list in a dict."""
    return program(
        Code(
            call(name("collections", "OrderedDict")).raw
            + b"}" + push("key") + push([1, PAYLOAD]) + b"s" + b"b"
        )
    )  # fmt: skip


MALICIOUS: dict[str, Callable[[], bytes]] = {
    "system": lambda: program([PAYLOAD]),
    "getattr_chain": lambda: program(
        call(call(name("builtins", "getattr"), call(name("builtins", "__import__"), "os"), "system"), "true")
    ),
    "eval": lambda: program(call(name("builtins", "eval"), "1")),
    "eval_of_python_2": lambda: program(call(name("__builtin__", "eval"), "1")),
    "commands_of_python_2": lambda: program(call(name("commands", "getoutput"), "true")),
    "stack_global": lambda: program(call(_stack_global("posix", "system"), "true"), protocol=4),
    "stack_global_dotted": lambda: program(call(_stack_global("torch", "hub.os.system"), "x"), protocol=4),
    "stack_global_deep": lambda: program(call(_stack_global("mymodels", "a.os.system"), "x"), protocol=4),
    "stack_global_from_memo": _from_memo,
    "stack_global_of_no_text": lambda: program(
        Code(call(name("mymodels", "text")).raw + push("system") + b"\x93"), protocol=4
    ),
    "inst": lambda: b"(S'true'\nios\nsystem\n.",
    "obj": lambda: program(Code(b"(" + name("os", "system").raw + push("true") + b"o")),
    "newobj": lambda: program(Code(name("subprocess", "Popen").raw + push(("true",)) + b"\x81")),
    "in_state": _in_state,
    "under_pop": lambda: program(Code(PAYLOAD.raw + b"0"), 1),
    "extension": lambda: b"\x80\x02\x82\x01.",
    **{f"protocol_{n}": partial(_at_protocol, n) for n in range(6)},
}  # fmt: skip


@pytest.mark.parametrize("case", MALICIOUS)
class TestMalicious:
    """Each pickle, in each kind of file."""

    def test_in_a_zip(self, case: str, tmp_path: Path) -> None:
        assert _scan(tmp_path, zip_of(MALICIOUS[case]())).verdict == "dangerous"

    def test_compressed(self, case: str, tmp_path: Path) -> None:
        records = [replace(record, deflate=True) for record in zip_records(MALICIOUS[case]())]
        assert _scan(tmp_path, write_zip(records)).verdict == "dangerous"

    def test_legacy(self, case: str, tmp_path: Path) -> None:
        report = _scan(tmp_path, legacy_of(MALICIOUS[case](), keys=()))
        assert (report.format, report.verdict) == ("torch legacy", "dangerous")

    def test_plain(self, case: str, tmp_path: Path) -> None:
        report = _scan(tmp_path, MALICIOUS[case]())
        assert (report.format, report.verdict) == ("pickle", "dangerous")

    def test_broken_behind_the_payload(self, case: str, tmp_path: Path) -> None:
        """As in models that scanners took for unreadable, while Python ran them up to the damage."""
        broken = MALICIOUS[case]()[:-1] + b"\xff and no end"
        for content in (zip_of(broken), legacy_of(broken), broken):
            report = _scan(tmp_path, content)
            assert report.verdict == "dangerous"
            assert "damaged pickle" in _named(report, "dangerous")


@pytest.mark.parametrize(
    "dotted",
    [
        "pip.main",
        "cProfile.runctx",
        "doctest.debug_script",
        "idlelib.run.Executive.runcode",
        "lib2to3.pgen2.grammar.Grammar.loads",
        "code.InteractiveInterpreter.runcode",
        "logging.config.listen",
        "uuid._get_command_stdout",
        "_osx_support._read_output",
        "aifc.open",
        "pydoc.pipepager",
        "_pyrepl.pager.pipe_pager",
        "venv.create",
        "ensurepip._run_pip",
        "asyncio.unix_events._UnixSubprocessTransport._start",
        "torch.utils.bottleneck.__main__.run_cprofile",
        "torch.utils.collect_env.run",
        "torch.utils._config_module.ConfigModule.load_config",
        "torch._inductor.codecache.compile_file",
        "torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression",
        "torch.serialization.load",
        "torch.storage._load_from_bytes",
        "torch.jit.unsupported_tensor_ops.execWrapper",
        "numpy.testing._private.utils.runstring",
        "numpy.f2py.crackfortran.getlincoef",
        "numpy.core._internal.sys.modules",
        "numpy.__builtins__",
        "distutils.file_util.write_file",
        "pkgutil.resolve_name",
        "mailcap.findmatch",
        "functools.reduce",
        "operator.attrgetter",
        "_operator.methodcaller",
        "_io.open",
        "ssl.get_server_certificate",
        "builtins.__build_class__",
        "collections.OrderedDict.__init__.__globals__",
        "torch._utils._rebuild_tensor.__code__",
        "_ctypes.dlopen",
    ],
)
def test_published_bypasses(dotted: str, tmp_path: Path) -> None:
    module, _, attribute = dotted.rpartition(".")
    report = _scan(tmp_path, zip_of(program([call(name(module, attribute), "x")])))
    assert _named(report, "dangerous") == [dotted]


@pytest.mark.parametrize(
    "dotted",
    [
        "mymodels.Encoder",
        "numpy.ndarray",
        "pathlib.PosixPath",
        "_io.BytesIO",
        "uuid.UUID",
        "functools.partial",
    ],
)
def test_what_is_only_unknown(dotted: str) -> None:
    assert judge(dotted)[0] == "unknown"


def test_what_torch_allows_is_safe() -> None:
    assert {dotted: judge(dotted)[0] for dotted in _get_allowed_globals()} == dict.fromkeys(
        _get_allowed_globals(), "safe"
    )


class TestBenign:
    def test_state_dict(self, tmp_path: Path) -> None:
        report = _scan(tmp_path, save_bytes(torch.nn.Linear(3, 3).state_dict()))
        assert (report.format, report.verdict) == ("torch zip", "safe")
        assert {finding.where for finding in report.findings} == {"data.pkl"}

    @pytest.mark.parametrize("zipped", [True, False])
    def test_optimizer_state(self, tmp_path: Path, zipped: bool) -> None:
        layer = torch.nn.Linear(3, 3)
        optimizer = torch.optim.Adam(layer.parameters())
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        content = save_bytes(optimizer.state_dict(), _use_new_zipfile_serialization=zipped)
        assert _scan(tmp_path, content).verdict == "safe"

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_whole_module(self, tmp_path: Path, zipped: bool) -> None:
        content = save_bytes(torch.nn.Linear(3, 3), _use_new_zipfile_serialization=zipped)
        report = _scan(tmp_path, content)
        assert report.verdict == "unknown"
        assert _named(report, "unknown") == ["torch.nn.modules.linear.Linear"]

    @pytest.mark.parametrize("protocol", range(6))
    def test_plain_pickles(self, tmp_path: Path, protocol: int) -> None:
        content = b"".join(pickle.dumps(value, protocol) for value in ({"a": [1.5, "b"]}, {7}, b"bytes"))
        report = _scan(tmp_path, content)
        assert (report.format, report.verdict) == ("pickle", "safe")

    def test_arrays(self, tmp_path: Path) -> None:
        assert _scan(tmp_path, pickle.dumps({"a": np.ones(3)})).verdict == "unknown"

    def test_torchscript(self, tmp_path: Path) -> None:
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
        report = _scan(tmp_path, file.getvalue())
        assert (report.format, report.verdict) == ("TorchScript", "unknown")
        assert _named(report, "unknown") == ["TorchScript"]
        assert any(finding.name.startswith("__torch__.") for finding in report.findings)

    def test_exported(self, tmp_path: Path) -> None:
        file = io.BytesIO()
        torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), file)
        report = _scan(tmp_path, file.getvalue())
        assert (report.format, report.verdict) == ("pt2", "unknown")
        assert _named(report, "unknown") == ["pt2"]
        assert any(finding.where.endswith(".pt/data.pkl") for finding in report.findings)

    def test_safetensors(self, tmp_path: Path) -> None:
        report = _scan(tmp_path, safetensors.torch.save({"weight": torch.ones(300)}))
        assert (report.format, report.verdict, report.findings) == ("safetensors", "safe", ())


class TestDisguises:
    """Files that are one thing to one reader, and another to the next."""

    def test_a_payload_in_another_pickle(self, tmp_path: Path) -> None:
        extra = Record("deep/Other.PKL", program([PAYLOAD]))
        report = _scan(tmp_path, write_zip(zip_records(program([tensor(storage())]), extra)))
        assert [f.where for f in report.findings if f.verdict == "dangerous"] == ["deep/other.pkl"]

    @pytest.mark.parametrize("part", range(5))
    def test_each_of_the_five(self, part: int, tmp_path: Path) -> None:
        pickles = _five()
        pickles[part] = pickles[part][:-1] + PAYLOAD.raw + b"0."
        assert _scan(tmp_path, b"".join(pickles)).verdict == "dangerous"

    def test_behind_a_good_pickle(self, tmp_path: Path) -> None:
        report = _scan(tmp_path, pickle.dumps([1]) + pickle.dumps({2}) + program([PAYLOAD]))
        assert [(f.name, f.where) for f in report.findings if f.verdict == "dangerous"] == [
            ("os.system", "pickle 3")
        ]

    def test_behind_much_padding(self, tmp_path: Path) -> None:
        content = pickle.dumps("x" * MIB, 4)[:-1] + b"0" + PAYLOAD.raw + b"."
        assert _named(_scan(tmp_path, content), "dangerous") == ["os.system"]

    def test_safetensors_that_is_a_pickle(self, tmp_path: Path) -> None:
        """Its length and header read as a text, a copy of it, a list and dicts; its tensor is the payload."""
        payload = (PAYLOAD.raw + b".").ljust(44)
        header = b'{"%s":{"dtype":"U8","data_offsets":[0,44],"shape":[22,\n2]}}'
        header = header % (b"t" * (ord("V") - len(header) + 2))
        content = struct.pack("<Q", len(header)) + header + payload
        assert safetensors.torch.load(content).popitem()[1].shape == (22, 2)
        with pytest.raises(_ReachedError):
            _Reaching(io.BytesIO(content)).load()
        assert _scan(tmp_path, content).verdict == "dangerous"

    def test_a_pickle_that_begins_like_gguf(self, tmp_path: Path) -> None:
        content = b"GGUF" + struct.pack("<I", 3) + b"\0" + PAYLOAD.raw + b"."
        assert _named(_scan(tmp_path, content), "dangerous") == ["os.system"]

    def test_a_legacy_file_that_is_a_tar(self, tmp_path: Path) -> None:
        """torch looks for a tar archive first, and finds one if the first 512 bytes have its checksum."""
        pickles = _five(system="\0" * 512)
        content = bytearray(b"".join(pickles).ljust(1536, b"\0"))
        content[148:156] = b"        "
        content[148:156] = b"%06o\0 " % sum(content[:512])
        tarfile.open(fileobj=io.BytesIO(bytes(content)), mode="r:").close()
        report = _scan(tmp_path, bytes(content))
        assert (report.format, report.verdict) == ("torch tar", "dangerous")

    def test_a_record_that_does_not_unpack(self, tmp_path: Path) -> None:
        records = [replace(r, flags=1 if r.name.endswith(".pkl") else 0) for r in zip_records(program([1]))]
        assert _scan(tmp_path, write_zip(records)).verdict == "dangerous"

    def test_a_name_that_would_colour_the_terminal(self, tmp_path: Path) -> None:
        report = _scan(tmp_path, zip_of(program([call(name("evil", "\x1b[2J" + "x" * 2000))])))
        (found,) = report.findings
        assert found.verdict == "dangerous"
        assert found.name.startswith("evil.\\x1b[2J")
        assert len(found.name) < 1100


class _ReachedError(Exception):
    pass


class _Reaching(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        assert (module, name) == ("os", "system")
        raise _ReachedError


class TestRefused:
    @pytest.mark.parametrize(
        "content",
        [b"", b"<html></html>", b"some text\n", b"GGUF\3\0\0\0" + bytes(99), b"\x93NUMPY" + bytes(99)],
    )
    def test_what_is_no_checkpoint(self, content: bytes, tmp_path: Path) -> None:
        with pytest.raises(FormatError, match="not a model"):
            _scan(tmp_path, content)

    def test_a_zip_without_pickles(self, tmp_path: Path) -> None:
        file = io.BytesIO()
        np.savez(file, a=np.ones(2))
        with pytest.raises(FormatError, match="without a pickle"):
            _scan(tmp_path, file.getvalue())

    def test_two_records_of_one_name(self, tmp_path: Path) -> None:
        file = io.BytesIO(zip_of(program([1])))
        with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            archive.writestr("archive/data.pkl", program([PAYLOAD]))
        with pytest.raises(FormatError, match="one name"):
            _scan(tmp_path, file.getvalue())

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ObjectNotFoundError):
            scan(tmp_path / "none.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_few_bytes_are_fetched(zipped: bool, faulty_s3: FaultyServer) -> None:
    state = {f"layer.{n}": torch.ones(MIB // 4) for n in range(30)}
    faulty_s3.put("models/new.pt", save_bytes(state, _use_new_zipfile_serialization=zipped))
    report = scan("s3://models/new.pt")
    assert report.verdict == "safe"
    assert report.requests == len(faulty_s3.requests) <= 3
    assert 0 < report.bytes_read < 600_000
    asked = [request.range for request in faulty_s3.requests]
    assert sum(stop - start for start, stop in filter(None, asked) if stop is not None) < 600_000


def test_nothing_is_imported_or_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    touch = call(name("os", "system"), f"touch {canary}")
    for number, content in enumerate(
        (
            zip_of(program([touch])),
            legacy_of(program([touch]), keys=()),
            program([touch]),
            program([touch])[:-1],
        )
    ):
        (tmp_path / f"{number}.pt").write_bytes(content)
    named = program([call(name("antigravity", "x")), call(name("torch.nn", "Linear"), 1, 1)])
    (tmp_path / "named.pt").write_bytes(zip_of(named))
    script = (
        "import pathlib, sys\n"
        "from torchwick.cli import app\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.pt')):\n"
        "    try:\n"
        "        app(['scan', str(path), '--json'])\n"
        "    except SystemExit as ended:\n"
        "        assert ended.code == 1, path\n"
        "print('torch' in sys.modules, 'antigravity' in sys.modules)\n"
    )
    assert run_python(script, str(tmp_path)).endswith("False False\n")
    assert not canary.exists()


class TestCommand:
    def _run(self, *arguments: str) -> Result:
        result = CliRunner().invoke(app, ["scan", *arguments], env={"COLUMNS": "200"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def _file(self, tmp_path: Path, *values: Any) -> str:
        path = tmp_path / "model.pt"
        path.write_bytes(zip_of(program(list(values))))
        return str(path)

    def test_dangerous(self, tmp_path: Path) -> None:
        mine = call(name("mymodels", "Encoder"))
        result = self._run(self._file(tmp_path, tensor(storage()), mine, PAYLOAD))
        assert result.exit_code == 1
        lines = result.stdout.splitlines()
        assert lines[0].endswith("model.pt (torch zip): dangerous")
        rows = [line for line in lines if "data.pkl" in line]
        assert ["os.system" in rows[0], "mymodels.Encoder" in rows[1]] == [True, True]
        assert "runs commands" in rows[0]
        assert "3 more names are safe" in result.stdout

    def test_all(self, tmp_path: Path) -> None:
        result = self._run(self._file(tmp_path, tensor(storage())), "--all")
        assert result.exit_code == 0
        assert "torch._utils._rebuild_tensor_v2" in result.stdout
        assert "more" not in result.stdout

    def test_unknown_is_no_failure(self, tmp_path: Path) -> None:
        assert self._run(self._file(tmp_path, call(name("mymodels", "Encoder")))).exit_code == 0

    def test_nothing_named(self, tmp_path: Path) -> None:
        assert "names nothing" in self._run(self._file(tmp_path, 1)).stdout

    def test_json(self, tmp_path: Path) -> None:
        path = self._file(tmp_path, PAYLOAD)
        result = self._run(path, "--json")
        assert result.exit_code == 1
        found = {"name": "os.system", "verdict": "dangerous", "rule": "runs commands", "where": "data.pkl"}
        told = json.loads(result.stdout)
        assert told.pop("bytes_read") > 0
        assert told == {
            "verdict": "dangerous",
            "uri": path,
            "format": "torch zip",
            "findings": [found],
            "requests": 1,
        }

    def test_what_could_not_be_scanned(self, tmp_path: Path) -> None:
        result = self._run(str(tmp_path / "none.pt"))
        assert (result.exit_code, "ObjectNotFoundError" in result.stderr) == (2, True)
        result = self._run(str(tmp_path / "none.pt"), "--json")
        assert (result.exit_code, json.loads(result.stdout)["error"]["type"]) == (2, "ObjectNotFoundError")
