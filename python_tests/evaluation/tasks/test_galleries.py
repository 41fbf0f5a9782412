"""Galleries: images and captions drawn by seed, with the candidates that are nearest to them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from cyclip_ext.evaluation import Embeddings, run_tasks
from cyclip_ext.evaluation.tasks import Gallery, TaskResult, retrieval, zero_shot
from cyclip_ext.evaluation.tasks.base import NEAREST

from .cases import unit

IMAGES, CLASSES, CAPTIONS = 40, 7, 60


def load_image(row: int) -> Image.Image:
    return Image.new("RGB", (1, 1), (row, 0, 0))


@pytest.fixture
def embeddings() -> Embeddings:
    generator = torch.Generator().manual_seed(3)
    return Embeddings(
        unit(IMAGES, 5, seed=1),
        labels=torch.randint(CLASSES, (IMAGES,), generator=generator),
        class_features=unit(CLASSES, 5, seed=2),
        class_names=tuple(f"class {i}" for i in range(CLASSES)),
        text_features=unit(CAPTIONS, 5, seed=4),
        # Some images have no caption: they are not queries.
        text_owners=torch.randint(IMAGES // 2, (CAPTIONS,), generator=generator),
        texts=tuple(f"caption {i}" for i in range(CAPTIONS)),
        load_image=load_image,
    )


def measure(embeddings: Embeddings, task: str, **options: object) -> TaskResult:
    (result,) = run_tasks(embeddings, tasks=(task,), **options)  # type: ignore[arg-type]
    return result


def row_of(gallery: Gallery, number: int) -> int:
    load = gallery.examples[number].query.load
    assert load is not None
    return int(load().getpixel((0, 0))[0])  # type: ignore[index]


def test_images_have_the_names_of_their_nearest_classes(embeddings: Embeddings) -> None:
    (gallery,) = measure(embeddings, zero_shot.TASK).galleries
    rows = [row_of(gallery, number) for number in range(len(gallery.examples))]
    assert len({*rows}) == zero_shot.EXAMPLES
    images, classes, labels = embeddings.classification() or ()
    for row, example in zip(rows, gallery.examples, strict=True):
        scores = dict(enumerate((images[row] @ classes.T).tolist()))
        best = sorted(scores, key=lambda i: -scores[i])[:NEAREST]
        assert example.query.text == f"class {labels[row]}"
        assert [item.text for item, _, _ in example.nearest] == [f"class {i}" for i in best]
        assert [right for *_, right in example.nearest] == [i == labels[row] for i in best]
        assert [cosine for _, cosine, _ in example.nearest] == pytest.approx(
            [scores[i] for i in best]
        )


def test_captions_and_images_are_queries_in_turn(embeddings: Embeddings) -> None:
    of_images, of_captions = measure(embeddings, retrieval.TASK).galleries
    assert embeddings.text_features is not None
    assert embeddings.text_owners is not None
    similarity = embeddings.image_features @ embeddings.text_features.T
    owners = embeddings.text_owners.tolist()
    for number, example in enumerate(of_images.examples):
        row = row_of(of_images, number)
        best = similarity[row].argsort(descending=True)[:NEAREST].tolist()
        assert [item.text for item, _, _ in example.nearest] == [f"caption {i}" for i in best]
        assert [right for *_, right in example.nearest] == [owners[i] == row for i in best]
        assert owners[int(example.query.text.split()[1])] == row  # one of its own captions
    for example in of_captions.examples:
        caption = int(example.query.text.split()[1])
        best = similarity[:, caption].argsort(descending=True)[:NEAREST].tolist()
        shown = [item.load().getpixel((0, 0))[0] for item, _, _ in example.nearest]  # type: ignore
        assert shown == best
        assert [right for *_, right in example.nearest] == [i == owners[caption] for i in best]
    assert len(of_images.examples) == len(of_captions.examples) == retrieval.EXAMPLES


@pytest.mark.parametrize("task", [zero_shot.TASK, retrieval.TASK])
def test_galleries_follow_the_seed_and_change_no_number(task: str, embeddings: Embeddings) -> None:
    first, again, other = (measure(embeddings, task, seed=seed) for seed in (0, 0, 1))
    plain = measure(embeddings, task, details=False)
    assert not plain.galleries
    assert first.values == other.values == plain.values
    queries = [
        [example.query.text for gallery in result.galleries for example in gallery.examples]
        for result in (first, again, other)
    ]
    assert queries[0] == queries[1] != queries[2]


@pytest.mark.parametrize("field", ["load_image", "texts"])
def test_embeddings_from_files_have_no_galleries(field: str, embeddings: Embeddings) -> None:
    object.__setattr__(embeddings, field, None)
    assert not measure(embeddings, retrieval.TASK).galleries
    assert bool(measure(embeddings, zero_shot.TASK).galleries) == (field == "texts")
