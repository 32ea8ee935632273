"""The two networks are those of the published experiment, layer by layer."""

import numpy as np
import pytest

TYLER = (  # layers, with what they were made with
    "flatten Flatten, hidden_1 Dense 128 relu, hidden_2 Dense 128 relu, "
    "hidden_3 Dense 128 relu, hidden_4 Dense 128 relu, hidden_5 Dense 128 relu, "
    "dropout Dropout 0.3, class_probabilities Dense 10 softmax"
)
JACKSON = (
    "flatten Flatten, hidden_1 Dense 512 relu, dropout_1 Dropout 0.3, "
    "hidden_2 Dense 256 relu, dropout_2 Dropout 0.3, hidden_3 Dense 128 relu, "
    "dropout_3 Dropout 0.3, hidden_4 Dense 64 relu, dropout_4 Dropout 0.3, "
    "class_probabilities Dense 10 softmax"
)
WEIGHTS = {"tyler": 167_818, "jackson": 575_050}
LAYERS = pytest.mark.parametrize("name, expected", [*zip(WEIGHTS, (TYLER, JACKSON))])


def outline(network):
    rows = []
    for layer in network.layers:
        config = layer.get_config()
        made_with = [config[k] for k in ("units", "activation", "rate") if k in config]
        rows.append(" ".join(map(str, (layer.name, type(layer).__name__, *made_with))))
    return ", ".join(rows)


@LAYERS
def test_network_is_the_published_one(model, name, expected):
    for use_regularizer in (False, True):
        network = model.NETWORKS[name](use_regularizer=use_regularizer)
        assert (outline(network), network.count_params()) == (expected, WEIGHTS[name])
        assert network.input_shape == (None, 28, 28)
        assert (network.name, network.compiled) == (name, False)
    assert [*model.NETWORKS] == [*WEIGHTS]


@LAYERS
def test_arguments_set_the_classes_and_every_dropout_rate(model, name, expected):
    expected = expected.replace("Dropout 0.3", "Dropout 0.1")
    network = getattr(model, f"build_{name}")(3, dropout_rate=0.1)
    assert outline(network) == expected.replace("Dense 10", "Dense 3")


@pytest.mark.parametrize("name, size", [("tyler", 165_888), ("jackson", 573_440)])
def test_penalty_is_on_the_kernels_of_the_hidden_layers_alone(model, name, size):
    network = model.NETWORKS[name](use_regularizer=True)
    network.set_weights([np.ones_like(w) for w in network.get_weights()])
    network(np.zeros((1, 28, 28)))  # a penalty on what a layer puts out would count
    assert float(sum(network.losses)) == pytest.approx(0.001 * size)
    assert model.NETWORKS[name]().losses == []
