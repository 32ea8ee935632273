"""The two networks are those of the published experiment, layer by layer."""

import inspect

import keras
import numpy as np
import pytest

TYLER = [
    ("Flatten", "flatten"),
    ("Dense", "hidden_1", 128, "relu"),
    ("Dense", "hidden_2", 128, "relu"),
    ("Dense", "hidden_3", 128, "relu"),
    ("Dense", "hidden_4", 128, "relu"),
    ("Dense", "hidden_5", 128, "relu"),
    ("Dropout", "dropout", 0.3),
    ("Dense", "class_probabilities", 10, "softmax"),
]
JACKSON = [
    ("Flatten", "flatten"),
    ("Dense", "hidden_1", 512, "relu"),
    ("Dropout", "dropout_1", 0.3),
    ("Dense", "hidden_2", 256, "relu"),
    ("Dropout", "dropout_2", 0.3),
    ("Dense", "hidden_3", 128, "relu"),
    ("Dropout", "dropout_3", 0.3),
    ("Dense", "hidden_4", 64, "relu"),
    ("Dropout", "dropout_4", 0.3),
    ("Dense", "class_probabilities", 10, "softmax"),
]
EACH = pytest.mark.parametrize("name", ["tyler", "jackson"])
EITHER_WAY = pytest.mark.parametrize("use_regularizer", [False, True])


@pytest.fixture
def build(model, name):
    return getattr(model, f"build_{name}")


def outline(network):
    """(kind, name, and what the layer was made with) of every layer."""
    rows = []
    for layer in network.layers:
        config = layer.get_config()
        settings = [config[k] for k in ("units", "activation", "rate") if k in config]
        rows.append((type(layer).__name__, layer.name, *settings))
    return rows


def dense_layers(network):
    return [x for x in network.layers if isinstance(x, keras.layers.Dense)]


@EITHER_WAY
@pytest.mark.parametrize(
    "name, layers, weights", [("tyler", TYLER, 167_818), ("jackson", JACKSON, 575_050)]
)
def test_network_is_the_published_one(build, name, layers, weights, use_regularizer):
    network = build(use_regularizer=use_regularizer)
    assert outline(network) == layers
    assert network.count_params() == weights
    assert network.name == name


@EACH
def test_arguments_and_their_defaults(build):
    parameters = inspect.signature(build).parameters.values()
    assert [(p.name, p.default) for p in parameters] == [
        ("num_classes", 10),
        ("use_regularizer", False),
        ("dropout_rate", 0.3),
    ]


@EACH
def test_network_maps_images_to_classes_and_is_uncompiled(build):
    network = build()
    assert network.input_shape == (None, 28, 28)
    assert network.output_shape == (None, 10)
    assert not network.compiled


@EACH
def test_regularizer_is_on_the_kernel_of_every_hidden_layer_only(build):
    network = build(use_regularizer=True)
    *hidden, output = dense_layers(network)
    for layer in hidden:
        assert layer.kernel_regularizer.get_config() == {"l2": pytest.approx(0.001)}
    assert output.kernel_regularizer is None
    for layer in (*hidden, output):
        assert layer.bias_regularizer is layer.activity_regularizer is None
    squares = sum(np.sum(np.square(layer.kernel)) for layer in hidden)
    assert float(sum(network.losses)) == pytest.approx(0.001 * squares, rel=1e-5)


@EACH
def test_nothing_is_regularized_unless_asked_for(build):
    network = build()
    for layer in dense_layers(network):
        assert layer.kernel_regularizer is layer.bias_regularizer is None
        assert layer.activity_regularizer is None
    assert network.losses == []


@EACH
@pytest.mark.parametrize("rate", [0, 0.1, 0.5])
def test_dropout_rate_reaches_every_dropout_layer(build, rate):
    rates = [row[2] for row in outline(build(dropout_rate=rate)) if row[0] == "Dropout"]
    assert rates and set(rates) == {rate}


@EACH
@EITHER_WAY
def test_num_classes_is_the_width_of_the_output_and_nothing_else(
    build, use_regularizer
):
    *others, output = outline(build(3, use_regularizer))
    assert output == ("Dense", "class_probabilities", 3, "softmax")
    assert others == outline(build())[:-1]


@EACH
def test_names_do_not_depend_on_what_was_built_before(model, build):
    def names():
        network = build(use_regularizer=True)
        layers = [layer.name for layer in network.layers]
        tensors = [tensor.name for tensor in (*network.inputs, *network.outputs)]
        return network.name, layers, [w.path for w in network.weights], tensors[0]

    first = names()
    for other in (model.build_tyler, model.build_jackson):
        other(5)
    keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten()])
    assert names() == first


@EACH
def test_same_seed_gives_same_weights_whatever_was_built_before(model, build):
    def weights():
        keras.utils.set_random_seed(7)
        return build().get_weights()

    first = weights()
    model.build_jackson()
    for before, after in zip(first, weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@EACH
def test_output_rows_are_probabilities(build):
    images = np.random.default_rng(0).random((20, 28, 28), dtype="float32")
    rows = np.array(build()(images))
    assert rows.shape == (20, 10)
    assert (rows >= 0).all()
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-5)
    assert np.ptp(rows, axis=0).max() > 0  # the image makes a difference


@EACH
def test_dropout_works_in_training_only(build):
    network, images = build(dropout_rate=0.5), np.ones((1, 28, 28), "float32")
    tested = [np.array(network(images, training=False)) for _ in range(2)]
    trained = [np.array(network(images, training=True)) for _ in range(2)]
    np.testing.assert_array_equal(*tested)
    assert not np.array_equal(*trained)
