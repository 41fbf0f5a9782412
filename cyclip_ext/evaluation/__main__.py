"""Evaluate a trained model and write the results as JSON, Markdown and HTML.

    cyclip-eval run logs/NAME                                     a run of this package
    cyclip-eval open-clip ViT-B-32 --pretrained FILE --data PATH  a model of open_clip
    cyclip-eval embeddings FILE.npz                               embeddings of any model
    cyclip-eval completeness INSTANCES.json CAPTIONS.json         captions alone, without a model

The options of each command: `cyclip-eval run --help`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from .._output import counted, quiet_if_output_closes
from ..data import BUILTIN, DatasetSplits, ImageDataset, MissingData, ReadOptions, resolved
from ..models.trained import TrainedModel, load_pretrained, load_trained, run_folder_of
from .builtin import MAIN, MEANING, encode_splits, evaluate_splits
from .datasets import AnyDataset, applicable, open_evaluation_dataset, options_of
from .embeddings import Embeddings
from .encode import encode
from .encoder import Encoder, choose_device
from .npz import load_embeddings
from .options import READ_OPTIONS, build_parser
from .prompts import Prompts
from .report import About, check_names, describe_data, require_writable, write_report
from .tasks import TASKS, TaskResult, completeness, in_order, run_tasks, shift
from .tasks.hierarchy import read_superclasses, superclasses_of
from .tasks.margins import compare_models
from .tasks.shift import read_baselines

_UNUSABLE = 2
_INTERRUPTED = 130  # as a shell reports Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    commands: dict[str, Callable[[Namespace], tuple[About, list[TaskResult]]]] = {
        "run": _evaluate_run,
        "open-clip": _evaluate_open_clip,
        "embeddings": _evaluate_embeddings,
        "completeness": _evaluate_completeness,
    }
    try:
        with quiet_if_output_closes():
            options = build_parser().parse_args(argv)
            chosen = options[options.subcommand]
            folder = chosen.output or _default_folder(chosen)
            require_writable(folder)
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                about, results = commands[options.subcommand](chosen)
                write_report(folder, about, in_order(results))
            print(f"wrote {folder / 'report.html'}, report.md and results.json")
    except (MissingData, ImportError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return _UNUSABLE
    except KeyboardInterrupt:
        print("\ninterrupted: no report was written", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _default_folder(options: Namespace) -> Path:
    path: Path | None = options.get("path")
    return Path("evaluation") if path is None else run_folder_of(path) / "evaluation"


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _notify(line: str) -> None:
    print(line, flush=True)


def _notify_skipped(data: Embeddings) -> None:
    if data.skipped.total:
        _notify(f"{data.name}: {describe_data(data)}")


def _evaluate_run(options: Namespace) -> tuple[About, list[TaskResult]]:
    trained = load_trained(options.path)
    specs = options.data or [_own_data(trained)]
    return _evaluate_model(options, trained, specs, _run_title(trained))


def _evaluate_open_clip(options: Namespace) -> tuple[About, list[TaskResult]]:
    if not options.data:
        raise ValueError("--data must name the datasets to evaluate the model on")
    trained = load_pretrained(options.model, options.pretrained)
    return _evaluate_model(options, trained, options.data, trained.created.name)


def _evaluate_embeddings(options: Namespace) -> tuple[About, list[TaskResult]]:
    embeddings = _with_superclasses(options, load_embeddings(options.file))
    train = None if options.train_data is None else load_embeddings(options.train_data)
    results = run_tasks(embeddings, train=train, tasks=options.tasks, seed=options.seed)
    _require_results(results, options)
    title = f"Evaluation of {options.file.stem}"
    about = About("embeddings", str(options.file), title, {"embeddings": str(options.file)})
    return about, results


def _evaluate_completeness(options: Namespace) -> tuple[About, list[TaskResult]]:
    result = completeness.run(options.instances, options.captions)
    title = f"{options.captions.name} against {options.instances.name}"
    return About("none", "none", title), [result]


def _evaluate_model(
    options: Namespace, trained: TrainedModel, specs: list[str], title: str
) -> tuple[About, list[TaskResult]]:
    """Open all datasets and models, which reveals most errors, then encode and measure."""
    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be 1 or more, got {options.batch_size}")
    _require_fit(options, specs)
    device = choose_device(options.device)
    encoder = Encoder.of(
        trained, device, batch_size=options.batch_size, progress=True, notify=_notify
    )
    prompts = Prompts.read(options.class_names, options.templates, options.prompts_key)
    baselines = None if options.baselines is None else read_baselines(options.baselines)
    others = _models_beside(options, title)
    datasets = [_open(options, spec) for spec in specs]
    if not options.data:
        _require_own_data(trained, datasets[0])
    train_data = None if options.train_data is None else _open_train(options)
    _check_classes(options, datasets, train_data, prompts)
    check_names(
        name
        for dataset in datasets
        for name in (
            [f"{dataset.name}/{name}" for name in dataset.evaluation]
            if isinstance(dataset, DatasetSplits)
            else [dataset.name]
        )
    )
    facts = _facts(trained)
    results: list[TaskResult] = []
    first: Embeddings | None = None
    opened: list[Embeddings] = []
    main = ""
    for dataset in datasets:
        if isinstance(dataset, DatasetSplits):
            train, sets = encode_splits(dataset, encoder, prompts.templates)
            results += evaluate_splits(
                train, sets, tasks=options.tasks, baselines=baselines, seed=options.seed
            )
            facts |= {f"{dataset.name}/{name}": MEANING[name] for name in sets}
            main = main or f"{dataset.name}/{MAIN}"
            first = first or sets[MAIN]
        else:
            found = encode(dataset, encoder, prompts=prompts)
            _notify_skipped(found)
            opened.append(_with_superclasses(options, found))
            first = first or opened[-1]
    train = None
    if train_data is not None:
        train = encode(train_data, encoder, prompts=prompts, captions=False)
        _notify_skipped(train)
    results += _run_on_opened(options, opened, train, baselines)
    if others:
        assert first is not None
        results.append(_compare(options, datasets[0], {title: first}, others, prompts))
    _require_results(results, options)
    about = About(trained.created.name, trained.weights, f"Evaluation of {title}", facts, main)
    return about, results


def _run_on_opened(
    options: Namespace, opened: list[Embeddings], train: Embeddings | None, baselines: Any
) -> list[TaskResult]:
    """Run the tasks on datasets from files; several with classes are compared with the first."""
    chosen = set(options.tasks or TASKS)
    results: list[TaskResult] = []
    for embeddings in opened:
        results += run_tasks(
            embeddings,
            train=None if embeddings.labels is None else train,
            tasks=chosen - {shift.TASK},
            seed=options.seed,
        )
    classified = [embeddings for embeddings in opened if embeddings.labels is not None]
    if shift.TASK in chosen and len(classified) > 1:
        base, *shifted = classified
        results += run_tasks(base, shifted=shifted, baselines=baselines, tasks=(shift.TASK,))
    return results


def _read_options(options: Namespace, **changes: Any) -> ReadOptions:
    given = {name: options[name] for name in READ_OPTIONS}
    return ReadOptions(**given | changes)


def _open(options: Namespace, spec: str, **changes: Any) -> AnyDataset:
    _notify(f"opening {spec}")
    read = applicable(_read_options(options, **changes), spec)
    return open_evaluation_dataset(spec, read, root=options.root)


def _open_train(options: Namespace) -> ImageDataset:
    found = _open(options, options.train_data, split="train")
    if not isinstance(found, ImageDataset) or not found.class_names:
        raise ValueError(
            f"--train-data {options.train_data} has no classes to learn; name a dataset "
            "with classes"
        )
    return found


def _require_fit(options: Namespace, specs: list[str]) -> None:
    """Raise ValueError for an option that none of the datasets can use."""
    opened = [spec for spec in specs if spec not in BUILTIN]
    for flag in ("train_data", "class_names", "hierarchy", *READ_OPTIONS):
        if options[flag] is not None and not opened:
            raise ValueError(
                f"--{flag.replace('_', '-')} only applies to datasets from files; "
                f"{', '.join(specs)} is built in (got {options[flag]!r})"
            )
    if options.prompts_key and not (options.class_names or options.templates):
        raise ValueError(
            f"--prompts-key only applies to --templates and --class-names, got "
            f"{options.prompts_key!r}"
        )
    accepted = {name for spec in opened for name in options_of(spec, options.split)}
    if options.train_data is not None:
        accepted.update(options_of(options.train_data, "train"))
    for name in READ_OPTIONS:
        if options[name] is not None and name not in accepted:
            raise ValueError(
                f"--{name.replace('_', '-')} {options[name]} does not apply to {', '.join(opened)}"
            )
    if options.baselines is not None and len(specs) == len(opened) == 1:
        raise ValueError("--baselines needs a second --data: the first is the base of the shift")


def _check_classes(
    options: Namespace,
    datasets: list[AnyDataset],
    train_data: ImageDataset | None,
    prompts: Prompts,
) -> None:
    """Raise ValueError if prompts, superclasses or training data do not fit the classes.

    Warns of training data that are the data to evaluate.
    """
    opened = [dataset for dataset in datasets if isinstance(dataset, ImageDataset)]
    classified = [dataset for dataset in opened if dataset.class_names]
    if train_data is not None and not classified:
        without = ", ".join(dataset.name for dataset in opened)
        raise ValueError(
            f"--train-data {options.train_data} only applies to datasets with classes, got "
            f"{without}"
        )
    for dataset in classified:
        names = tuple(entry[0] for entry in prompts.names_for(dataset))
        if options.hierarchy is not None:
            superclasses_of(read_superclasses(options.hierarchy), names)
        if train_data is not None and train_data.class_names != dataset.class_names:
            raise ValueError(
                f"--train-data {options.train_data} and {dataset.name} must have the same classes "
                "in the same order, because labels are indices into them"
            )
        if train_data is not None and train_data.fingerprint() == dataset.fingerprint():
            _show_warning(
                f"--train-data {options.train_data} has the images of {dataset.name} themselves: "
                "neighbours and probes know their labels"
            )


def _with_superclasses(options: Namespace, embeddings: Embeddings) -> Embeddings:
    if options.hierarchy is None or not embeddings.classes:
        return embeddings
    table = read_superclasses(options.hierarchy)
    return replace(embeddings, levels={"superclass": superclasses_of(table, embeddings.classes)})


def _require_results(results: list[TaskResult], options: Namespace) -> None:
    if not results:
        raise ValueError(
            f"none of {', '.join(options.tasks or TASKS)} can be measured on this data; "
            "change --tasks or --data"
        )


def _models_beside(options: Namespace, title: str) -> dict[str, Encoder]:
    """Load the models of --beside by title, before anything is measured."""
    encoders: dict[str, Encoder] = {}
    for path in options.get("beside") or ():
        trained = load_trained(path)
        own = _run_title(trained)
        if own == title or own in encoders:
            raise ValueError(
                f"--beside {path}: there are two models called {own}; name each run once"
            )
        encoders[own] = Encoder.of(
            trained,
            choose_device(options.device),
            batch_size=options.batch_size,
            progress=True,
            notify=_notify,
        )
    return encoders


def _compare(
    options: Namespace,
    dataset: AnyDataset,
    models: dict[str, Embeddings],
    others: dict[str, Encoder],
    prompts: Prompts,
) -> TaskResult:
    """Compare the margins of all models on the first dataset."""
    (own,) = models.values()
    chosen = dataset.evaluation[MAIN] if isinstance(dataset, DatasetSplits) else dataset
    if not isinstance(chosen, ImageDataset) or not chosen.class_names:
        raise ValueError(f"--beside needs a dataset with classes first, got {own.name}")
    if isinstance(dataset, DatasetSplits):
        prompts = Prompts(templates=prompts.templates)
    for title, encoder in others.items():
        _notify(f"encoding {own.name} with {title}")
        found = encode(chosen, encoder, prompts=prompts, captions=False)
        models[title] = replace(found, name=own.name)
    return compare_models(models, seed=options.seed)


def _own_data(trained: TrainedModel) -> str:
    """Return the built-in dataset that a run was trained on.

    Raises ValueError if it was trained on files.
    """
    name = resolved(str(trained.settings.get("data", {}).get("train_data")))
    if name not in BUILTIN:
        raise ValueError(
            f"the run was trained on files ({name}), which are not an evaluation dataset; choose "
            "one with --data"
        )
    return name


def _require_own_data(trained: TrainedModel, dataset: AnyDataset) -> None:
    """Raise ValueError if the built-in dataset of the run has other images on this machine.

    "auto" stands for another dataset if the packages of the default one are missing.
    """
    expected = trained.fingerprints.get("validation")
    if expected is None or not isinstance(dataset, DatasetSplits):
        return
    if dataset.evaluation["validation"].fingerprint() != expected:
        raise ValueError(
            f"the run was trained and validated on other data than {dataset.name} on this machine: "
            "another dataset, or another version of its packages; to evaluate it anyway, pass "
            f"--data {dataset.name}"
        )


def _run_title(trained: TrainedModel) -> str:
    file = Path(trained.weights).resolve()
    run = file.parent.parent if file.parent.name == "checkpoints" else file
    return f"{run.name} ({trained.created.name})"


def _facts(trained: TrainedModel) -> dict[str, str]:
    created = trained.created
    facts = {
        "model": f"{created.name}, {created.parameters:,} parameters, images of "
        f"{created.image_size} pixels",
        "weights": trained.weights,
    }
    scale: Any = getattr(created.model, "logit_scale", None)
    if scale is not None:
        facts["logit scale"] = f"{float(scale.detach().exp()):.1f} (1 / temperature)"
    loss, run = (trained.settings.get(name, {}) for name in ("loss", "run"))
    if loss:
        weights = [
            f"{name} {value:g}"
            for name, value in loss.items()
            if isinstance(value, float) and value and loss.get("loss") == "cyclip"
        ]
        facts["loss"] = ", ".join([str(loss.get("loss")), *weights])
    if {"epochs", "seed"} <= run.keys():
        data = trained.settings.get("data", {}).get("train_data", "auto")
        data = "the default data" if data == "auto" else data
        facts["training"] = f"{counted(run['epochs'], 'epoch')} on {data}, seed {run['seed']}"
    return facts


if __name__ == "__main__":
    sys.exit(main())
