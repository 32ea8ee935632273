"""The two fully connected networks of the experiment, Tyler and Jackson.

Both take a 28 x 28 grayscale image with pixels in [0, 1] and return one probability
per class. They come back uncompiled: loss, optimizer and data are main-FMNIST.py's.
Every layer has a fixed name, so that a saved file looks the same whatever was built
before it in the same process.
"""

from keras import Input, Sequential
from keras.layers import Dense, Dropout, Flatten
from keras.regularizers import L2

L2_FACTOR = 0.001  # the published strength of the penalty


def build_tyler(num_classes=10, use_regularizer=False, dropout_rate=0.3):
    """Five equal hidden layers and one dropout: 167,818 weights for 10 classes.

    With `use_regularizer`, the kernel of every hidden Dense layer (not its bias, not
    the output layer) adds 0.001 times the sum of its squares to the loss. Input shape
    (batch, 28, 28), output shape (batch, num_classes).
    """
    regularizer = L2(L2_FACTOR) if use_regularizer else None
    return Sequential(
        [
            Input((28, 28), name="image"),
            Flatten(name="flatten"),
            Dense(128, "relu", kernel_regularizer=regularizer, name="hidden_1"),
            Dense(128, "relu", kernel_regularizer=regularizer, name="hidden_2"),
            Dense(128, "relu", kernel_regularizer=regularizer, name="hidden_3"),
            Dense(128, "relu", kernel_regularizer=regularizer, name="hidden_4"),
            Dense(128, "relu", kernel_regularizer=regularizer, name="hidden_5"),
            Dropout(dropout_rate, name="dropout"),
            Dense(num_classes, "softmax", name="class_probabilities"),
        ],
        name="tyler",
    )


def build_jackson(num_classes=10, use_regularizer=False, dropout_rate=0.3):
    """A funnel of four hidden layers, a dropout after each: 575,050 weights.

    Arguments and shapes as in `build_tyler`.
    """
    regularizer = L2(L2_FACTOR) if use_regularizer else None
    return Sequential(
        [
            Input((28, 28), name="image"),
            Flatten(name="flatten"),
            Dense(512, "relu", kernel_regularizer=regularizer, name="hidden_1"),
            Dropout(dropout_rate, name="dropout_1"),
            Dense(256, "relu", kernel_regularizer=regularizer, name="hidden_2"),
            Dropout(dropout_rate, name="dropout_2"),
            Dense(128, "relu", kernel_regularizer=regularizer, name="hidden_3"),
            Dropout(dropout_rate, name="dropout_3"),
            Dense(64, "relu", kernel_regularizer=regularizer, name="hidden_4"),
            Dropout(dropout_rate, name="dropout_4"),
            Dense(num_classes, "softmax", name="class_probabilities"),
        ],
        name="jackson",
    )
