"""Fashion-MNIST with two fully connected networks: the whole experiment.

    python main-FMNIST.py

trains Tyler and Jackson, without and with L2 regularization; moves one hyperparameter
of Tyler at a time; saves the four models, tables and plots; and ends with a table of
test results. A finished training is kept, so the same command again trains nothing.

Published at https://github.com/apalapramanik/Classifying-Fashion-MNIST
"""

import argparse
import importlib
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # Python does so, but not with PYTHONSAFEPATH
util = importlib.import_module("util-FMNIST")  # `import` cannot spell the hyphen

# The published values: those of the final models, and those that the study tries.
# If STUDY has no "epochs", it takes 1/5, 2/5 ... of the final ones: 10, 20, 30, 40, 50.
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
    """A network and its hyperparameters. A trial is a pair: (setting, seed)."""

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
    def suffix(self):  # of file names: tyler_0 without L2, tyler_1 with it
        return f"{self.architecture}_{self.use_regularizer:d}"


def final_settings(options):
    """The settings of the saved models: FINAL, unless options say otherwise."""
    values = {name: getattr(options, name) for name in FINAL}
    return [
        Setting(architecture, use_regularizer, **values)
        for architecture in util.import_networks()
        for use_regularizer in (False, True)
    ]


def study_settings(final):
    """Return {(hyperparameter, value): setting}. Each setting is the final one with one
    value replaced, for example ("batch_size", 64). For fewer epochs it is the final one
    itself, as its history has their accuracies. So training must not depend on epochs.
    """
    fifths = [math.ceil(final.epochs * part / 5) for part in (1, 2, 3, 4, 5)]
    study = {**STUDY, "epochs": STUDY.get("epochs", fifths)}
    moved = {}
    for name, tried in study.items():
        # Add the final value, each once. Numbers are sorted, texts keep their order.
        values = dict.fromkeys([*tried, getattr(final, name)])
        if not isinstance(tried[0], str):
            values = sorted(values)
        for value in values:
            moved[name, value] = final._replace(**{name: value})
            if name == "epochs" and value < final.epochs:
                moved[name, value] = final
    return moved


def build_network(setting):
    """The setting's network, untrained. Its builder gets use_regularizer, dropout_rate
    and each field that you add to Setting, but for those that only the training needs.
    A builder that does not know a field fails, and does not ignore it."""
    not_for_builder = ("architecture", "learning_rate", "batch_size", "epochs")
    fields = setting._asdict()
    arguments = {name: fields[name] for name in fields if name not in not_for_builder}
    return util.import_networks()[setting.architecture](**arguments)


# --------------------------------------------------------------------------- training
def train_trial(setting, seed, train, validation):
    """Train one network and return its .h5 file as bytes: a worker cannot send a model.

    `train` and `validation` are (images, labels) as `util.load_data` gives them. If a
    weight or a value of the history becomes NaN or infinite, training stops: this epoch
    and all later ones are NaN in the history.
    """
    _, keras = util.import_tensorflow()  # here, as it takes seconds
    keras.utils.clear_session()  # frees the last trial's graphs and names ("adam")
    keras.utils.set_random_seed(seed)  # decides the first weights and the dropout
    rng = np.random.default_rng(seed)  # decides the order of the images
    model = build_network(setting)
    model.compile(
        util.adam(setting.learning_rate),  # the update of Keras's Adam, but faster
        loss="categorical_crossentropy",
        metrics=["accuracy"],
    )
    train_epoch = epoch_function(model, model.train_step, setting.batch_size)
    # The batch size of the validation changes nothing but its time.
    validate = epoch_function(model, model.test_step, batch_size=1000)
    x_train, y_train = train
    x_val, y_val = validation
    history = []  # {metric: value} of each epoch
    for _ in range(setting.epochs):
        values = train_epoch(x_train, y_train, rng.permutation(len(x_train)))
        validated = validate(x_val, y_val, np.arange(len(x_val)))
        for name, value in validated.items():
            values[f"val_{name}"] = value  # as `fit` names it
        # A NaN in the weights may not show in the loss: TensorFlow's ReLU makes it 0.
        numbers = [*values.values(), *model.get_weights()]
        if not all(np.isfinite(number).all() for number in numbers):
            diverged = dict.fromkeys(values, math.nan)
            history += [diverged] * (setting.epochs - len(history))
            break
        history.append({name: float(value) for name, value in values.items()})
    return util.model_file(model, history, setting, seed, train)


def epoch_function(model, step, batch_size):
    """Return the function run_epoch(images, labels, order) -> {metric: value}.

    `step` is Keras's own model.train_step or model.test_step, so an epoch does what one
    of `fit` or `evaluate` does. Why not `fit`? It returns to Python after every batch,
    and takes longer (README, "Speed"). This runs a whole epoch inside TensorFlow.
    `order` lists the indices of the images.
    """
    tf, _ = util.import_tensorflow()
    util.make_variables(model)  # of Adam and the metrics: before the graph is recorded

    # The first call runs this Python code once and records it as a TensorFlow graph, in
    # which `for` becomes a loop. Later calls run the graph alone.
    @tf.function
    def run_epoch(images, labels, order):
        model.reset_metrics()
        for start in tf.range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            x = tf.cast(tf.gather(images, batch), tf.float32) / 255
            y = tf.gather(labels, batch)
            step((x, y))  # as in `fit`: prediction, loss, metrics, gradients, Adam
        return model.get_metrics_result()

    return run_epoch


# ------------------------------------------------------------------------- the stages
def run_experiment(options):
    """Train what is missing, test, write the models, tables and plots, and report."""
    util.try_places(options)
    finals = final_settings(options)
    for name in {*STUDIED} - {setting.architecture for setting in finals}:
        raise util.InputError(f"STUDIED names {name}, which NETWORKS lacks")
    studied = []
    if not options.no_sweep:
        studied = [setting for setting in finals if setting.architecture in STUDIED]
    settings = finals.copy()
    for final in studied:
        settings += study_settings(final).values()
    settings = list(dict.fromkeys(settings))  # each once, the final ones first
    seeds = range(options.seed, options.seed + options.repeats)
    trials = [(setting, seed) for setting in settings for seed in seeds]
    # In worker processes, this calls train_trial for each trial that has no file yet.
    # It returns {(setting, seed): the path of its .h5 file}.
    files = util.train_missing(trials, train_trial, options, check_settings)

    histories = {}  # {setting: {metric: array of shape (seeds, epochs)}}
    for setting in settings:
        paths = [files[setting, seed] for seed in seeds]
        histories[setting] = util.read_histories(paths)
    study = study_rows(studied, histories)
    print("Testing the models, writing tables and plots")
    *_, test = util.load_data(options.data_dir, options.quick)
    results = {}  # {final setting: [(scores, probabilities) for each seed]}
    for setting in finals:
        models = [util.load_classifier(files[setting, seed]) for seed in seeds]
        results[setting] = [test_model(model, test) for model in models]
        content = files[setting, seeds[0]].read_bytes()  # the first seed's is saved
        util.write_whole(options.folder / f"models/model_{setting.suffix}.h5", content)
    util.write_tables(options.folder, histories, results, study, seeds)
    util.draw(options, histories, results, study, test)
    util.report_study(study)
    util.report_results(results)
    util.report_published(PUBLISHED, options.quick)
    util.report_files(options.folder, study)


def check_settings(settings, options):
    """Try on a few images what will be trained, so that a fault shows before. Raises
    InputError. Settings that differ only in a published hyperparameter are alike: one of
    them is trained for an epoch, saved, loaded and tested, the others are only built."""
    parts = util.load_data(options.data_dir, options.quick)
    train, validation, test = [(images[:200], labels[:200]) for images, labels in parts]
    tried = set()
    for setting in settings:
        with util.naming_the_fault(setting, options):
            fields = setting._asdict().items()
            kind = tuple(it for it in fields if it[0] not in util.LIMITS)
            if kind in tried:
                build_network(setting)
                continue
            tried.add(kind)
            content = train_trial(setting._replace(epochs=1), 0, train, validation)
            test_model(util.reopen(content), test)


def study_rows(studied, histories):
    """The rows of study.csv. `studied` are final settings. Differences are from these,
    seed by seed: a seed means the same first weights and the same order of images."""
    rows = []
    for final in studied:
        reference = histories[final]["val_accuracy"][:, final.epochs - 1]
        for (hyperparameter, value), setting in study_settings(final).items():
            last = value if hyperparameter == "epochs" else setting.epochs
            by_seed = histories[setting]["val_accuracy"][:, last - 1]
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
                "seeds": np.isfinite(by_seed).sum(),  # a diverged one does not count
            }
            rows.append(row)
    return rows


def test_model(model, test):
    """Test a network: ({score: value}, class probabilities of shape (n, 10)).

    The loss is the cross-entropy and the L2 penalty, as Keras counts it, even if
    `train_trial` compiles another one. Precision, recall and F1 are means over the
    classes. All scores are NaN if a weight or an output is NaN or infinite.
    """
    from sklearn.metrics import precision_recall_fscore_support  # slow, so here

    images, y_test = test
    x_test = images / np.float32(255)
    # A model from a file is not compiled. This is for `evaluate`: nothing is trained.
    model.compile(loss="categorical_crossentropy")
    loss = model.evaluate(x_test, y_test, batch_size=1000, verbose=0)
    probabilities = model.predict(x_test, batch_size=1000, verbose=0)
    numbers = [probabilities, *model.get_weights()]
    diverged = not all(np.isfinite(number).all() for number in numbers)
    if diverged:  # the scores below must not fail
        probabilities = np.full_like(probabilities, 0.1)
    true, predicted = y_test.argmax(axis=1), probabilities.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, predicted, average="macro", zero_division=0
    )
    scores = {
        "loss": loss,
        "accuracy": np.mean(true == predicted),
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }
    if diverged:
        scores = dict.fromkeys(scores, math.nan)
    return {name: float(score) for name, score in scores.items()}, probabilities


# -------------------------------------------------------------------- the command line
def parse_options(arguments=None):
    """The command line as a namespace, with FINAL's values where it names none."""
    about = "Fashion-MNIST with two fully connected networks: the whole experiment."
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    # In place of argparse's own, which prints more than a line.
    parser.error = lambda message: util.fail(f"{message}; --help lists the options")
    add = parser.add_argument
    note = "inspect saved models (models/)"
    add("--quick", action="store_true", help="a try-out: few images, 5 epochs, quick/")
    add("--no-sweep", action="store_true", help="the final models only, no study")
    add("--evaluate", nargs="*", metavar="FILE", type=util.as_path, help=note)
    note = "the folder with the four data files"
    add("--data-dir", metavar="DIR", type=util.as_path, help=note)
    note = "where models/ and plots/ go"
    add("--output-dir", metavar="DIR", type=util.as_path, help=note)
    note = "of the final models (%(default)s)"
    for name, value in FINAL.items():
        flag = util.as_flag(name)
        if isinstance(value, bool):
            yes_or_no = argparse.BooleanOptionalAction
            add(flag, action=yes_or_no, default=value, help=note)
        else:
            add(flag, metavar="X", type=type(value), default=value, help=note)
    add("--seed", metavar="N", type=int, default=0, help="the first seed (0)")
    add("--repeats", metavar="N", type=int, default=1, help="how many seeds (1)")
    note = "trials at a time (cores)"
    add("--jobs", metavar="N", type=int, default=util.CORES, help=note)
    add("--cluster", metavar="ADDRESS", help="a Dask cluster, tcp://HOST:8786")
    options = parser.parse_args(arguments)
    if options.quick:
        parser.set_defaults(epochs=5)  # a default only: --epochs still counts
        options = parser.parse_args(arguments)
    for name, value in vars(options).items():
        util.check_value(name, value, util.as_flag(name))
    default_folder = HERE / "quick" if options.quick else HERE
    options.folder = (options.output_dir or default_folder).resolve()
    return options


def main(arguments=None):
    with util.one_line_errors():
        util.check_study(FINAL, STUDY, STUDIED, Setting._fields)
        options = parse_options(arguments)
        if options.evaluate is None:
            run_experiment(options)
        else:
            util.evaluate_files(options, test_model)


if __name__ == "__main__":
    # Worker processes import `train_trial` from the module "main-FMNIST". This file
    # runs as "__main__", so it starts the module of that name.
    util.forget_scripts()
    importlib.import_module("main-FMNIST").main()
