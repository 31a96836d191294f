"""What transformers makes of a directory in S3 is what it makes of the same one on a disk, by the byte."""

from __future__ import annotations

import json
import re
import socket
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    WhisperFeatureExtractor,
)

import torchwick
from conftest import run_python
from faults import FlipByte, S3Error
from torchwick import Progress, S3Config, TransferConfig
from torchwick.demo.models import PACKAGED
from torchwick.integrations.small_files import Directory
from torchwick.integrations.transformers import from_pretrained
from torchwick.store import ObjectInfo, open_store
from torchwick.uri import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from faulty import FaultyServer
    from torchwick.demo.server import SeaweedFS

MINILM = PACKAGED[0]
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 11,
}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}


# -- models ------------------------------------------------------------------------------------------------


def _save_llama(folder: Path) -> None:
    """Eleven layers, so that layer 10 comes before layer 2 in a file, and after it for transformers."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS))
    model.generation_config.max_new_tokens = 17
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 3


def _save_bert(folder: Path) -> None:
    sizes = {**SIZES, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertForSequenceClassification(BertConfig(**sizes, num_labels=3)).save_pretrained(folder)


def _save_t5(folder: Path) -> None:
    config = T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    T5ForConditionalGeneration(config).save_pretrained(folder)


def _save_mixtral(folder: Path) -> None:
    """Written expert by expert, as all of its kind are; transformers 5 fuses them while it loads."""
    sizes = {**SIZES, "num_hidden_layers": 2}
    model = MixtralForCausalLM(MixtralConfig(**sizes, **HEADS, num_local_experts=4))
    model.save_pretrained(folder, max_shard_size="60KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert any(".experts.3." in name for name in index["weight_map"])


def _save_bin(folder: Path) -> None:
    """Two shards of torch.save, in half precision, of a model whose configuration says nothing of dtypes."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)).to(torch.float16)
    state = list(model.state_dict().items())
    shards = {"pytorch_model-00001-of-00002.bin": state[:40], "pytorch_model-00002-of-00002.bin": state[40:]}
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(
            {key: value for key, value in config.items() if key != "dtype"}
            | {"architectures": ["LlamaForCausalLM"]}
        )
    )
    for name, shard in shards.items():
        torch.save(dict(shard), folder / name)
    weight_map = {key: name for name, shard in shards.items() for key, _ in shard}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def _minilm(folder: Path) -> None:
    model = MINILM.find()
    if model is None:
        pytest.skip(f"{MINILM.distribution} is not installed")
    for file in model.path.parent.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file)


KINDS: dict[str, tuple[Callable[[Path], None], type[PreTrainedModel]]] = {
    "llama": (_save_llama, LlamaForCausalLM),
    "bert": (_save_bert, BertForSequenceClassification),
    "t5": (_save_t5, T5ForConditionalGeneration),
    "mixtral": (_save_mixtral, MixtralForCausalLM),
    "bin": (_save_bin, LlamaForCausalLM),
    "minilm": (_minilm, BertModel),
}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the local directory of a kind of model."""

    @cache
    def save(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        KINDS[kind][0](folder)
        return folder

    return save


@pytest.fixture(scope="module")
def upload(s3_client: Any, shared_bucket: str) -> Callable[[Path, str], str]:
    """Store a directory's files, and return its URI."""

    def store(folder: Path, name: str) -> str:
        for file in folder.rglob("*"):
            if file.is_file():
                s3_client.upload_file(str(file), shared_bucket, f"hf/{name}/{file.relative_to(folder)}")
        return f"s3://{shared_bucket}/hf/{name}/"

    return store


@pytest.fixture(scope="module")
def stored(saved: Callable[[str], Path], upload: Callable[[Path, str], str]) -> Callable[[str], str]:
    """Return the URI of a kind of model on the real server."""
    return cache(lambda kind: upload(saved(kind), kind))


def _outputs(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(12).reshape(2, 6)
    arguments: dict[str, Any] = {"input_ids": ids}
    if isinstance(model, T5ForConditionalGeneration):
        arguments["decoder_input_ids"] = ids
    with torch.no_grad():
        found = model(**arguments)[0]
    assert isinstance(found, torch.Tensor)
    return found


def _settings(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}


def _assert_same(model: PreTrainedModel, oracle: PreTrainedModel) -> None:
    assert type(model) is type(oracle)
    for ours, theirs in (
        (dict(model.state_dict()), dict(oracle.state_dict())),
        (dict(model.named_parameters()), dict(oracle.named_parameters())),
        (dict(model.named_buffers()), dict(oracle.named_buffers())),
    ):
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert (ours[name].dtype, ours[name].device) == (tensor.dtype, tensor.device)
            assert ours[name].requires_grad == tensor.requires_grad
            assert torch.equal(ours[name], tensor), name
    assert _settings(model.config) == _settings(oracle.config)
    assert model.training is oracle.training is False
    assert model.can_generate() == oracle.can_generate()
    if model.can_generate():
        assert _settings(model.generation_config) == _settings(oracle.generation_config)
    assert torch.equal(_outputs(model), _outputs(oracle))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_the_one_of_a_local_directory(
    kind: str, aws_env: SeaweedFS, saved: Callable[[str], Path], stored: Callable[[str], str]
) -> None:
    model = from_pretrained(stored(kind))
    _assert_same(model, KINDS[kind][1].from_pretrained(saved(kind)))
    assert model.name_or_path == model.config.name_or_path == stored(kind)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16", "auto", torch.float32])
@pytest.mark.parametrize("kind", ["llama", "mixtral", "bin"])
def test_dtypes_are_as_transformers_makes_them(
    kind: str,
    dtype: Any,
    aws_env: SeaweedFS,
    saved: Callable[[str], Path],
    stored: Callable[[str], str],
) -> None:
    model = from_pretrained(stored(kind), dtype=dtype)
    _assert_same(model, KINDS[kind][1].from_pretrained(saved(kind), dtype=dtype))


def test_weights_that_are_kept_in_float32_are(
    aws_env: SeaweedFS, saved: Callable[[str], Path], stored: Callable[[str], str]
) -> None:
    model = from_pretrained(stored("t5"), dtype=torch.float16)
    _assert_same(model, T5ForConditionalGeneration.from_pretrained(saved("t5"), dtype=torch.float16))
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float16, torch.float32}


def test_tied_weights_are_tied(aws_env: SeaweedFS, stored: Callable[[str], str]) -> None:
    model = from_pretrained(stored("t5"))
    tied = [model.shared, model.encoder.embed_tokens, model.decoder.embed_tokens]
    assert len({module.weight.data_ptr() for module in tied}) == 1


def test_the_parameters_are_writable_and_train(aws_env: SeaweedFS, stored: Callable[[str], str]) -> None:
    model = from_pretrained(stored("bert"))
    ids = torch.arange(6)[None]
    model(input_ids=ids, labels=torch.tensor([1])).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, LlamaForCausalLM, AutoModel, LlamaModel])
def test_the_class_that_is_asked_for(
    auto: Any, aws_env: SeaweedFS, saved: Callable[[str], Path], stored: Callable[[str], str]
) -> None:
    _assert_same(from_pretrained(stored("llama"), auto), auto.from_pretrained(saved("llama")))


@pytest.mark.parametrize("auto", [AutoModelForSequenceClassification, LlamaForCausalLM])
def test_what_does_not_fit_is_as_transformers_says(
    auto: Any, aws_env: SeaweedFS, saved: Callable[[str], Path], stored: Callable[[str], str]
) -> None:
    kind = "llama" if auto is AutoModelForSequenceClassification else "mixtral"
    model, info = from_pretrained(stored(kind), auto, output_loading_info=True)
    oracle, told = auto.from_pretrained(saved(kind), output_loading_info=True)
    assert info == told
    assert info["missing_keys"]
    assert info["unexpected_keys"]
    assert type(model) is type(oracle)


def test_arguments_reach_configuration_and_model(
    aws_env: SeaweedFS, saved: Callable[[str], Path], stored: Callable[[str], str]
) -> None:
    arguments: dict[str, Any] = {
        "num_labels": 7,
        "ignore_mismatched_sizes": True,
        "attn_implementation": "eager",
    }
    ours, info = from_pretrained(stored("bert"), output_loading_info=True, **arguments)
    oracle, told = BertForSequenceClassification.from_pretrained(
        saved("bert"), output_loading_info=True, **arguments
    )
    assert ours.classifier.weight.shape == oracle.classifier.weight.shape == (7, 32)
    assert ours.config._attn_implementation == "eager"
    assert info == told


def test_a_configuration_that_is_given(aws_env: SeaweedFS, stored: Callable[[str], str]) -> None:
    config = LlamaConfig(**{**SIZES, "num_hidden_layers": 3}, **HEADS)
    model, info = from_pretrained(stored("llama"), LlamaForCausalLM, config=config, output_loading_info=True)
    assert len(model.model.layers) == 3
    assert not info["missing_keys"]
    assert all(int(name.split(".")[2]) >= 3 for name in info["unexpected_keys"])


def test_a_generation_configuration_that_is_given(aws_env: SeaweedFS, stored: Callable[[str], str]) -> None:
    model = from_pretrained(stored("llama"), generation_config=GenerationConfig(max_new_tokens=5))
    assert model.generation_config.max_new_tokens == 5


def test_a_device_that_is_named(
    aws_env: SeaweedFS, saved: Callable[[str], Path], stored: Callable[[str], str]
) -> None:
    oracle = LlamaForCausalLM.from_pretrained(saved("llama"))
    _assert_same(from_pretrained(stored("llama"), device="cpu"), oracle)
    _assert_same(from_pretrained(stored("llama"), device_map={"": "cpu"}), oracle)


def test_loading_one_by_one(
    aws_env: SeaweedFS,
    saved: Callable[[str], Path],
    stored: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    _assert_same(
        from_pretrained(stored("mixtral"), transfer=TransferConfig(memory_limit="20KB")),
        MixtralForCausalLM.from_pretrained(saved("mixtral")),
    )


# -- without weights ---------------------------------------------------------------------------------------


def test_a_tokenizer(aws_env: SeaweedFS, saved: Callable[[str], Path], stored: Callable[[str], str]) -> None:
    text = ["A tokenizer, from S3.", "Ünïcode 漢字"]
    tokenizer = from_pretrained(stored("minilm"), AutoTokenizer)
    oracle = AutoTokenizer.from_pretrained(saved("minilm"))
    assert type(tokenizer) is type(oracle)
    assert dict(tokenizer(text)) == dict(oracle(text))
    assert tokenizer.name_or_path == stored("minilm")


def test_a_feature_extractor(aws_env: SeaweedFS, tmp_path: Path, upload: Callable[[Path, str], str]) -> None:
    WhisperFeatureExtractor(feature_size=40).save_pretrained(tmp_path)
    extractor = from_pretrained(upload(tmp_path, "whisper"), AutoFeatureExtractor)
    assert isinstance(extractor, WhisperFeatureExtractor)
    assert extractor.to_dict() == AutoFeatureExtractor.from_pretrained(tmp_path).to_dict()


@pytest.mark.parametrize("class_", [AutoConfig, LlamaConfig, GenerationConfig])
def test_a_configuration(
    class_: Any, aws_env: SeaweedFS, saved: Callable[[str], Path], stored: Callable[[str], str]
) -> None:
    config = from_pretrained(stored("llama"), class_)
    assert _settings(config) == _settings(class_.from_pretrained(saved("llama")))
    assert str(getattr(config, "name_or_path", stored("llama"))) == stored("llama")


# -- where the bytes go ------------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which temporary ones are made, which has to be empty at the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_no_weights_touch_the_disk(temporary: Path, aws_env: SeaweedFS, stored: Callable[[str], str]) -> None:
    seen: list[dict[str, int]] = []

    class Watching(LlamaForCausalLM):  # type: ignore[misc]
        @classmethod
        def _finalize_model_loading(cls, *arguments: Any, **kwargs: Any) -> Any:
            seen.append({path.name: path.stat().st_size for path in temporary.rglob("*") if path.is_file()})
            return super()._finalize_model_loading(*arguments, **kwargs)

    from_pretrained(stored("llama"), Watching)
    assert [set(files) for files in seen] == [{"config.json", "generation_config.json"}]
    assert sum(seen[0].values()) < 10_000
    assert not list(temporary.iterdir())


def test_the_temporary_directory_goes_when_loading_fails(
    temporary: Path, aws_env: SeaweedFS, stored: Callable[[str], str]
) -> None:
    class Broken(LlamaForCausalLM):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            raise RuntimeError("no such model")

    with pytest.raises(RuntimeError, match="no such model"):
        from_pretrained(stored("llama"), Broken)
    assert not list(temporary.iterdir())


def test_a_tokenizer_gets_no_weights(
    temporary: Path, aws_env: SeaweedFS, stored: Callable[[str], str]
) -> None:
    class Looking:
        @classmethod
        def from_pretrained(cls, path: str, **_: Any) -> list[str]:
            return sorted(file.name for file in Path(path).iterdir())

    found = from_pretrained(stored("minilm"), Looking)
    assert "tokenizer.json" in found
    assert all(name.endswith((".json", ".txt")) for name in found)
    assert not list(temporary.iterdir())


def test_only_the_store_is_asked(
    aws_env: SeaweedFS, stored: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, port = stored("minilm"), int(aws_env.endpoint_url.rpartition(":")[2])
    asked = set()
    connect = socket.socket.connect

    def watched(self: socket.socket, address: Any) -> None:
        asked.add(address[1])
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    for class_ in (None, AutoTokenizer, AutoConfig):
        from_pretrained(uri, class_)
    assert asked <= {port}


PEAK = """
import gc, re, sys, transformers
from torchwick import TransferConfig
from torchwick.integrations.transformers import from_pretrained

def status(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

transformers.utils.logging.disable_progress_bar()
small, large = sys.argv[1:]
from_pretrained(small, dtype="bfloat16")
for dtype, limit in ("bfloat16", "64MB"), ("float32", "auto"):
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    model = from_pretrained(large, dtype=dtype, transfer=TransferConfig(memory_limit=limit))
    print(status("VmHWM") - before, sum(p.nbytes for p in model.parameters()) / 2**20)
    del model
    gc.collect()
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is Linux's to tell")
def test_peak_of_memory(aws_env: SeaweedFS, stored: Callable[[str], str], large: str) -> None:
    lines = run_python(PEAK, stored("llama"), large).splitlines()
    (peak_of_cast, size_of_cast), (peak, size) = ([float(word) for word in line.split()] for line in lines)
    assert size > 280
    assert peak < 1.1 * size
    assert peak_of_cast < 1.1 * size_of_cast + 64


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, upload: Callable[[Path, str], str]) -> str:
    """A model of 300 MB, whose weights no one but a clock looks at."""
    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=8000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=6, num_attention_heads=8
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu").save_pretrained(folder, max_shard_size="100MB")
    return upload(folder, "large")


def test_progress(aws_env: SeaweedFS, stored: Callable[[str], str]) -> None:
    told: list[Progress] = []
    model = from_pretrained(stored("llama"), progress=told.append)
    assert told[-1].done == told[-1].total == sum(tensor.nbytes for tensor in model.parameters())
    assert {one.uri for one in told} == {stored("llama")}


# -- what is wrong -----------------------------------------------------------------------------------------


@pytest.fixture
def faulty_model(
    faulty_s3: FaultyServer, saved: Callable[[str], Path]
) -> Callable[[str], tuple[FaultyServer, str]]:
    """Store a kind of model on the server that misbehaves."""

    def store(kind: str) -> tuple[FaultyServer, str]:
        for file in saved(kind).iterdir():
            faulty_s3.put(f"bucket/{kind}/{file.name}", file.read_bytes(), checksum="crc64nvme")
        return faulty_s3, f"s3://bucket/{kind}/"

    return store


def test_weights_that_cannot_be_read(
    faulty_model: Callable[[str], tuple[FaultyServer, str]], temporary: Path
) -> None:
    server, uri = faulty_model("minilm")
    server.on(S3Error(403, "AccessDenied"), where=lambda request: (request.range or (0,))[0] > 60_000_000)
    with pytest.raises(torchwick.AccessDeniedError, match=r"model\.safetensors"):
        from_pretrained(uri)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(("kind", "at"), [("minilm", 60_000_000), ("bert", 30_000), ("bert", 70_000)])
def test_weights_that_were_damaged(
    kind: str, at: int, faulty_model: Callable[[str], tuple[FaultyServer, str]], temporary: Path
) -> None:
    server, uri = faulty_model(kind)
    server.on(FlipByte(at), path=f"bucket/{kind}/model.safetensors")
    with pytest.raises(torchwick.IntegrityError, match=r"model\.safetensors: the bytes have the crc64nvme"):
        from_pretrained(uri)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_settings_that_cannot_be_read(
    name: str, faulty_model: Callable[[str], tuple[FaultyServer, str]], temporary: Path
) -> None:
    server, uri = faulty_model("llama")
    server.on(S3Error(403, "AccessDenied"), path=f"bucket/llama/{name}")
    with pytest.raises(torchwick.AccessDeniedError, match=name):
        from_pretrained(uri)
    with pytest.raises(torchwick.AccessDeniedError, match=name):
        from_pretrained(uri, AutoTokenizer)
    assert not list(temporary.iterdir())


def test_a_directory_that_may_not_be_listed(
    faulty_model: Callable[[str], tuple[FaultyServer, str]], saved: Callable[[str], Path]
) -> None:
    server, uri = faulty_model("llama")
    server.on(S3Error(403, "AccessDenied"), where=lambda request: "list-type=2" in request.query)
    _assert_same(from_pretrained(uri), LlamaForCausalLM.from_pretrained(saved("llama")))
    with pytest.raises(torchwick.AccessDeniedError):
        from_pretrained("s3://bucket/another/")


def test_a_web_server(
    faulty_model: Callable[[str], tuple[FaultyServer, str]], saved: Callable[[str], Path]
) -> None:
    server, _ = faulty_model("minilm")
    url = server.url("bucket/minilm/")
    _assert_same(from_pretrained(url), BertModel.from_pretrained(saved("minilm")))
    assert from_pretrained(url, AutoTokenizer)("S3")["input_ids"] == [101, 1055, 2509, 102]
    with pytest.raises(
        torchwick.FormatError, match=r"no config\.json is in the directory, which cannot be listed"
    ):
        from_pretrained(server.url("bucket/another/"))


def test_a_local_directory(saved: Callable[[str], Path]) -> None:
    _assert_same(from_pretrained(saved("t5")), T5ForConditionalGeneration.from_pretrained(saved("t5")))


def test_no_configuration(aws_env: SeaweedFS, tmp_path: Path, upload: Callable[[Path, str], str]) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "notes.md").write_bytes(b"")
    uri = upload(tmp_path, "nothing")
    with pytest.raises(
        torchwick.FormatError, match=r"no config\.json .*which has model\.safetensors, notes\.md"
    ):
        from_pretrained(uri)
    with pytest.raises(torchwick.FormatError, match="which is empty"):
        from_pretrained(f"{uri}deeper/")
    with pytest.raises(torchwick.ObjectNotFoundError, match="no such bucket"):
        from_pretrained("s3://not-a-bucket-of-ours/model/")
    with pytest.raises(torchwick.FormatError, match=f"{uri}: transformers makes no AutoTokenizer of it"):
        from_pretrained(uri, AutoTokenizer)


def test_no_weights(aws_env: SeaweedFS, tmp_path: Path, upload: Callable[[Path, str], str]) -> None:
    LlamaConfig(**SIZES, **HEADS, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(torchwick.FormatError, match=r"no model is in the directory, only config\.json"):
        from_pretrained(upload(tmp_path, "weightless"))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "makes no PreTrainedConfig of it"),
        ("[]", "makes no PreTrainedConfig of it"),
        ("{}", "should have a `model_type`"),
        ('{"model_type": "no-such"}', "model type `no-such`"),
        ('{"model_type": "llama", "architectures": 5}', "makes no"),
        ('{"model_type": "llama", "architectures": ["A"], "auto_map": 5}', "makes no"),
        ('{"model_type": "llama"}', "names no class of models"),
        (
            '{"model_type": "llama", "architectures": ["NoSuchModel"]}',
            "names 'NoSuchModel', no class of models",
        ),
        ('{"model_type": "llama", "architectures": ["pipeline"]}', "names 'pipeline', no class"),
        ('{"model_type": "llama", "architectures": ["LlamaConfig"]}', "names 'LlamaConfig', no class"),
        ('{"model_type": "llama", "architectures": ["__dict__"]}', "names '__dict__', no class"),
        (
            '{"model_type": "llama", "architectures": ["LlamaModel"], "transformers_weights": "../x.bin"}',
            "is no name of an object in this directory",
        ),
    ],
)
def test_a_configuration_that_is_wrong(config: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(torchwick.FormatError, match=f"(?i){re.escape(said)}") as caught:
        from_pretrained(tmp_path)
    assert "torchwick-" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["..\\evil.json", "\0.json", f"{'x' * 300}.json", "C:evil.json", "./evil.json", "a/../../evil.json"],
)
def test_a_name_that_leads_elsewhere(name: str, tmp_path: Path, temporary: Path) -> None:
    uri = parse(f"{tmp_path}/")
    listed = {name: ObjectInfo(uri, 3)}
    directory = Directory(uri, open_store(uri, S3Config(), 5), TransferConfig(), listed)
    with pytest.raises(torchwick.FormatError), directory.fetched(bool, ()):
        pass
    assert not list(temporary.iterdir())


def test_a_bucket_that_names_what_leads_elsewhere(
    faulty_model: Callable[[str], tuple[FaultyServer, str]], temporary: Path
) -> None:
    server, uri = faulty_model("minilm")
    server.put("bucket/minilm/..\\evil.json", b"{}")
    with pytest.raises(torchwick.FormatError, match="is no name of an object"):
        from_pretrained(uri, AutoTokenizer)
    from_pretrained(uri)  # which has no need of it


def test_settings_too_large_to_be_any(tmp_path: Path, temporary: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(257 << 20)
    with pytest.raises(torchwick.FormatError, match="more than any settings"):
        from_pretrained(tmp_path, AutoTokenizer)
    for number in range(9):
        with (tmp_path / f"{number}.json").open("wb") as file:
            file.truncate(200 << 20)
    with pytest.raises(torchwick.FormatError, match="its small files have"):
        from_pretrained(tmp_path, AutoTokenizer)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"device": "meta"}, "no weights are read for the device meta"),
        ({"device": "cpu", "device_map": "auto"}, "say the same"),
        ({"device": "auto"}, "'auto' is no device"),
        ({"device_map": {"model": "cpu", "lm_head": "disk"}}, "no weights are written to disk"),
        ({"subfolder": "a"}, "name the folder in the URI"),
        ({"state_dict": {}}, "the weights are those of the directory"),
        ({"revision": "main"}, "it is of the Hub"),
        ({"tp_plan": "auto"}, "one process loads all of it"),
        ({"model_class": AutoTokenizer, "dtype": "float16"}, "dtype and device are for models"),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: dict[str, Any], said: str, saved: Callable[[str], Path]
) -> None:
    with pytest.raises(ValueError, match=said):
        from_pretrained(saved("llama"), **arguments)


@pytest.mark.parametrize("arguments", [{"model_class": "LlamaModel"}, {"config": "llama"}])
def test_arguments_of_another_kind(arguments: dict[str, Any], saved: Callable[[str], Path]) -> None:
    with pytest.raises(TypeError, match="has to be a"):
        from_pretrained(saved("llama"), **arguments)


def test_an_address_of_one_object() -> None:
    with pytest.raises(torchwick.URIError, match="not of a directory"):
        from_pretrained("s3://bucket/model?versionId=1")


def test_a_vocabulary_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 5}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(torchwick.FormatError, match="makes no AutoTokenizer of it"):
        from_pretrained(tmp_path, AutoTokenizer)


def test_an_adapter_is_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    LlamaModel(LlamaConfig(**SIZES, **HEADS)).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    from_pretrained(tmp_path)
    assert "the adapter in it is not applied" in caplog.text


def test_without_transformers() -> None:
    script = (
        "import sys; sys.modules['transformers'] = None\n"
        "try:\n"
        "    import torchwick.integrations.transformers\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert "pip install 'torchwick[transformers]'" in run_python(script)


# -- code of the directory ---------------------------------------------------------------------------------

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaModel

Path({marker!r}).write_text("it ran")

class OddConfig(LlamaConfig):
    model_type = "odd"

class OddModel(LlamaModel):
    config_class = OddConfig
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A directory whose model is code of its own, and the file that is there once that ran."""
    marker, folder = tmp_path / "ran", tmp_path / "odd"
    LlamaModel(LlamaConfig(**SIZES, **HEADS)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    references = {"AutoConfig": "modeling_odd.OddConfig", "AutoModel": "modeling_odd.OddModel"}
    config |= {"model_type": "odd", "architectures": ["OddModel"], "auto_map": references}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {"tokenizer_class": "Odd", "auto_map": {"AutoTokenizer": ["modeling_odd.Odd", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "modeling_odd.py").write_text(CODE.format(marker=str(marker)))
    cache = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    monkeypatch.setattr("sys.path", [*sys.path])
    return folder, marker


@pytest.mark.parametrize("class_", [None, AutoModel, AutoConfig, AutoTokenizer])
@pytest.mark.parametrize("trusted", [{}, {"trust_remote_code": False}, {"trust_remote_code": None}])
def test_code_does_not_run(
    class_: Any, trusted: dict[str, Any], odd: tuple[Path, Path], faulty_s3: FaultyServer
) -> None:
    folder, marker = odd
    for file in folder.iterdir():
        faulty_s3.put(f"bucket/odd/{file.name}", file.read_bytes())
    with pytest.raises(torchwick.FormatError, match="trust_remote_code"):
        from_pretrained("s3://bucket/odd/", class_, **trusted)
    assert not marker.exists()
    assert not any(request.path.endswith(".py") for request in faulty_s3.requests)


@pytest.mark.parametrize("class_", [None, AutoModel])
def test_code_that_is_trusted_runs(
    class_: Any, odd: tuple[Path, Path], aws_env: SeaweedFS, upload: Callable[[Path, str], str]
) -> None:
    folder, marker = odd
    model = from_pretrained(upload(folder, "odd"), class_, trust_remote_code=True)
    assert type(model).__name__ == "OddModel"
    assert marker.read_text() == "it ran"
    oracle = LlamaModel.from_pretrained(folder, config=LlamaConfig(**SIZES, **HEADS))
    assert torch.equal(_outputs(model), _outputs(oracle))
