"""The two networks are those of the published experiment, layer by layer."""

import numpy as np
import pytest

TYLER = [
    ("flatten", "Flatten"),
    ("hidden_1", "Dense", 128, "relu"),
    ("hidden_2", "Dense", 128, "relu"),
    ("hidden_3", "Dense", 128, "relu"),
    ("hidden_4", "Dense", 128, "relu"),
    ("hidden_5", "Dense", 128, "relu"),
    ("dropout", "Dropout", 0.3),
    ("class_probabilities", "Dense", 10, "softmax"),
]
JACKSON = [
    ("flatten", "Flatten"),
    ("hidden_1", "Dense", 512, "relu"),
    ("dropout_1", "Dropout", 0.3),
    ("hidden_2", "Dense", 256, "relu"),
    ("dropout_2", "Dropout", 0.3),
    ("hidden_3", "Dense", 128, "relu"),
    ("dropout_3", "Dropout", 0.3),
    ("hidden_4", "Dense", 64, "relu"),
    ("dropout_4", "Dropout", 0.3),
    ("class_probabilities", "Dense", 10, "softmax"),
]
NETWORKS = {"tyler": (TYLER, 167_818), "jackson": (JACKSON, 575_050)}


@pytest.fixture(params=NETWORKS)
def name(request):
    return request.param


@pytest.fixture
def build(model, name):
    return getattr(model, f"build_{name}")


def outline(network):
    """(name, kind, and what the layer was made with) of every layer."""
    rows = []
    for layer in network.layers:
        config = layer.get_config()
        settings = [config[k] for k in ("units", "activation", "rate") if k in config]
        rows.append((layer.name, type(layer).__name__, *settings))
    return rows


@pytest.mark.parametrize("use_regularizer", [False, True])
def test_network_is_the_published_one(build, name, use_regularizer):
    network = build(use_regularizer=use_regularizer)
    assert (outline(network), network.count_params()) == NETWORKS[name]
    assert network.input_shape == (None, 28, 28)
    assert (network.name, network.compiled) == (name, False)


def test_arguments_set_the_classes_and_every_dropout_rate(build):
    *hidden, output = outline(build(3, dropout_rate=0.1))
    assert output == ("class_probabilities", "Dense", 3, "softmax")
    assert {row[2] for row in hidden if row[1] == "Dropout"} == {0.1}


def test_penalty_is_on_the_kernels_of_the_hidden_layers_alone(build, name):
    network = build(use_regularizer=True)
    network.set_weights([np.ones_like(w) for w in network.get_weights()])
    network(np.zeros((1, 28, 28)))  # a penalty on what a layer puts out would count
    hidden_weights = {"tyler": 165_888, "jackson": 573_440}[name]
    assert float(sum(network.losses)) == pytest.approx(0.001 * hidden_weights)
    assert build().losses == []
