"""Fashion-MNIST with two fully connected networks: the whole experiment.

    python main-FMNIST.py

trains Tyler and Jackson, each without and with L2 regularization, at the published
setting; moves one hyperparameter of Tyler at a time; saves the four models into
models/ and the pictures into plots/; and ends with a table of their test results.
The experiment's authors report about 88 % test accuracy.

One training is a *trial*: a network, a setting, a seed. Everything shown is a view of
trials and no trial runs twice: the final Tyler models are the study's centre, and the
accuracy after 20 epochs is the 20th entry of a 50-epoch history. A trial has one
thread, and as many run side by side as there are cores.
"""

import argparse
import contextlib
import csv
import fcntl
import functools
import hashlib
import importlib
import importlib.metadata
import io
import itertools
import math
import multiprocessing
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import FIRST_COMPLETED, CancelledError, ProcessPoolExecutor
from concurrent.futures import BrokenExecutor, wait
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rich.progress
from rich.console import Console
from rich.table import Table

util = importlib.import_module("util-FMNIST")  # a hyphen keeps `import` from finding it

HERE = Path(__file__).resolve().parent
PUBLISHED = "about 0.88"
GRIDS = {  # the study's values; its epochs panel is read off the histories
    "dropout_rate": (0.1, 0.2, 0.3, 0.4, 0.5),
    "learning_rate": (0.0001, 0.0003, 0.001, 0.003, 0.01),
    "batch_size": (32, 64, 128, 256, 512),
}
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")
SCORES = ("loss", "accuracy", "precision", "recall", "f1")


class Trial(NamedTuple):
    """One training."""

    architecture: str  # "tyler" or "jackson"
    use_regularizer: bool
    dropout_rate: float
    learning_rate: float
    batch_size: int  # images
    epochs: int
    seed: int


# ----------------------------------------------------------------- which trials there are


def list_final(options):
    """The four published models, {file name: trial}, with the first seed."""
    trials = {}
    for architecture in ("tyler", "jackson"):
        for flag in (False, True):
            setting = [getattr(options, name) for name in Trial._fields[2:]]
            trial = Trial(architecture, flag, *setting)
            trials[f"model_{architecture}_{int(flag)}"] = trial
    return trials


def list_study(final, num_images):
    """{hyperparameter: {use_regularizer: trials}}: Tyler, one value moved at a time."""
    study = {}
    for name, values in GRIDS.items():
        for trial in (final["model_tyler_0"], final["model_tyler_1"]):
            values = sorted({*values, getattr(trial, name)})
            trials = [trial._replace(**{name: value}) for value in values]
            trials = [trial for trial in trials if trial.batch_size <= num_images]
            study.setdefault(name, {})[trial.use_regularizer] = trials
    return study


def list_grid(final, grid):
    """{architecture: trials}, without L2, at every combination of the grid's values."""
    settings = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    centres = [final["model_tyler_0"], final["model_jackson_0"]] if grid else []
    return {c.architecture: [c._replace(**s) for s in settings] for c in centres}


def seeds_of(trial, repeats):
    return [trial._replace(seed=trial.seed + i) for i in range(repeats)]


def cost(trial):
    """How long a trial takes, roughly, in any unit: smaller batches mean more steps."""
    per_image = {"tyler": 1, "jackson": 4}[trial.architecture]
    return trial.epochs * (per_image + 64 / trial.batch_size)


# ------------------------------------------------------------------------- one trial

ONE_AT_A_TIME = threading.Lock()  # a cluster's worker may run trials in several threads


def train_trial(trial, train, validation):
    """Train one network on one thread and return its .h5 file as bytes.

    `train` and `validation` are (images, labels) as `util.load_data` gives them. The
    file holds the compiled model, the state of its optimizer and, in the group
    "history", an array for each of METRICS with a value per epoch. Training ends early
    if a loss is no longer a finite number: the trial has diverged.
    """
    with ONE_AT_A_TIME:
        model = build_model(trial)
    train_epoch, validate = epoch_functions(model, trial.batch_size, train, validation)
    shuffle = np.random.default_rng(trial.seed)
    history = {metric: [] for metric in METRICS}
    for _ in range(trial.epochs):
        order = shuffle.permutation(len(train[0])).astype("int32")
        for metric, value in zip(METRICS, (*train_epoch(order), *validate())):
            history[metric].append(float(value))
        if not math.isfinite(history["loss"][-1] + history["val_loss"][-1]):
            break
    return to_hdf5(model, history)


def build_model(trial):
    """The trial's network, compiled; the same seed gives the same first weights."""
    networks = util.import_quietly("model-FMNIST")
    import keras
    import tensorflow as tf

    if tf.config.threading.get_intra_op_parallelism_threads() != 1:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(trial.seed)
    build = getattr(networks, f"build_{trial.architecture}")
    model = build(10, trial.use_regularizer, trial.dropout_rate)
    optimizer = keras.optimizers.Adam(trial.learning_rate)
    model.compile(optimizer, loss="categorical_crossentropy", metrics=["accuracy"])
    optimizer.build(model.trainable_variables)
    return model


def epoch_functions(model, batch_size, train, validation):
    """Two functions, each a whole pass over the data as one TensorFlow graph.

    `train_epoch(order)` takes the numbers of the images in the order to train on,
    int32 of shape (n,); `validate()` takes nothing. Both return (loss, accuracy), means
    over the images; the loss is cross-entropy and penalty, as Keras counts it. The
    arithmetic is that of `model.fit`; only the way there is shorter.
    """
    import keras
    import tensorflow as tf

    x_train, y_train = map(tf.constant, train)
    x_val, y_val = map(tf.constant, validation)
    weights = model.trainable_variables
    cross_entropy = keras.losses.CategoricalCrossentropy()

    def forward(images, labels, training):
        """The batch's loss, and how many images it gets right."""
        images = tf.cast(images, tf.float32) / 255
        probabilities = model(images, training=training)
        right = tf.equal(tf.argmax(probabilities, 1), tf.argmax(labels, 1))
        loss = cross_entropy(labels, probabilities) + sum(model.losses)
        return loss, tf.reduce_sum(tf.cast(right, tf.float32))

    @tf.function
    def train_epoch(order):
        loss_sum = hits = 0.0
        for start in tf.range(0, len(x_train), batch_size):
            batch = order[start : start + batch_size]
            images, labels = tf.gather(x_train, batch), tf.gather(y_train, batch)
            with tf.GradientTape() as tape:
                loss, right = forward(images, labels, training=True)
            apply_adam(model.optimizer, tape.gradient(loss, weights), weights)
            loss_sum += loss * tf.cast(len(batch), tf.float32)
            hits += right
        return loss_sum / len(x_train), hits / len(x_train)

    @tf.function
    def validate():
        loss_sum = hits = 0.0
        for start in tf.range(0, len(x_val), 1000):
            images, labels = x_val[start : start + 1000], y_val[start : start + 1000]
            loss, right = forward(images, labels, training=False)
            loss_sum += loss * tf.cast(len(images), tf.float32)
            hits += right
        return loss_sum / len(x_val), hits / len(x_val)

    return train_epoch, validate


def apply_adam(optimizer, gradients, weights):
    """`optimizer.apply`, with Adam's dozen operations per weight fused into one.

    It works on the Keras optimizer's own variables, which come in this order: steps
    taken, learning rate, then the two moments of each weight.
    """
    import tensorflow as tf

    steps, learning_rate, *moments = [v.value for v in optimizer.variables]
    steps.assign_add(1)
    t = tf.cast(steps, tf.float32)
    for i, (gradient, weight) in enumerate(zip(gradients, weights)):
        tf.raw_ops.ResourceApplyAdam(
            var=weight.value.handle,
            m=moments[2 * i].handle,
            v=moments[2 * i + 1].handle,
            beta1_power=optimizer.beta_1**t,
            beta2_power=optimizer.beta_2**t,
            lr=learning_rate,
            beta1=optimizer.beta_1,
            beta2=optimizer.beta_2,
            epsilon=optimizer.epsilon,
            grad=gradient,
        )


def to_hdf5(model, history):
    """The model's .h5 file, its history inside, as bytes."""
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.h5")
        model.save(path)
        with h5py.File(path, "a") as file:
            for metric, values in history.items():
                file[f"history/{metric}"] = values
        return path.read_bytes()
