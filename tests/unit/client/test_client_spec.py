from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from google.protobuf import json_format, timestamp_pb2

from lockstep.client import InvalidSpec, JobSpec, load_spec
from lockstep.client._yaml import dump, parse
from lockstep.client.spec import message_to_dict
from lockstep.v1.job_pb2 import Job

WHOLE = """
name: lenet-mnist
model:     {lenet: {pooling: max}}
data:      {idx: {root: ../shared/data/mnist}}
optimizer: {sgd: {learning_rate: 1e-1, momentum: 0.9}}
training:  {max_steps: 1000, batch_size: 256, seed: 7}
resources: {workers: 2, min_workers: 1, shards: 4, cpus_per_worker: 0.5, gpus_per_worker: 0}
recovery:  {max_restarts: 3, checkpoint_every_steps: 200, keep_checkpoints: 4, hang_timeout_s: 5,
            checkpoint_uri: s3://bucket/runs}
init_from: {job_id: job-1, step: 200}
labels:    {team: vision, a.b/c: "7"}
"""


def load_text(tmp_path: Path, text: str, *overrides: str, name: str = "job.yaml") -> JobSpec:
    (tmp_path / name).write_text(text)
    return load_spec(tmp_path / name, overrides)


def refusal_of(tmp_path: Path, text: str, *overrides: str, name: str = "job.yaml") -> str:
    with pytest.raises(InvalidSpec) as caught:
        load_text(tmp_path, text, *overrides, name=name)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_yaml_json_and_a_mapping_are_the_same_spec(tmp_path: Path) -> None:
    spec = load_text(tmp_path, WHOLE)
    assert spec.optimizer.sgd.learning_rate == 0.1
    assert dict(spec.labels) == {"team": "vision", "a.b/c": "7"}
    as_json = json.dumps(parse(WHOLE))
    assert load_text(tmp_path, as_json, name="job.json") == spec
    assert load_text(tmp_path, as_json) == spec
    assert load_spec(parse(WHOLE)) == spec
    assert load_spec(spec) is spec


def test_a_spec_can_be_printed_as_yaml_and_loaded_again(tmp_path: Path) -> None:
    spec = load_text(tmp_path, WHOLE, "name=007", "labels.on=yes", "labels.e=1e3")
    assert load_text(tmp_path, dump(message_to_dict(spec))) == spec


def test_every_whole_number_is_printed_as_a_number_wherever_it_stands() -> None:
    job = Job(
        job_id="j-1",
        create_time=timestamp_pb2.Timestamp(seconds=1),
        spec={"model": {"mlp": {"hidden_units": [7, 3]}}, "labels": {"a": "7"}, "training": {"max_steps": 12}},
        progress={"step": 2**60},
        result={"final_metrics": {"loss": 2.0}},
    )
    form = message_to_dict(job)
    assert form["spec"]["model"] == {"mlp": {"hidden_units": [7, 3]}}
    assert (form["spec"]["training"], form["spec"]["labels"]) == ({"max_steps": 12}, {"a": "7"})
    assert form["result"] == {"final_metrics": {"loss": 2.0}}
    assert (form["progress"], form["create_time"]) == ({"step": 2**60}, "1970-01-01T00:00:01Z")
    assert json_format.ParseDict(form, Job()) == job


def test_standard_input_is_a_spec_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"name: piped")))
    assert load_spec("-").name == "piped"


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("1E5", 1e5), (".5", 0.5), ("5.", 5.0), ("-0.0", -0.0), ("1_000", 1000.0)]
)
def test_numbers_of_yaml_are_numbers(tmp_path: Path, text: str, value: float) -> None:
    spec = load_text(tmp_path, f"optimizer: {{sgd: {{learning_rate: {text}}}}}")
    assert repr(spec.optimizer.sgd.learning_rate) == repr(value)


@pytest.mark.parametrize(("text", "shown"), [(".nan", "nan"), (".inf", "inf"), ("-.inf", "-inf"), ('"NaN"', "nan")])
def test_numbers_that_are_not_finite_are_left_for_the_server_to_refuse(tmp_path: Path, text: str, shown: str) -> None:
    spec = load_text(tmp_path, f"optimizer: {{sgd: {{learning_rate: {text}}}}}")
    assert str(spec.optimizer.sgd.learning_rate) == shown


def test_whole_numbers_may_be_written_with_an_exponent_or_as_the_json_form_of_64_bits(tmp_path: Path) -> None:
    spec = load_text(tmp_path, "training: {batch_size: 1e3, max_steps: '9007199254740993'}")
    assert (spec.training.batch_size, spec.training.max_steps) == (1000, 9007199254740993)


def test_an_empty_section_is_not_set(tmp_path: Path) -> None:
    assert load_text(tmp_path, "name: x\ntraining:\nresources: {}") == load_spec({"name": "x", "resources": {}})


ALLOWED = "name, model, data, optimizer, training, resources, recovery, labels, init_from"
MODELS = "linear_regression, softmax_regression, mlp, lenet"
TRAINING = ", ".join(field.name for field in JobSpec.DESCRIPTOR.fields_by_name["training"].message_type.fields)  # type: ignore[union-attr]
BAD_FIELDS = [
    (
        "training: {batchsize: 3}",
        f"training.batchsize: unknown key; did you mean batch_size? allowed: {TRAINING}",
    ),
    (
        "training: {batchSize: 3}",
        f"training.batchSize: unknown key; did you mean batch_size? allowed: {TRAINING}",
    ),
    ("trainig: {}", f"trainig: unknown key; did you mean training? allowed: {ALLOWED}"),
    (
        "learning_rate: 0.1",
        "learning_rate: unknown key; did you mean optimizer.sgd.learning_rate or optimizer.adamw.learning_rate? "
        f"allowed: {ALLOWED}",
    ),
    ("model: {resnet: {}}", f"model.resnet: unknown key; allowed: {MODELS}"),
    ("optimizer: {adam: {}}", "optimizer.adam: unknown key; did you mean adamw? allowed: sgd, adamw"),
    ("gpu_count: 1", f"gpu_count: unknown key; allowed: {ALLOWED}"),
    ("1: 1", f"1: unknown key; allowed: {ALLOWED}"),
    (
        "model: {linear_regression: {bias: 1}}",
        "model.linear_regression.bias: unknown key; model.linear_regression has nothing to set",
    ),
    ("model: {mlp: {}, lenet: {}}", f"model: set exactly one of {MODELS}, not both mlp and lenet"),
    (
        "model: {mlp: {}, lenet: {}, linear_regression: {}}",
        f"model: set exactly one of {MODELS}, not mlp, lenet and linear_regression",
    ),
    ("model: {lenet: }", "model.lenet: has no value; for its defaults write lenet: {}"),
    ("model: lenet", 'model: must be a mapping, got "lenet"; write model: {lenet: {}}'),
    ("model: [lenet]", "model: must be a mapping, got a list"),
    ("model: {mlp: {hidden_units: 64}}", "model.mlp.hidden_units: must be a list, got 64; write [64]"),
    ("model: {mlp: {hidden_units: [64, x]}}", 'model.mlp.hidden_units[1]: must be a whole number, got "x"'),
    ("model: {mlp: {hidden_units: [null]}}", "model.mlp.hidden_units[0]: must be a whole number, got null"),
    ("training: {batch_size: many}", 'training.batch_size: must be a whole number, got "many"'),
    ("training: {batch_size: '3'}", 'training.batch_size: must be a whole number, got "3"'),
    (
        "training: {batch_size: 1.5}",
        "training.batch_size: must be a whole number, got 1.5; set it to how many examples one step takes",
    ),
    (
        "resources: {gpus_per_worker: 0.25}",
        "resources.gpus_per_worker: must be a whole number, got 0.25; set it to 1 for a GPU per worker, or to 0 for "
        "none; for a part of one, set resources.gpu_share too",
    ),
    (
        "training: {batch_size: .inf}",
        "training.batch_size: must be a whole number, got .inf; set it to how many examples one step takes",
    ),
    ("training: {batch_size: true}", "training.batch_size: must be a whole number, got true"),
    ("training: {batch_size: [3]}", "training.batch_size: must be a whole number, got a list"),
    ("training: {batch_size: 99999999999}", "training.batch_size: must be at most 2147483647, got 99999999999"),
    ("training: {seed: -1}", "training.seed: must be at least 0, got -1"),
    (
        "training: {batch_size: 010}",
        "training.batch_size: 010 is not the same number in every version of YAML; write 10",
    ),
    ("training: {seed: yes}", "training.seed: must be a whole number, got yes"),
    ("optimizer: {sgd: {nesterov: yes}}", "optimizer.sgd.nesterov: must be true or false, got yes"),
    ("optimizer: {sgd: {nesterov: 1}}", "optimizer.sgd.nesterov: must be true or false, got 1"),
    ("optimizer: {sgd: {learning_rate: fast}}", 'optimizer.sgd.learning_rate: must be a number, got "fast"'),
    ("optimizer: {sgd: {learning_rate: off}}", "optimizer.sgd.learning_rate: must be a number, got off"),
    (
        f"optimizer: {{sgd: {{learning_rate: {'9' * 350}}}}}",
        "optimizer.sgd.learning_rate: must be a number below 1.8e308, got a number of 1163 bits",
    ),
    ("name: 007", 'name: 007 is not text to every version of YAML; write it in quotes: "007"'),
    ("name: yes", 'name: yes is not text to every version of YAML; write it in quotes: "yes"'),
    ("name: true", "name: must be text, got true; write it in quotes"),
    ("name: 7", 'name: must be text, got 7; write it in quotes: "7"'),
    ("name: [x]", "name: must be text, got a list"),
    ("labels: {build: 42}", 'labels.build: must be text, got 42; write it in quotes: "42"'),
    ("labels: {1: x}", 'labels.1: the key must be text; write "1" in quotes'),
    ("labels: {on: x}", 'labels.on: the key must be text; write "on" in quotes'),
    ("labels: [x]", "labels: must be a mapping, got a list"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FIELDS, ids=[text[:40] for text, _ in BAD_FIELDS])
def test_a_value_that_does_not_fit_is_named_with_the_hint(tmp_path: Path, text: str, message: str) -> None:
    assert refusal_of(tmp_path, text) == message


BAD_FILES = [
    ("a: [1\nb", "job.yaml: not valid YAML: line 2, column 2: expected ',' or ']', but got '<stream end>'"),
    ("name: x\nname: y", "job.yaml: not valid YAML: line 2, column 1: key 'name' twice"),
    ("a: b\n---\nc: d", "job.yaml: not valid YAML: line 2, column 1: a second document begins; a spec is one"),
    ("a:\n\tb: 1", "job.yaml: not valid YAML: line 2, column 1: a tab; indent with spaces"),
    ("? [a]\n: b", "job.yaml: not valid YAML: line 1, column 3: a key must be a single value"),
    ("", "job.yaml: is empty; a spec has at least model, data and optimizer"),
    ("- 1", "job.yaml: a spec must be a mapping of keys to values, not a list"),
    ("lenet", "job.yaml: a spec must be a mapping of keys to values, not a single value"),
    ("[" * 50_000, "job.yaml: not valid YAML: nested too deeply"),
    (f"name: {'9' * 5000}", "job.yaml: not valid YAML: a number has 5000 digits"),
    (
        "!!python/object/apply:os.system [ls]",
        "job.yaml: not valid YAML: line 1, column 1: a spec has no tags",
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES, ids=[text[:20] for text, _ in BAD_FILES])
def test_a_file_that_is_no_spec_is_named_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    assert refusal_of(tmp_path, text) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": 1,}', "job.json: not valid JSON: line 1, column "),
        ('{"name": "x", "name": "y"}', "job.json: not valid JSON: key 'name' twice"),
        ('{"name": "\\ud800"}', "name: is not valid Unicode text"),
        ("[" * 200_000, "job.json: not valid JSON: nested too deeply"),
    ],
    ids=["syntax", "duplicate", "surrogate", "deep"],
)
def test_a_json_file_that_is_no_spec_is_named_likewise(tmp_path: Path, text: str, message: str) -> None:
    assert refusal_of(tmp_path, text, name="job.json").startswith(message)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    messages = []
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(InvalidSpec) as caught:
            load_spec(path)
        messages.append(str(caught.value))
    assert messages == [
        f"{tmp_path}/missing.yaml: there is no such file",
        f"{tmp_path}: is a folder, not a file",
        f"{tmp_path}/latin.yaml: is not UTF-8 text",
    ]


def test_what_is_no_spec_at_all_is_refused_in_words() -> None:
    with pytest.raises(TypeError, match="a spec is a JobSpec, a mapping or the path of a file, not int"):
        load_spec(3)  # type: ignore[arg-type]


def test_all_misfits_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec) as caught:
        load_text(tmp_path, "nam: x\ntraining: {batchsize: 1, lr: 2}")
    assert [violation.field for violation in caught.value.violations] == ["nam", "training.batchsize", "training.lr"]
    assert str(caught.value).startswith(
        "the spec has 3 errors:\n  nam: unknown key; did you mean name? allowed: name, "
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["training.seed=8"], {"training": {"seed": 8, "batch_size": 2}, "model": {"mlp": {"activation": "relu"}}}),
        (["model.lenet={}"], {"training": {"batch_size": 2}, "model": {"lenet": {}}}),
        (["model.lenet.pooling=max"], {"training": {"batch_size": 2}, "model": {"lenet": {"pooling": "max"}}}),
        (
            ["model.mlp.hidden_units=[8, 4]", "training.batch_size=null"],
            {"training": {}, "model": {"mlp": {"hidden_units": [8, 4], "activation": "relu"}}},
        ),
        (["training={seed: 1}", "model={lenet: {}}"], {"training": {"seed": 1}, "model": {"lenet": {}}}),
        (
            ["labels.a.b/c=7", "labels.x=a=b", "name=007"],
            {
                "training": {"batch_size": 2},
                "model": {"mlp": {"activation": "relu"}},
                "labels": {"a.b/c": "7", "x": "a=b"},
                "name": "007",
            },
        ),
        (
            ["optimizer.sgd.learning_rate=1e-3", "name='quoted'"],
            {
                "training": {"batch_size": 2},
                "model": {"mlp": {"activation": "relu"}},
                "optimizer": {"sgd": {"learning_rate": 1e-3}},
                "name": "quoted",
            },
        ),
    ],
)
def test_a_field_can_be_set_over_the_files(overrides: list[str], expected: dict[str, object]) -> None:
    base = {"model": {"mlp": {"activation": "relu"}}, "training": {"batch_size": 2}}
    assert load_spec(base, overrides) == load_spec(expected)
    assert load_spec(load_spec(base), overrides) == load_spec(expected)
    assert base == {"model": {"mlp": {"activation": "relu"}}, "training": {"batch_size": 2}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.seed", "training.seed: must have the form path=value, such as training.seed=7"),
        ("=7", "=7: must have the form path=value, such as training.seed=7"),
        ("training..seed=7", "training..seed=7: must have the form path=value, such as training.seed=7"),
        ("trainig.seed=7", "trainig: unknown key; did you mean training?"),
        ("training.sed=7", "training.sed: unknown key; did you mean seed?"),
        ("training.seed=x", 'training.seed: must be a whole number, got "x"'),
        ("name.x=1", "name.x: cannot be set: name is not a mapping"),
        ("model=[", "model: the value '[' is not valid YAML: line 1, column 2: "),
        ("training.seed=", "training.seed: has no value in --set; is a shell variable empty?"),
        ("training= ", "training: has no value in --set; is a shell variable empty?"),
        (
            "labels.v=",
            "labels.v: has no value in --set; is a shell variable empty? for an empty text write labels.v='\"\"'",
        ),
        ("training.seed=7 #8", "training.seed: the value '7 #8' holds a comment; leave it out"),
    ],
)
def test_a_field_that_cannot_be_set_is_named(override: str, message: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        load_spec({"name": "x"}, [override])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("text", ["#5", "~", "null", "v1 #2", "|", "a: b", "@main", "[wip", "3.10", "no", " x ", "a=b"])
def test_a_text_is_set_as_it_was_given(text: str) -> None:
    spec = load_spec({"name": "x"}, [f"name={text}", f"labels.v={text}"])
    assert (spec.name, spec.labels["v"]) == (text, text)


def test_a_number_can_be_taken_back_to_its_default() -> None:
    assert not load_spec({"training": {"max_steps": 5}}, ["training.max_steps=null"]).training.HasField("max_steps")


@pytest.mark.parametrize("text", ["3.10", "12e4567", "1_000", "1e3", "0.10", "-7.50"])
@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_the_hint_for_a_number_that_should_be_text_keeps_how_it_was_written(
    tmp_path: Path, text: str, suffix: str
) -> None:
    if suffix == "json" and "_" in text:
        return
    path = tmp_path / f"job.{suffix}"
    path.write_text(f'{{"labels": {{"v": {text}}}}}')
    with pytest.raises(InvalidSpec, match=re.escape(f'must be text, got {text}; write it in quotes: "{text}"')):
        load_spec(path)
