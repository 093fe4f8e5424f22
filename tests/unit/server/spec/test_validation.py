from __future__ import annotations

import math
from typing import Any

import pytest

from lockstep.server.spec import checkpoint_rules
from lockstep.server.spec.validation import (
    CHOICE_RULES,
    CROSS_RULES,
    FIELD_RULES,
    resolve,
)
from lockstep.v1.job_spec_pb2 import JobSpec
from tests.support.specs import DIGITS, LENET, SITE, SYNTHETIC, spec_of, violations_of

HUGE = 2**31 - 1
NO_FOLDERS = (
    "checkpoints",
    "./c",
    "~/c",
    "..",
    "/a\nb",
    "/" + "x" * 4096,
    "nosuch://bucket/x",
    "S3://bucket/x",
    "s3:/bucket",
    "://x",
    "s3://",
    "file://relative/x",
    "file:///",
    "s3://bucket/\u2028",
    "memory://x",
    "http://host/x",
    "https://host/x",
    "ftp://host/x",
    "zip://x",
    "reference://x",
    "github://a:b@/x",
    "dir://x",
    "git://x",
    "simplecache::s3://bucket/x",
    "s3://bucket/x::/y",
)
NOT_POSITIVE = (0, -1, -HUGE)
NO_NUMBERS = (math.nan, math.inf, -math.inf)

BAD_VALUES: dict[tuple[str, str], tuple[Any, ...]] = {
    ("digits", "name"): ("A", "a_b", "-a", "a-", "a b", "\u00e4", "a\n", "a" * 64, "\0", "a/b", "..", "\u202e"),
    ("digits", "labels"): (
        {"": "x"},
        {"a b": "x"},
        {"\u00e4": "x"},
        {"k" * 64: "x"},
        {"k": "v" * 256},
        {"k": "a\0b"},
        {"k": "a\nb"},
        {f"k{i}": "" for i in range(65)},
    ),
    ("digits", "model.mlp.hidden_units"): ([0], [-1], [256, 65_537], [HUGE], [1] * 65),
    ("digits", "model.mlp.activation"): ("RELU", "gelu", "\0"),
    ("digits", "model.mlp.dropout"): ([1.0], [-0.1], *([x] for x in NO_NUMBERS), [1e300], [0.1] * 65),
    ("lenet", "model.lenet.activation"): ("gelu",),
    ("lenet", "model.lenet.pooling"): ("mean",),
    ("synthetic", "data.synthetic_regression.w"): ([], [1e300], *([1.0, x] for x in NO_NUMBERS), [1.0] * 10_001),
    ("synthetic", "data.synthetic_regression.b"): (-1e30, *NO_NUMBERS),
    ("synthetic", "data.synthetic_regression.noise"): (-0.1, 1e30, *NO_NUMBERS),
    ("synthetic", "data.synthetic_regression.train_size"): (*NOT_POSITIVE, 10_000_001, HUGE),
    ("synthetic", "data.synthetic_regression.validation_size"): (*NOT_POSITIVE, 10_000_001, HUGE),
    ("digits", "data.builtin.name"): ("", "mnist", "Digits", "../etc/passwd"),
    ("digits", "data.builtin.validation_fraction"): (0.0, 1.0, -0.1, 1.1, 1e300, *NO_NUMBERS),
    ("lenet", "data.idx.root"): ("", "a\0b", "x" * 4097),
    ("digits", "optimizer.sgd.learning_rate"): (0.0, -0.1, 1000.1, 1e300, *NO_NUMBERS),
    ("digits", "optimizer.sgd.momentum"): (-0.1, 1.0, 1e300, *NO_NUMBERS),
    ("digits", "optimizer.sgd.weight_decay"): (-0.1, 1000.1, 1e300, *NO_NUMBERS),
    ("adamw", "optimizer.adamw.learning_rate"): (0.0, -0.1, 1000.1, *NO_NUMBERS),
    ("adamw", "optimizer.adamw.beta1"): (-0.1, 1.0, *NO_NUMBERS),
    ("adamw", "optimizer.adamw.beta2"): (-0.1, 1.0, *NO_NUMBERS),
    ("adamw", "optimizer.adamw.epsilon"): (0.0, -1e-8, 1.1, *NO_NUMBERS),
    ("adamw", "optimizer.adamw.weight_decay"): (-0.1, 1000.1, *NO_NUMBERS),
    ("digits", "training.max_steps"): (*NOT_POSITIVE, 1_000_000_001, 2**63 - 1),
    ("digits", "training.max_epochs"): (*NOT_POSITIVE, 1_000_001, HUGE),
    ("digits", "training.batch_size"): (*NOT_POSITIVE, 1_000_001, HUGE),
    ("digits", "training.gradient_clip_norm"): (0.0, -1.0, *NO_NUMBERS),
    ("digits", "training.log_every_steps"): (*NOT_POSITIVE, 1_000_000_001, HUGE),
    ("digits", "training.evaluate_every_steps"): (*NOT_POSITIVE, 1_000_000_001, HUGE),
    ("digits", "training.audit"): ("START", "off", "never", "\0"),
    ("digits", "training.precision"): ("FP32", "fp16", "\0"),
    ("digits", "training.memory_format"): ("nhwc", "channels-last", "\0"),
    ("digits", "resources.workers"): (*NOT_POSITIVE, 1025, HUGE),
    ("digits", "resources.shards"): (*NOT_POSITIVE, 1025, HUGE),
    ("digits", "resources.cpus_per_worker"): (0.0, -1.0, 1024.1, 1e-9, 1e300, *NO_NUMBERS),
    ("digits", "resources.gpus_per_worker"): (-1, 2, HUGE),
    ("digits", "resources.gpu_share"): (0.0, 0.009, 1.01, -1.0, *NO_NUMBERS),
    ("digits", "resources.min_workers"): (*NOT_POSITIVE, 1025, HUGE),
    ("digits", "recovery.max_restarts"): (-1, 1001, HUGE),
    ("digits", "recovery.checkpoint_every_steps"): (*NOT_POSITIVE, 1_000_000_001, HUGE),
    ("digits", "recovery.keep_checkpoints"): (*NOT_POSITIVE, 1, 1001, HUGE),
    ("digits", "recovery.checkpoint_uri"): NO_FOLDERS,
    ("digits", "recovery.hang_timeout_s"): (0.0, 0.99, -1.0, 86_401.0, 1e300, *NO_NUMBERS),
    ("digits", "init_from.job_id"): ("x" * 65, "job\n"),
    ("digits", "init_from.step"): (-1, -(2**63)),
    ("digits", "init_from.uri"): NO_FOLDERS,
}
ADAMW = DIGITS | {"optimizer": {"adamw": {}}}
BASES = {"digits": DIGITS, "adamw": ADAMW, "lenet": LENET, "synthetic": SYNTHETIC}


@pytest.mark.parametrize(
    ("base", "path", "value"), [(base, path, value) for (base, path), values in BAD_VALUES.items() for value in values]
)
def test_a_bad_value_is_named_with_what_is_allowed_and_how_to_mend_it(base: str, path: str, value: Any) -> None:
    violations = violations_of(spec_of(BASES[base], **{path.replace(".", "__"): value}))
    rule = next(rule for rule in FIELD_RULES if rule.path == path)
    named = [violation for violation in violations if violation.field.split("[")[0] == path]
    assert named, violations
    assert named[0].message.startswith(path)
    assert f"allowed: {rule.limits}; {rule.hint}" in named[0].message
    assert named[0].message.isascii()
    assert named[0].message.isprintable()


def test_every_rule_of_a_field_has_bad_values() -> None:
    with_bad_values = {path for _, path in BAD_VALUES}
    # A seed is a uint32, and every uint32 is a seed; likewise what is true or false.
    assert with_bad_values == {
        rule.path for rule in FIELD_RULES if not rule.path.endswith(".seed") and rule.type != "boolean"
    }


BAD_COMBINATIONS: dict[str, tuple[int, JobSpec, str]] = {
    "more workers than shards": (
        0,
        spec_of(DIGITS, resources__workers=4, resources__shards=2),
        "resources.workers is 4; allowed: at most resources.shards, and resources.shards is 2;",
    ),
    "batch smaller than shards": (
        1,
        spec_of(DIGITS, training__batch_size=3, resources__shards=4),
        "training.batch_size is 3; allowed: at least resources.shards, and resources.shards is 4;",
    ),
    "epochs and steps": (
        2,
        spec_of(DIGITS, training__max_epochs=1, training__max_steps=1),
        "training.max_epochs is 1 and training.max_steps is 1; allowed: one of the two; remove one of them",
    ),
    "tf32 on CPUs": (
        5,
        spec_of(DIGITS, training__precision="tf32"),
        'training.precision is "tf32" and resources.gpus_per_worker is 0 (the default);',
    ),
    "a share of no GPU": (
        6,
        spec_of(DIGITS, resources__gpu_share=0.5),
        "resources.gpu_share is 0.5 and resources.gpus_per_worker is 0 (the default); allowed: only with GPUs",
    ),
    "nesterov without momentum": (
        3,
        spec_of(DIGITS, optimizer__sgd__nesterov=True),
        "optimizer.sgd.nesterov is true and optimizer.sgd.momentum is 0 (the default);",
    ),
    "dropout for another number of layers": (
        4,
        spec_of(DIGITS, model__mlp__dropout=[0.1, 0.2]),
        "model.mlp.dropout has 2 items; allowed: none, or one per hidden layer, and model.mlp.hidden_units has 1;",
    ),
    "a classifier on synthetic numbers": (
        10,
        spec_of(SYNTHETIC, model={"softmax_regression": {}}),
        "model is softmax_regression and data is synthetic_regression, which offers numbers to predict",
    ),
    "a regression on classes": (
        11,
        spec_of(DIGITS, model={"linear_regression": {}}),
        "model is linear_regression and data is builtin digits, which offers classes",
    ),
    "a regression on images in files": (
        12,
        spec_of(LENET, model={"linear_regression": {}}),
        "model is linear_regression and data is idx, which offers classes",
    ),
    "a convolution on a table": (
        13,
        spec_of(DIGITS, model={"lenet": {}}, data__builtin__name="iris"),
        "model is lenet and data is builtin iris, which holds no images;",
    ),
    "a convolution on tiny images": (
        14,
        spec_of(DIGITS, model={"lenet": {}}),
        "with images of 8 by 8 pixels; allowed with lenet: at least 12 by 12;",
    ),
    "a batch larger than the synthetic data": (
        15,
        spec_of(SYNTHETIC, data__synthetic_regression__train_size=100, training__batch_size=101),
        "training.batch_size is 101; allowed: at most 100, the number of training examples;",
    ),
    "a batch larger than the training part": (
        16,
        spec_of(DIGITS, training__batch_size=1439),
        "training.batch_size is 1439; allowed: at most 1,438, the number of training examples;",
    ),
    "more synthetic numbers than memory holds": (
        17,
        spec_of(
            SYNTHETIC, data__synthetic_regression__w=[1.0] * 200, data__synthetic_regression__train_size=10_000_000
        ),
        "makes 2,000,200,000 numbers, with the validation examples and the 200 features; allowed: at most",
    ),
    "fewer workers than the fewest": (
        7,
        spec_of(DIGITS, resources__workers=2, resources__min_workers=3),
        "resources.min_workers is 3; allowed: at most resources.workers, and resources.workers is 2;",
    ),
    "weights from nowhere": (
        8,
        spec_of(DIGITS, init_from={}),
        "init_from has neither job_id nor uri; allowed: one of the two;",
    ),
    "weights from two places": (
        8,
        spec_of(DIGITS, init_from__job_id="job-1", init_from__uri="/c"),
        'init_from.job_id is "job-1" and init_from.uri is "/c"; allowed: one of the two;',
    ),
    "a step of a folder": (
        9,
        spec_of(DIGITS, init_from__uri="/c", init_from__step=7),
        "init_from.step is 7; allowed: only with init_from.job_id; remove it;",
    ),
    "more weights than memory holds": (
        18,
        spec_of(DIGITS, model__mlp__hidden_units=[65_536, 65_536]),
        "makes 4,299,816,960 weights, with 64 inputs; allowed: at most 1,000,000,000;",
    ),
    "more points than the store shall hold": (
        28,
        spec_of(DIGITS, training={"max_steps": 1_000_000_000, "log_every_steps": 1}),
        "training.log_every_steps is 1, which makes up to 6,045,454,546 metric points with those of the validations; "
        "allowed on this server: at most 100,000,000 (--points-per-job);",
    ),
    "more weights at the inputs than memory holds": (
        19,
        spec_of(
            SYNTHETIC, model={"mlp": {"hidden_units": [65_536, 6_000]}}, data__synthetic_regression__w=[1.0] * 9_999
        ),
        "makes 1,048,516,464 weights, with 9,999 inputs; allowed: at most 1,000,000,000;",
    ),
    "more points of validations than the store shall hold": (
        29,
        spec_of(SYNTHETIC, training={"max_epochs": 1_000_000, "batch_size": 1, "evaluate_every_steps": 1}),
        "training.log_every_steps is 50 (the default), which makes up to 2,120,000,000 metric points",
    ),
}


@pytest.mark.parametrize("name", BAD_COMBINATIONS)
def test_fields_that_do_not_fit_together_are_named(name: str) -> None:
    number, spec, message = BAD_COMBINATIONS[name]
    [violation] = violations_of(spec)
    assert message in violation.message
    assert violation.field == CROSS_RULES[number].path
    assert violation.message.endswith(CROSS_RULES[number].hint)


def test_every_rule_over_several_fields_is_broken_by_some_test() -> None:
    on_files = {20, 21}  # The tests on folders, in test_dataset_rules.py.
    on_stores = {22, 23, 24, 25, 26}  # In test_checkpoint_rules.py.
    on_sizes = {27, 30, 31}  # In test_size_rules.py.
    elsewhere = on_files | on_stores | on_sizes
    assert {number for number, _, _ in BAD_COMBINATIONS.values()} | elsewhere == set(range(len(CROSS_RULES)))


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({"linear_regression": {}}, {"builtin": {"name": "iris"}}, "offers classes"),
        ({"softmax_regression": {}}, {"builtin": {"name": "diabetes"}}, "offers numbers"),
        ({"lenet": {}}, {"builtin": {"name": "diabetes"}}, "offers numbers"),
        ({"lenet": {}}, {"synthetic_regression": {"w": [1]}}, "offers numbers"),
    ],
)
def test_a_model_for_another_task_is_refused(model: dict[str, Any], data: dict[str, Any], message: str) -> None:
    [violation] = violations_of(spec_of(DIGITS | {"model": model, "data": data}))
    assert message in violation.message


def test_a_missing_kind_is_answered_with_those_there_are() -> None:
    messages = {violation.field: violation.message for violation in violations_of(JobSpec())}
    assert messages["model"] == "model: missing; set one of linear_regression, softmax_regression, mlp, lenet"
    assert messages["data"] == "data: missing; set one of synthetic_regression, builtin, idx"
    assert messages["optimizer"] == "optimizer: missing; set one of sgd, adamw"
    assert {rule.path for rule in CHOICE_RULES} == set(messages)


def test_all_violations_come_at_once() -> None:
    spec = spec_of(
        DIGITS, training__batch_size=0, optimizer__sgd__learning_rate=math.nan, resources__workers=-1, name="A B"
    )
    assert {violation.field for violation in violations_of(spec)} == {
        "training.batch_size",
        "optimizer.sgd.learning_rate",
        "resources.workers",
        "name",
    }


def test_the_message_reads_as_a_sentence() -> None:
    [violation] = violations_of(spec_of(DIGITS, training__batch_size=0))
    assert (
        violation.message
        == "training.batch_size is 0; allowed: 1 to 1,000,000; set it to how many examples one step takes"
    )


def test_a_long_list_of_bad_items_gives_a_short_answer() -> None:
    violations = violations_of(spec_of(SYNTHETIC, data__synthetic_regression__w=[math.nan] * 10_000))
    assert [violation.field for violation in violations] == [f"data.synthetic_regression.w[{i}]" for i in range(3)]
    assert "(9,997 more are wrong)" in violations[-1].message


@pytest.mark.parametrize(
    "folder", ["/", "/a", "/a b/\u00e4", "/run::1/a://b", "s3://bucket/x", "gs://b", "file:///a", "local:///a/b"]
)
def test_folders_that_can_be_reached_from_everywhere_are_taken_as_they_are(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_rules, "is_installed", lambda package: True)
    spec = resolve(spec_of(DIGITS, recovery__checkpoint_uri=folder, init_from__uri=folder), SITE)
    assert (spec.recovery.checkpoint_uri, spec.init_from.uri) == (folder, folder)


def test_what_was_submitted_is_left_as_it_was() -> None:
    spec = spec_of(DIGITS)
    resolve(spec, SITE)
    assert spec == spec_of(DIGITS)


@pytest.mark.parametrize("breaker", ["\n", "\x85", "\u2028", "\u2029", "\x7f"])
def test_a_label_that_breaks_a_line_is_refused(breaker: str) -> None:
    [violation] = violations_of(spec_of(DIGITS, labels={"team": f"a{breaker}b"}))
    assert violation.message.startswith('labels["team"] is ')
