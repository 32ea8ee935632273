"""Fashion-MNIST with two fully connected networks: the whole experiment.

    python main-FMNIST.py

trains Tyler and Jackson, without and with L2 regularization; moves one hyperparameter
of Tyler at a time; saves the four models, tables and plots; and ends with a table of
test results. A finished training is kept, so the same command again trains nothing.

Published at https://github.com/apalapramanik/Classifying-Fashion-MNIST
"""

import argparse
import functools
import importlib
import itertools
import math
import sys
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # Python does so, but not with PYTHONSAFEPATH
util = importlib.import_module("util-FMNIST")  # `import` cannot spell the hyphen

# The published values: those of the final models, and those that the study tries.
# Epochs are not in STUDY: the history of 50 epochs has the accuracies after 10 to 40.
# A seed takes 28 trainings: the 4 final models, and Tyler without and with L2 for each
# of the 12 values of STUDY that are not in FINAL.
FINAL = {"dropout_rate": 0.3, "learning_rate": 0.001, "batch_size": 128, "epochs": 50}
STUDY = {
    "dropout_rate": (0.1, 0.2, 0.3, 0.4, 0.5),
    "learning_rate": (0.0001, 0.0003, 0.001, 0.003, 0.01),
    "batch_size": (32, 64, 128, 256, 512),
}
STUDIED = ("tyler",)  # the networks whose hyperparameters are moved
PUBLISHED = {  # test accuracies after 50 epochs, to be printed below ours
    "Tyler": 0.8882, "Tyler + L2": 0.8786, "Jackson": 0.8915, "Jackson + L2": 0.8716,
}  # fmt: skip


# -------------------------------------------------------------------- what is trained
class Setting(NamedTuple):
    """A network and its hyperparameters. A trial is a setting and a seed."""

    architecture: str  # the network's name in NETWORKS of model-FMNIST.py
    use_regularizer: bool
    dropout_rate: float
    learning_rate: float
    batch_size: int  # images
    epochs: int

    @property
    def label(self):
        return self.architecture.title() + (" + L2" if self.use_regularizer else "")

    @property
    def model_name(self):  # model_tyler_0 without L2, model_tyler_1 with it
        return f"model_{self.architecture}_{self.use_regularizer:d}"


def final_settings(options):
    """The settings of the saved models: FINAL, unless options say otherwise."""
    values = {name: getattr(options, name) for name in FINAL}
    return [
        Setting(architecture, use_regularizer, **values)
        for architecture in import_networks().NETWORKS
        for use_regularizer in (False, True)
    ]


def study_settings(final):
    """Return {(hyperparameter, value): setting}. Each setting is the final one with one
    value replaced, for example ("batch_size", 64)."""
    moved = {}
    for name, published in STUDY.items():
        # The final value may be one of the user's that is not published.
        for value in sorted({*published, getattr(final, name)}):
            moved[name, value] = final._replace(**{name: value})
    return moved


@functools.cache
def import_networks():
    """Import model-FMNIST.py. It imports Keras, which takes seconds, so --help does not
    call this."""
    util.import_tensorflow()
    module = importlib.import_module("model-FMNIST")
    util.source_code(module)  # reads it now: you may edit the file during the run
    return module


def build_network(setting):
    """The setting's network, untrained. Its builder gets use_regularizer and
    dropout_rate. A field that you add to Setting goes to the builder, too."""
    of_training = ("architecture", "learning_rate", "batch_size", "epochs")
    arguments = {k: v for k, v in setting._asdict().items() if k not in of_training}
    return import_networks().NETWORKS[setting.architecture](**arguments)


# --------------------------------------------------------------------------- training
def train_trial(setting, seed, train, validation):
    """Train one network and return its .h5 file as bytes.

    `train` and `validation` are (images, labels) as `util.load_data` gives them. If a
    weight or a value of the history becomes NaN or infinite, training stops: this epoch
    and all later ones are NaN in the history.
    """
    tf, keras = util.import_tensorflow()
    keras.utils.clear_session()  # frees the last trial's graphs and names ("adam")
    keras.utils.set_random_seed(seed)  # decides the first weights and the dropout
    random = np.random.default_rng(seed)  # decides the order of the images
    model = build_network(setting)
    model.compile(
        util.adam(setting.learning_rate),  # Keras's Adam, in fewer operations
        loss="categorical_crossentropy",
        metrics=["accuracy"],
    )
    x_train, y_train = tf.constant(train[0]), tf.constant(train[1])
    x_val, y_val = tf.constant(validation[0]), tf.constant(validation[1])
    in_order = np.arange(len(x_val))
    util.make_variables(model, x_train[:1], y_train[:1])
    train_epoch = epoch_function(model, model.train_step, setting.batch_size)
    # The batch size of the validation changes nothing but its time.
    validate = epoch_function(model, model.test_step, batch_size=1000)
    history = []  # {metric: value} of each epoch
    for _ in range(setting.epochs):
        values = train_epoch(x_train, y_train, random.permutation(len(x_train)))
        for name, value in validate(x_val, y_val, in_order).items():
            values[f"val_{name}"] = value
        values = {name: float(value) for name, value in values.items()}
        # A NaN in the weights may not show in the loss: TensorFlow's ReLU makes it 0.
        numbers = [*values.values(), *model.get_weights()]
        if not all(np.isfinite(number).all() for number in numbers):
            diverged = dict.fromkeys(values, math.nan)
            history += [diverged] * (setting.epochs - len(history))
            break
        history.append(values)
    description = {**setting._asdict(), "seed": seed, "training_images": len(x_train)}
    return util.model_file(model, history, description)


def epoch_function(model, step, batch_size):
    """Return the function run_epoch(images, labels, order) -> {metric: value}.

    `step` is Keras's model.train_step or model.test_step, so this does what an epoch of
    `fit` or `evaluate` does. But `fit` returns to Python after every batch; this runs
    the whole epoch as one TensorFlow graph. `order` lists the indices of the images.
    """
    tf, _ = util.import_tensorflow()

    # The first call runs this Python code once and records a graph, in which `for` is a
    # loop. Later calls run the graph alone.
    @tf.function
    def run_epoch(images, labels, order):
        model.reset_metrics()
        for start in tf.range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            x = tf.cast(tf.gather(images, batch), tf.float32) / 255
            step((x, tf.gather(labels, batch)))
        return model.get_metrics_result()

    return run_epoch


def run_trial(setting, seed, options):
    """Train one trial in a worker process. Return (its key, its .h5 file as bytes). The
    key must equal the main process's: it stands for the code, data and libraries."""
    train, validation, _ = util.load_data(options.data_dir, options.quick)
    key = trial_key(setting, seed, options)
    return key, train_trial(setting, seed, train, validation)


# ------------------------------------------------------------------------- the stages
def run_experiment(options):
    """Train what is missing, test, write the models, tables and plots, and report."""
    train, validation, test = util.load_data(options.data_dir, options.quick)
    finals = final_settings(options)
    check_networks(finals, train, validation)
    studied = [s for s in finals if s.architecture in STUDIED and not options.no_sweep]
    settings = [*finals]
    for final in studied:
        settings += study_settings(final).values()
    settings = list(dict.fromkeys(settings))  # each once, the final ones first
    seeds = range(options.seed, options.seed + options.repeats)
    trials = itertools.product(settings, seeds)
    # A key names the file of a trial. If the file is there, the trial is not run again.
    keys = {trial: trial_key(*trial, options) for trial in trials}
    files = util.train_missing(keys, run_trial, options)  # {(setting, seed): path}

    histories = {}  # {setting: {metric: array of shape (seeds, epochs)}}
    for setting in settings:
        paths = [files[setting, seed] for seed in seeds]
        histories[setting] = util.read_histories(paths)
    study = study_rows(studied, histories)
    print("Testing the models, writing tables and plots")
    results = {}  # {final setting: [(scores, probabilities) for each seed]}
    for setting in finals:
        models = [util.load_classifier(files[setting, seed]) for seed in seeds]
        results[setting] = [test_model(model, test) for model in models]
        content = files[setting, seeds[0]].read_bytes()
        util.write_whole(options.folder / f"models/{setting.model_name}.h5", content)
    util.write_tables(options.folder / "models", histories, results, study, seeds)
    util.draw(options, histories, results, study, test)
    util.report_study(study)
    util.report_results(results)
    print("Published accuracies after 50 epochs:")
    for label, accuracy in PUBLISHED.items():
        print(f"{label:12} {accuracy}")
    if options.quick:
        print("A quick run cannot be compared with these.")
    print(f"The files are in models/ and plots/ of {options.folder}")


def check_networks(settings, train, validation):
    """Build, save and load each network before any training, so that a fault in one
    shows at once."""
    unknown = {*STUDIED} - {setting.architecture for setting in settings}
    if unknown:
        raise util.InputError(f"STUDIED names {unknown}, which NETWORKS lacks")
    for setting in settings:
        # With 0 epochs, this builds and saves the network, and trains nothing.
        content = train_trial(setting._replace(epochs=0), 0, train, validation)
        util.check_file(setting.label, content)


def study_rows(studied, histories):
    """The rows of study.csv. `studied` are final settings. Differences are from these,
    seed by seed: a seed means the same first weights and the same order of images."""
    rows = []
    for final in studied:
        by_epoch = histories[final]["val_accuracy"]  # of shape (seeds, epochs)
        reference = by_epoch[:, -1]
        accuracies = {}  # {(hyperparameter, value): array of shape (seeds,)}
        for point, setting in study_settings(final).items():
            accuracies[point] = histories[setting]["val_accuracy"][:, -1]
        for fifth in (1, 2, 3, 4, 5):  # of 50 epochs: 10, 20, 30, 40, 50
            epoch = math.ceil(final.epochs * fifth / 5)
            accuracies["epochs", epoch] = by_epoch[:, epoch - 1]
        for (hyperparameter, value), by_seed in accuracies.items():
            # over the seeds: mean, standard deviation, standard error of the mean
            mean, deviation, _ = util.mean_and_spread(by_seed)
            difference, _, error = util.mean_and_spread(by_seed - reference)
            row = {
                "architecture": final.architecture,
                "use_regularizer": final.use_regularizer,
                "hyperparameter": hyperparameter,
                "value": value,
                "val_accuracy": mean,
                "standard_deviation": deviation,
                "difference": difference,
                "standard_error": error,
                "seeds": len(by_seed),
            }
            rows.append(row)
    return rows


def test_model(model, test):
    """Test a network: ({score: value}, class probabilities of shape (n, 10)).

    The loss is the cross-entropy and the L2 penalty, as Keras counts it. Precision,
    recall and F1 are means over the classes. All scores are NaN if a weight is.
    """
    from sklearn.metrics import precision_recall_fscore_support

    images, y_test = test
    x_test = images / np.float32(255)
    x_test = x_test.reshape(-1, *model.input_shape[1:])  # --evaluate: maybe (784,)
    model.compile(loss="categorical_crossentropy")  # for `evaluate`; nothing is trained
    loss = model.evaluate(x_test, y_test, batch_size=1000, verbose=0)
    probabilities = model.predict(x_test, batch_size=1000, verbose=0)
    true, predicted = y_test.argmax(axis=1), probabilities.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, predicted, average="macro", zero_division=0
    )
    scores = {
        "loss": float(loss), "accuracy": float(np.mean(true == predicted)),
        "precision": float(precision), "recall": float(recall), "f1": float(f1),
    }  # fmt: skip
    if not all(np.isfinite(weights).all() for weights in model.get_weights()):
        scores = dict.fromkeys(scores, math.nan)
    return scores, probabilities


# ----------------------------------------------------------- no trial is trained twice
# The experiment ends here. A trial's numbers depend on the code of these functions and
# of model-FMNIST.py. After an edit of that code, all trials are trained again.
TRAINING = (
    build_network, train_trial, epoch_function, run_trial, util.adam,
    util.make_variables, util.model_file,
    util.in_keras2_words, util.fix_environment, util.import_tensorflow,
)  # fmt: skip
CODE = [util.source_code(function) for function in TRAINING]


def trial_key(setting, seed, options):
    """A hash of all that decides a trial's numbers. It names the trial's file."""
    code = [*CODE, util.source_code(import_networks())]
    conditions = util.conditions(options.data_dir, options.quick)
    return joblib.hash([setting._asdict(), seed, code, conditions])


# -------------------------------------------------------------------- the command line
LIMITS = {  # the lowest and the highest value of an option, and in STUDY
    "dropout_rate": (0, 0.99), "learning_rate": (1e-12, 1e12), "batch_size": (1, 10**6),
    "epochs": (1, 10**6), "seed": (0, 10**7), "repeats": (1, 1000), "jobs": (1, 1000),
}  # fmt: skip


def parse_options(arguments=None):
    """The command line as a namespace, with FINAL's values where it names none."""
    about = "Fashion-MNIST with two fully connected networks: the whole experiment."
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    # In place of argparse's own, which prints more than a line.
    parser.error = lambda message: util.fail(f"{message}; --help lists the options")
    add = parser.add_argument
    cores = joblib.cpu_count()
    add("--quick", action="store_true", help="a try-out: few images, 5 epochs, quick/")
    add("--no-sweep", action="store_true", help="the final models only, no study")
    add("--fresh", action="store_true", help="train again what was trained before")
    add("--evaluate", nargs="*", metavar="FILE", help="inspect saved models (models/)")
    add("--data-dir", metavar="DIR", help="the folder with the four data files")
    add("--output-dir", metavar="DIR", type=Path, help="where models/ and plots/ go")
    for name, value in FINAL.items():
        flag = "--" + name.replace("_", "-")
        note = f"of the final models ({value})"
        add(flag, metavar="X", type=type(value), default=value, help=note)
    add("--seed", metavar="N", type=int, default=0, help="the first seed (0)")
    add("--repeats", metavar="N", type=int, default=1, help="how many seeds (1)")
    add("--jobs", metavar="N", type=int, default=cores, help="trials at a time (cores)")
    add("--cluster", metavar="ADDRESS", help="a Dask cluster, tcp://HOST:8786")
    options = parser.parse_args(arguments)
    if options.quick:
        parser.set_defaults(epochs=5)  # a default only: --epochs still counts
        options = parser.parse_args(arguments)
    beside_script = HERE / "quick" if options.quick else HERE
    options.folder = (options.output_dir or beside_script).resolve()
    for name, (low, high) in LIMITS.items():
        values = (getattr(options, name), *STUDY.get(name, ()))
        if not all(low <= value <= high for value in values):
            flag = "--" + name.replace("_", "-")
            util.fail(f"{flag} and STUDY: only numbers from {low} to {high}")
    return options


def main(arguments=None):
    if sys.stdout is None:
        util.fail("stdout is closed")
    if hasattr(sys.stdout, "reconfigure"):  # Jupyter's and IDLE's have no such method
        # For terminals without ± and boxes; and a pipe gets each line at once.
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    options = parse_options(arguments)
    try:
        if options.evaluate is None:
            run_experiment(options)
        else:
            util.evaluate_files(options, test_model)
    except KeyboardInterrupt:
        util.fail("interrupted; to continue, give the same command again", 130)
    except (MemoryError, OSError, UnicodeError, util.InputError) as error:
        util.fail(str(error) or "out of memory")


if __name__ == "__main__":
    # A worker process imports `run_trial` from the module "main-FMNIST". Here, the file
    # runs as "__main__". So import it by that name, and drop a notebook's old versions.
    for script in ("main-FMNIST", "model-FMNIST", "util-FMNIST"):
        sys.modules.pop(script, None)
    importlib.import_module("main-FMNIST").main()
