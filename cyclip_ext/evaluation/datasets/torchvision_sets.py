"""torchvision's classification datasets by name, if their files are on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..._optional import require
from ...data import BadRecord, ImageDataset, MissingData, Sample, SkipReport
from ...data.class_names import read_names, readable
from ...data.dataset import digest
from ...models.tokenizers import import_open_clip

_EUROSAT = {
    "AnnualCrop": "annual crops",
    "HerbaceousVegetation": "herbaceous vegetation",
    "Industrial": "industrial buildings",
    "PermanentCrop": "permanent crops",
    "Residential": "residential buildings",
    "SeaLake": "sea or lake",
}
_TISSUE = ("lymph node tissue", "lymph node tissue with a metastatic tumor")
_DIGITS = tuple("0123456789")

Splits = dict[str, dict[str, Any]]

_TRAIN_FLAG: Splits = {"train": {"train": True}, "test": {"train": False}}
_WHOLE: Splits = {"all": {}}


def _split(**of: str) -> Splits:
    return {name: {"split": value} for name, value in of.items()}


@dataclass(frozen=True)
class _Entry:
    """One of torchvision's dataset classes.

    splits: arguments by name of the split. files: expected below the root. names: of the classes,
    if torchvision has none. rename: turns torchvision's class names into names for prompts.
    """

    kind: str
    splits: Splits
    files: str
    names: Callable[[], tuple[str, ...]] | None = None
    rename: Callable[[str], str] = readable


_SETS: dict[str, _Entry] = {
    "caltech101": _Entry("Caltech101", _WHOLE, "caltech101/101_ObjectCategories"),
    "cifar10": _Entry("CIFAR10", _TRAIN_FLAG, "cifar-10-batches-py"),
    "cifar100": _Entry("CIFAR100", _TRAIN_FLAG, "cifar-100-python"),
    "country211": _Entry(
        "Country211",
        _split(train="train", val="valid", test="test"),
        "country211/{train,valid,test}/<country code>",
    ),
    "dtd": _Entry("DTD", _split(train="train", val="val", test="test"), "dtd/dtd/{images,labels}"),
    "eurosat": _Entry(
        "EuroSAT",
        _WHOLE,
        "eurosat/2750/<class>",
        rename=lambda name: _EUROSAT.get(name, readable(name).lower()),
    ),
    "fashion_mnist": _Entry("FashionMNIST", _TRAIN_FLAG, "FashionMNIST/raw"),
    "fgvc_aircraft": _Entry(
        "FGVCAircraft", _split(train="trainval", test="test"), "fgvc-aircraft-2013b/data"
    ),
    "flowers102": _Entry(
        "Flowers102",
        _split(train="train", val="val", test="test"),
        "flowers-102/{jpg,imagelabels.mat,setid.mat}",
    ),
    "food101": _Entry("Food101", _split(train="train", test="test"), "food-101/{images,meta}"),
    "gtsrb": _Entry(
        "GTSRB",
        _split(train="train", test="test"),
        "gtsrb/{GTSRB/Training,GTSRB/Final_Test/Images,GT-final_test.csv}",
        names=lambda: read_names(Path(__file__).with_name("gtsrb_names.txt")),
    ),
    "imagenet": _Entry(
        "ImageNet",
        _split(train="train", test="val"),
        "{train,val}/<WordNet id> and meta.bin, or ILSVRC2012_devkit_t12.tar.gz and "
        "ILSVRC2012_img_{train,val}.tar",
    ),
    "imagenette": _Entry(
        "Imagenette", _split(train="train", test="val"), "imagenette2/{train,val}/<WordNet id>"
    ),
    "mnist": _Entry("MNIST", _TRAIN_FLAG, "MNIST/raw", names=lambda: _DIGITS),
    "oxford_pets": _Entry(
        "OxfordIIITPet",
        _split(train="trainval", test="test"),
        "oxford-iiit-pet/{images,annotations}",
    ),
    "pcam": _Entry(
        "PCAM",
        _split(train="train", val="val", test="test"),
        "pcam/camelyonpatch_level_2_split_*_{x,y}.h5",
        names=lambda: _TISSUE,
    ),
    "rendered_sst2": _Entry(
        "RenderedSST2",
        _split(train="train", val="val", test="test"),
        "rendered-sst2/{train,valid,test}/{negative,positive}",
    ),
    "stanford_cars": _Entry(
        "StanfordCars",
        _split(train="train", test="test"),
        "stanford_cars/{devkit,cars_train,cars_test,cars_test_annos_withlabels.mat}",
    ),
    "stl10": _Entry("STL10", _split(train="train", test="test"), "stl10_binary"),
    "sun397": _Entry(
        "SUN397", _WHOLE, "SUN397", rename=lambda name: readable(name.replace("/", " "))
    ),
    "svhn": _Entry(
        "SVHN", _split(train="train", test="test"), "{train,test}_32x32.mat", names=lambda: _DIGITS
    ),
}

NAMES = tuple(_SETS)


def open_torchvision(name: str, root: Path, split: str | None = None) -> ImageDataset:
    """Open the dataset `name`, one of NAMES, from the files that torchvision expects below `root`.

    Args:
        name: Name of the dataset.
        root: Folder of the files. Nothing is downloaded; ImageNet's archives are unpacked there by
            torchvision.
        split: "train", "val" or "test" if the dataset has it, and "all" if torchvision does not
            split it. Default: "test" or "all". For ImageNet and Imagenette, "test" is
            torchvision's "val".

    Raises:
        ValueError: If the dataset or the split is unknown.
        MissingData: If files are missing or incomplete. The message names the folder and its
            expected contents.
        ImportError: If torchvision, or a package that it needs for this dataset, cannot be
            imported.
    """
    if name not in _SETS:
        raise ValueError(
            f"torchvision:{name} is unknown; choose one of {', '.join(NAMES)}. Open others "
            "with an ImageDataset of your own"
        )
    entry = _SETS[name]
    split = split or ("test" if "test" in entry.splits else "all")
    if split not in entry.splits:
        raise ValueError(f"split of {name} must be one of {', '.join(entry.splits)}, got {split!r}")
    dataset = _dataset(name, entry, root, split)
    names = entry.names() if entry.names else tuple(map(entry.rename, _class_names(dataset)))
    return _Opened(f"torchvision:{name}[{split}]", name, dataset, names)


class _Opened(ImageDataset):
    """A torchvision dataset of (image, label)."""

    def __init__(self, where: str, name: str, dataset: Any, class_names: tuple[str, ...]) -> None:
        self.where = where
        self.name = name
        self.dataset = dataset
        self.class_names = class_names
        self.labels = _labels(dataset)
        self.skipped = SkipReport()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        where = f"{self.where}[{index}]"
        try:
            image: Image.Image = self.dataset[index][0]
            return Sample(image.convert("RGB"), where)
        except FileNotFoundError:
            raise BadRecord("missing", where) from None
        # Pillow raises these for damaged data; SyntaxError comes from its PNG reader.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BadRecord(f"unreadable ({type(error).__name__})", where) from None

    def fingerprint(self) -> str:
        """See ImageDataset.fingerprint."""
        assert self.labels is not None
        return digest(self.where, self.labels.numpy())


def _dataset(name: str, entry: _Entry, root: Path, split: str) -> Any:
    purpose = f"torchvision's datasets need a torchvision that matches torch {torch.__version__}"
    kind = getattr(require("torchvision", purpose, "eval").datasets, entry.kind)
    try:
        return kind(str(root), **entry.splits[split])
    except ModuleNotFoundError as error:
        raise ImportError(
            f"torchvision:{name} needs the package {error.name}: pip install {error.name}"
        ) from error
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        if isinstance(error.__cause__ or error.__context__, ModuleNotFoundError):
            raise ImportError(f"torchvision:{name}: {error}") from error
        raise MissingData(
            f"torchvision:{name} was not found: torchvision expects {entry.files} in {root} "
            f"({error}). Nothing is downloaded here: copy the files there, or download them with "
            f"torchvision.datasets.{entry.kind}(root, download=True)"
        ) from error


def _labels(dataset: Any) -> Tensor:
    """Return the label of every image, int64 [N], without opening images if possible.

    torchvision stores labels under one of these names, or as pairs of file and label.
    """
    for attribute in ("targets", "labels", "_labels", "y"):
        if hasattr(dataset, attribute):
            return torch.as_tensor(getattr(dataset, attribute)).to(torch.int64)
    if hasattr(dataset, "_samples"):
        return torch.tensor([label for _, label in dataset._samples])
    return torch.tensor([dataset[index][1] for index in range(len(dataset))])


def _class_names(dataset: Any) -> list[str]:
    if len(getattr(dataset, "wnids", ())) == 1000:  # ImageNet: open_clip's names suit prompts
        return list(import_open_clip().IMAGENET_CLASSNAMES)
    names = dataset.classes if hasattr(dataset, "classes") else dataset.categories
    return [name if isinstance(name, str) else name[0] for name in names]  # else: synonyms
