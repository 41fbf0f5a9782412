"""One evaluation from options to outcomes: loads the model, opens the data, runs the tasks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..data import NAMED, DatasetSplits, InMemoryDataset, load_named, resolved
from ..models.trained import TrainedModel, load_pretrained, load_trained
from .datasets import open_set
from .encoder import BATCH, Encoder, choose_device
from .hierarchy import Hierarchy, read_superclasses
from .outcome import Outcome
from .prompts import read_class_names, read_templates
from .report import About
from .sets import ClassifiedImages
from .shift import read_baselines
from .suite import TASKS, completeness, probes
from .suite.checkpoints import embedded_pairs, margins_of_checkpoints
from .suite.data import HierarchyOf
from .suite.embeddings import evaluate_embeddings
from .suite.opened import AnySet, Prompts, evaluate_sets
from .suite.pictures import MAIN, describe_sets, evaluate_picture_data
from .taxonomy import Taxonomy
from .zero_shot import NAME_ONLY


@dataclass(frozen=True)
class Job:
    """What to evaluate, on what, and how; the options of `python -m cyclip_ext.evaluation`.

    Exactly one of checkpoint, model with pretrained, embeddings; none only beside completeness.
    data: "emoji" and the other named sets, or what open_set takes; none: what the run of the
    checkpoint was trained on. The others: see the command line's help.

    Raises ValueError for options that do not go together.
    """

    checkpoint: Path | None = None
    model: str | None = None
    pretrained: str | None = None
    embeddings: Path | None = None
    data: tuple[str, ...] = ()
    train_data: str | None = None
    split: str | None = None
    root: Path = Path("data")
    tasks: tuple[str, ...] | None = None
    templates: str | None = None
    class_names: str | None = None
    hierarchy: str | None = None
    depth: int | None = None
    words: Path | None = None
    beside: tuple[Path, ...] = ()
    completeness: tuple[Path, Path] | None = None
    baselines: Path | None = None
    device: str = "auto"
    batch_size: int = BATCH
    seed: int = 0

    def __post_init__(self) -> None:
        models = [self.checkpoint, self.model, self.embeddings]
        given = sum(value is not None for value in models)
        if given > 1:
            raise ValueError("give one of CHECKPOINT, --model and --embeddings, not several")
        if not given and self.completeness is None:
            raise ValueError("nothing to evaluate: give CHECKPOINT, --model or --embeddings")
        if (self.model is None) != (self.pretrained is None):
            raise ValueError("--model and --pretrained belong together: a name and its weights")
        if len(set(self.data)) < len(self.data):
            raise ValueError(f"--data must name different sets, got {', '.join(self.data)}")
        if self.model is not None and not self.data:
            raise ValueError("--data must name what to evaluate the model on")
        if self.depth is not None and self.hierarchy is None:
            raise ValueError('--depth needs --hierarchy, a file of "parent child" lines')
        if self.words is not None and self.depth is None:
            raise ValueError("--words needs --hierarchy and --depth: it names the ids of a graph")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be 1 or more, got {self.batch_size}")
        unknown = sorted(set(self.tasks or ()) - set(TASKS))
        if unknown:
            raise ValueError(f"--tasks {', '.join(unknown)} unknown; known are {', '.join(TASKS)}")
        if self.embeddings is not None or not given:
            for flag, value in (
                ("data", self.data),
                ("templates", self.templates),
                ("class-names", self.class_names),
                ("baselines", self.baselines),
                ("beside", self.beside),
                ("split", self.split),
            ):
                if value:
                    raise ValueError(f"--{flag} needs a model: CHECKPOINT, or --model")
        if not given and (self.train_data or self.hierarchy):
            raise ValueError("--completeness alone takes neither --train-data nor --hierarchy")


def chosen_tasks(job: Job, notify: Callable[[str], None]) -> tuple[str, ...]:
    """Those of the job; by default all, less what needs a package that is missing."""
    if job.tasks is not None:
        return job.tasks
    if importlib.util.find_spec("sklearn") is not None:
        return TASKS
    notify("no probes: scikit-learn is missing (pip install 'cyclip_ext[eval]')")
    return tuple(task for task in TASKS if task not in (probes.LINEAR, probes.KNN))


def run_job(
    job: Job, notify: Callable[[str], None] = lambda line: None
) -> tuple[About, list[Outcome]]:
    """Measure everything; what the report is made of.

    notify: shows a line. Raises ValueError, FileNotFoundError, MissingData or MissingDependency
    where model or data cannot be used, and ValueError where the model's embeddings are not finite
    or the data is fit for none of the tasks.
    """
    tasks = chosen_tasks(job, notify)
    outcomes: list[Outcome] = []
    about = About("none", "none", "Completeness of captions")
    if job.embeddings is not None:
        outcomes += evaluate_embeddings(
            job.embeddings,
            tasks,
            train=None if job.train_data is None else Path(job.train_data),
            hierarchy_of=_hierarchy_of(job),
            seed=job.seed,
        )
        name = job.embeddings.stem
        facts = {"embeddings": str(job.embeddings)}
        about = About("embeddings", str(job.embeddings), f"Evaluation of {name}", facts)
    elif job.checkpoint is not None or job.model is not None:
        about, found = _with_model(job, tasks, notify)
        outcomes += found
    if job.completeness is not None:
        notify("comparing captions with annotations")
        outcomes.append(completeness.completeness(*job.completeness))
    if not outcomes:
        raise ValueError(f"none of {', '.join(tasks)} can be measured on this data")
    return about, outcomes


def _with_model(
    job: Job, tasks: tuple[str, ...], notify: Callable[[str], None]
) -> tuple[About, list[Outcome]]:
    device = choose_device(job.device)
    if job.checkpoint is not None:
        trained = load_trained(job.checkpoint)
    else:
        assert job.model is not None
        assert job.pretrained is not None
        trained = load_pretrained(job.model, job.pretrained)
    title = _title(trained, job.checkpoint)
    specs = job.data or (_own_data(trained),)
    encoder = _encoder(trained, device, job.batch_size)
    others = _others(job, title, device)
    named = [spec for spec in specs if spec in NAMED]
    opened = [spec for spec in specs if spec not in NAMED]
    prompts = Prompts(
        None if job.class_names is None else read_class_names(job.class_names),
        None if job.templates is None else read_templates(job.templates),
    )
    baselines = None if job.baselines is None else read_baselines(job.baselines)
    _require_fit(job, opened)
    facts = _facts(trained)
    outcomes: list[Outcome] = []
    data: dict[str, DatasetSplits | AnySet] = {}
    for name in named:
        notify(f"opening {name}")
        data[name] = pictures = load_named(name)
        facts |= describe_sets(pictures)
        outcomes += evaluate_picture_data(
            encoder,
            pictures,
            tasks,
            templates=prompts.templates or NAME_ONLY,
            baselines=baselines,
            seed=job.seed,
            notify=notify,
        )
    if opened:
        sets = {s: open_set(s, split=_split(job, s, None), root=job.root) for s in opened}
        data |= sets
        facts |= {each.name: f"{len(each):,} pictures" for each in sets.values()}
        outcomes += evaluate_sets(
            encoder,
            list(sets.values()),
            tasks,
            train=_train_set(job),
            prompts=prompts,
            hierarchy_of=_hierarchy_of(job),
            baselines=baselines,
            seed=job.seed,
            notify=notify,
        )
    if others:
        encoders = {title: encoder, **others}
        outcomes.append(_beside(job, data[specs[0]], encoders, prompts, notify))
    about = About(
        trained.created.name,
        trained.weights,
        f"Evaluation of {title}",
        facts,
        f"{named[0]}/{MAIN}" if named else "",
    )
    return about, outcomes


def _train_set(job: Job) -> ClassifiedImages | None:
    if job.train_data is None:
        return None
    found = open_set(job.train_data, split=_split(job, job.train_data, "train"), root=job.root)
    if not isinstance(found, ClassifiedImages):
        raise ValueError(f"--train-data {job.train_data} has no classes to learn")
    return found


def _others(job: Job, title: str, device: torch.device) -> dict[str, Encoder]:
    """The models of --beside by title, loaded before anything is measured."""
    encoders: dict[str, Encoder] = {}
    for path in job.beside:
        trained = load_trained(path)
        own = _title(trained, path)
        if own == title or own in encoders:
            raise ValueError(f"--beside {path}: there are two models called {own}")
        encoders[own] = _encoder(trained, device, job.batch_size)
    return encoders


def _beside(
    job: Job,
    data: DatasetSplits | AnySet,
    encoders: Mapping[str, Encoder],
    prompts: Prompts,
    notify: Callable[[str], None],
) -> Outcome:
    """Margins of all models on the first set."""
    name = data.name
    chosen: InMemoryDataset | ClassifiedImages
    if isinstance(data, DatasetSplits):
        name, chosen = f"{data.name}/{MAIN}", data.evaluation[MAIN]
    elif isinstance(data, ClassifiedImages):
        chosen = data
    else:
        raise ValueError(f"--beside needs a set with classes first, got {name}")
    models = {}
    for title, encoder in encoders.items():
        notify(f"embedding {name} with {title}")
        images, texts, labels = embedded_pairs(encoder, chosen, prompts)
        models[title] = images, texts
    return margins_of_checkpoints(name, models, labels, seed=job.seed)


def _hierarchy_of(job: Job) -> HierarchyOf | None:
    if job.hierarchy is None:
        return None
    if job.depth is None:
        table = read_superclasses(job.hierarchy)
        return partial(Hierarchy.build, table)
    depth, taxonomy = job.depth, Taxonomy.read(job.hierarchy, job.words)
    return lambda names: Hierarchy.build(taxonomy.at_depth(names, depth), names)


def _encoder(trained: TrainedModel, device: torch.device, batch_size: int) -> Encoder:
    created = trained.created
    towers: Any = created.model.to(device)
    return Encoder(
        towers,
        created.tokenizer,
        created.image_size,
        device,
        transform=trained.transform,
        batch_size=batch_size,
    )


def _own_data(trained: TrainedModel) -> str:
    """The named data set that a run was trained on. Raises ValueError where it was files."""
    name = resolved(trained.settings["data"]["train_data"])
    if name not in NAMED:
        raise ValueError(
            f"the run was trained on files ({name}), which are no evaluation set: name one with "
            "--data"
        )
    return name


def _require_fit(job: Job, opened: Sequence[str]) -> None:
    """Raises ValueError for an option that none of the sets can use."""
    for flag, value in (
        ("train-data", job.train_data),
        ("class-names", job.class_names),
        ("hierarchy", job.hierarchy),
        ("split", job.split),
    ):
        if value is not None and not opened:
            raise ValueError(
                f"--{flag} is for sets from files, {', '.join(NAMED)} bring their own; "
                f"got {value!r}"
            )
    if job.split is not None and not any(map(_has_splits, opened)):
        raise ValueError(
            f"--split {job.split}: none of {', '.join(opened)} has splits; name the part you mean "
            "by its path"
        )
    if job.baselines is not None and len(job.data) == len(opened) == 1:
        raise ValueError("--baselines needs a second --data: the first is the base of the shift")


def _has_splits(spec: str) -> bool:
    """Whether it is of torchvision or a webdataset, which may be a path without its kind."""
    return spec.startswith(("torchvision:", "wds:")) or any(Path(spec).glob("*/*.tar"))


def _split(job: Job, spec: str, default: str | None) -> str | None:
    return default or job.split if _has_splits(spec) else None


def _title(trained: TrainedModel, checkpoint: Path | None) -> str:
    if checkpoint is None:
        return trained.created.name
    file = Path(trained.weights).resolve()
    run = file.parent.parent if file.parent.name == "checkpoints" else file
    return f"{run.name} ({trained.created.name})"


def _facts(trained: TrainedModel) -> dict[str, str]:
    created = trained.created
    facts = {
        "model": f"{created.name}, {created.parameters:,} parameters, pictures of "
        f"{created.image_size} pixels",
        "weights": trained.weights,
    }
    scale = getattr(created.model, "logit_scale", None)
    if scale is not None:
        facts["logit scale"] = f"{float(scale.detach().exp()):.1f} (1 / temperature)"
    settings = trained.settings
    if settings:
        loss, run = settings["loss"], settings["run"]
        weights = [
            f"{name} {value:g}"
            for name, value in loss.items()
            if isinstance(value, float) and value and loss["loss"] == "cyclip"
        ]
        facts["loss"] = ", ".join([loss["loss"], *weights])
        data = settings["data"]["train_data"]
        data = "the default data" if data == "auto" else data
        facts["training"] = f"{run['epochs']} epochs on {data}, seed {run['seed']}"
    return facts
