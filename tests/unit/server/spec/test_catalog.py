from __future__ import annotations

from lockstep.server.spec import catalog


def test_every_model_and_data_set_is_listed_by_name() -> None:
    assert [entry.name for entry in catalog.models()] == ["lenet", "linear_regression", "mlp", "softmax_regression"]
    assert [entry.name for entry in catalog.datasets()] == ["builtin", "idx", "synthetic_regression"]


def test_every_optimizer_is_listed_by_name() -> None:
    assert [entry.name for entry in catalog.optimizers()] == ["adamw", "sgd"]
    parameters = {parameter.name: parameter for parameter in catalog.optimizers()[1].parameters}
    assert list(parameters) == ["learning_rate", "momentum", "nesterov", "weight_decay"]
    assert parameters["learning_rate"].required
    assert (parameters["nesterov"].type, parameters["nesterov"].default_json) == ("boolean", "false")
    assert parameters["momentum"].limits == "0 or greater, less than 1"


def test_parameters_come_from_the_rules() -> None:
    mlp = next(entry for entry in catalog.models() if entry.name == "mlp")
    hidden_units = mlp.parameters[0]
    assert (hidden_units.name, hidden_units.type, hidden_units.default_json) == (
        "hidden_units",
        "list of integers",
        "[256]",
    )
    assert hidden_units.limits == "1 to 64 layers of 1 to 65,536 units"
    assert list(mlp.tasks) == ["classification", "regression"]


def test_what_must_be_given_has_no_default() -> None:
    parameters = {p.name: p for entry in catalog.datasets() for p in entry.parameters if entry.name == "idx"}
    assert parameters["root"].required
    assert parameters["root"].default_json == ""


def test_every_entry_is_described() -> None:
    for entry in (*catalog.models(), *catalog.datasets()):
        assert entry.description
        assert entry.tasks
        assert all(parameter.limits and parameter.type for parameter in entry.parameters)
    assert all(entry.description and not entry.tasks for entry in catalog.optimizers())
