"""The folder in which the documentation's blocks are run, and what makes them small.

Every name that a block reads exists in `write_world`'s folder. `DEFAULTS` stand behind a command's name, so that the
block's own options replace them; `LIMITS` stand at its end and replace the block's; what is written goes elsewhere.
"""

from __future__ import annotations

import tarfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
from captioned import write_captioned
from PIL import Image
from released import small, write
from torchvision.datasets import CIFAR10

from fqgan.base import schema
from fqgan.cli import main
from fqgan.config import ClassifierRunConfig, FactorConfig, TokenizerRunConfig
from fqgan.config.presets import child, get_generator

NETWORK = "efficientnet-lite0:stage3@32"  # 40 dimensions: a Frechet distance in 1,280 takes seconds on one core
TRAIN = {
    "batch": 2,
    "epochs": 0.0,
    "steps": 1,
    "precision": "float32",
    "device": "cpu",
    "image_every": 0,
    "validate_every": 0,
    "checkpoint_every": 1,
}
TAUGHT = FactorConfig("semantic", 1024, 4, 1, teacher="efficientnet-lite0@32")
TOKENIZER = child(
    TokenizerRunConfig(),
    model={
        "image_size": 64,
        "stem": 4,
        "channels": 32,
        "channel_multipliers": (1, 2),
        "res_blocks": 1,
        "attention": False,
        "z_channels": 32,
        "adapter_head_dim": 32,
        "feature_head_width": 32,
        "feature_head_depth": 1,
        "factors": (FactorConfig("visual", 1024, 4, 1), TAUGHT),
    },
    data={"workers": 0},
    loss={"perceptual": "none"},
    discriminator={"weight": 0.0, "channels": 8, "layers": 1},
    train=TRAIN,
)
GENERATOR = child(
    get_generator("far-tiny"),
    model={"width": 32, "depth": 1, "heads": 1, "mlp_multiple": 32, "head_depth": 1, "dropout": 0.0},
    optimizer={"schedule": "constant"},
    sampling={"top_k": (4,)},
    train={**TRAIN, "sample_images": 2},
)
# what the released layouts can express
RELEASED = replace(
    TOKENIZER.model,
    image_size=32,
    stem=1,
    attention=True,
    z_channels=64,
    adapter_head_dim=64,
    feature_head_width=16,
    feature_head_depth=3,
    factors=(FactorConfig("visual", 64, 4, 1), FactorConfig("semantic", 64, 4, 1, "unknown", 16)),
)
RELEASED_FAR = replace(
    GENERATOR.model,
    codebook_sizes=(1024, 1024),
    grid=(8, 8),
    num_classes=10,
    width=64,
    mlp_multiple=256,
    head_depth=3,
    legacy=True,
)
BASES = {
    "tokenizer": TOKENIZER,
    "triple": child(
        TOKENIZER,
        model={"factors": (*TOKENIZER.model.factors, FactorConfig("high", 64, 4, 1, "efficientnet-lite0@32"))},
    ),
    "equal": child(
        TOKENIZER,
        model={"factors": (FactorConfig("visual", 32, 4, 1), FactorConfig("semantic", 32, 4, 1))},
        loss={"disentangle_weight": 0.0},
    ),
    "released": replace(
        TOKENIZER, model=replace(RELEASED, factors=(RELEASED.factors[0], replace(TAUGHT, codebook_size=64)))
    ),
    "generator": GENERATOR,
    "released-generator": child(GENERATOR, model={"width": 64, "mlp_multiple": 256, "head_depth": 3}),
}
BASES["classifier"] = child(ClassifierRunConfig(), model={"image_size": 32, "channels": 8, "stages": 2}, train=TRAIN)

_RUN = "--train.steps 1 --train.epochs 0 --train.batch 2 --train.micro-batch 0 --train.precision float32"
_STUDY = f"{_RUN} --seeds 1 --processes 1 --measure.workers 0 --measure.num 4 --measure.limit 4 --measure.batch 4"
_LOOK = "--workers 0 --limit 6"
_MEASURE = "--workers 0 --limit 4 --kept 0"
_PROJECT = (
    "--{0}train.steps 1 --{0}train.epochs 0 --{0}train.batch 2 --{0}train.micro-batch 0 --{0}train.precision float32"
)

DEFAULTS = {
    "train-tokenizer": "--config base/tokenizer.json",
    "train-tokenizer --init": "--config base/released.json",
    "train-generator": "--config base/generator.json",
    "train-generator --init": "--config base/released-generator.json",
    "train-classifier": "--config base/classifier.json",
    "generate": "--out samples",
    "edit": "--out edited",
    "evaluate tokenizer": f"--perceptual none --features {NETWORK}",
    "evaluate generator": f"--features {NETWORK}",
    "evaluate codes": f"--perceptual none --features {NETWORK}",
    "evaluate samples": f"--features {NETWORK}",
    "evaluate statistics": f"--features {NETWORK}",
    "study ablation": f"--config base/tokenizer.json --measure.features {NETWORK} --only both",
    "study scaling": f"--config base/tokenizer.json --measure.features {NETWORK} --only k2",
    "study quantizers": f"--config base/equal.json --measure.features {NETWORK} --only fsq-two",
    "study recipe": f"--config base/tokenizer.json --measure.features {NETWORK} --only paper",
    "study generator-recipe": f"--config base/generator.json --measure.features {NETWORK} --only paper",
    "study heads": f"--config base/generator.json --measure.features {NETWORK} --only ar",
    "study curves": f"--config base/generator.json --measure.features {NETWORK} --only triple-base",
    "study tokenizers": f"--perceptual none --features {NETWORK}",
    "study generators": f"--features {NETWORK}",
    "study learnability": f"--features {NETWORK}",
    "study understanding": "--only discrete-0",
}
"""Command, with its preset or --init where this decides -> options that a line gets if it lacks them."""

LIMITS = {
    "train-tokenizer": f"{_RUN} --data.workers 0",
    "train-generator": _RUN,
    "train-classifier": f"{_RUN} --data.workers 0",
    "reconstruct": "--workers 0",
    "extract": "--workers 0",
    "generate": "--num 2 --batch 2",
    "edit": "--num 1",
    "demo": "--num 1",
    "data info": "--workers 0",
    "data pack": "--workers 0",
    "evaluate tokenizer": _MEASURE,
    "evaluate generator": f"{_MEASURE} --num 4",
    "evaluate likelihood": "--workers 0 --images 2",
    "evaluate codes": _MEASURE,
    "evaluate samples": _MEASURE,
    "evaluate statistics": _MEASURE,
    "study ablation": f"{_STUDY} --data.workers 0",
    "study scaling": f"{_STUDY} --data.workers 0",
    "study quantizers": f"{_STUDY} --data.workers 0",
    "study recipe": f"{_STUDY} --data.workers 0",
    "study generator-recipe": _STUDY,
    "study heads": _STUDY,
    "study curves": _STUDY,
    "study disentangle": _LOOK,
    "study tsne": f"{_LOOK} --perplexity 2 --neighbours 1",
    "study probe": "--workers 0 --limit 5 --test-limit 5 --points mean",
    "study views": f"{_LOOK} --shown 2",
    "study tokenizers": _MEASURE,
    "study generators": f"{_MEASURE} --num 4",
    "study learnability": "--workers 0 --limit 4 --num 4 --steps 1 --train-batch 2 --widths 64 --scales 2",
    "study understanding": "--workers 0 --train.device cpu --seeds 1 --network-size 32 --beams 1 --tokens 4 "
    f"{_PROJECT.format('')} {_PROJECT.format('language.')}",
    "convert": "",
    "evaluate compare": "",
}
"""Command -> options that stand at its end."""

NOT_RUN = {
    "make ": "continuous integration runs both",
    "pip install": "needs a package index",
    "fqgan quickstart": "trains for minutes; `make quickstart` is a part of continuous integration",
    "fqgan doctor": "takes ten seconds, and the CUDA of the example a GPU; tests/test_doctor.py",
    "fqgan plan": "follows real steps for most of a minute; tests/test_plan.py does it with small models",
    "fqgan serve": "runs until it is stopped; below, curl and OpenAI's client speak to the same server in this process",
    "serve run": "needs Ray; tests/test_serve_ray.py",
    "docker": "needs Docker",
    "scontrol": "needs Slurm",
    "s3://": "needs an object store; tests/test_data_remote.py has one",
    "hf:": "needs the hub; tests/test_hub.py has one on this machine",
    "openssl": "makes a token for a server",
    "train20k.parquet": "a part of CIFAR-10 that one page alone speaks of",
    "train10k.parquet": "half of that part",
    "stores/redrawn": "a chain of commands; tests/test_redrawn.py and tests/test_posttraining.py run it",
    "runs/post": "the same",
    "--lm microsoft/phi-2": "needs the weights of Phi-2; tests/test_understanding.py has a small Phi",
    "--lm /models/Phi-3-mini": "needs the weights of Phi-3-mini; as above",
}
"""What a line of a shell block holds -> why it is not run."""

LEFT_OUT = {
    "push_to_hub(": "needs the hub; tests/test_hub.py has one on this machine",
    '"hf:org/name"': "the same",
    "study_understanding(settings)": "trains for long; the command calls the same function",
    "result.": "the same",
}
"""What a line of a Python block holds -> why it is left out."""

REPLACED = {
    'fqgan.evaluate("runs/first", ': f'fqgan.evaluate("runs/first", features="{NETWORK}", workers=0, kept=0, ',
    "num=100": "num=2",
}
"""What Python blocks hold -> what takes less time."""

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Cifar(CIFAR10):
    """Twenty made-up pictures under CIFAR-10's name."""

    def __init__(self, root: Path, train: bool = True, download: bool = False) -> None:
        self.classes, self.targets = list(CLASSES), list(range(10)) * 2
        self.data = np.random.default_rng(int(train)).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)


def draw_picture(path: Path, seed: int, width: int = 72, height: int = 64) -> None:
    """A picture with coarse coloured spots."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spots = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC).save(path)


def run(line: str) -> None:
    """A command that prepares the folder."""
    assert main(line.split()) == 0, line


def link(there: str, *names: str) -> None:
    """Other names of a file or folder."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to(Path(there).absolute())


def write_world(mine: str) -> None:
    """Fill the current folder; `mine` is the text of mine.py."""
    Path("base").mkdir()
    for name, config in BASES.items():
        schema.save(config, Path(f"base/{name}.json"))
    _write_pictures()
    tokenizer = "train-tokenizer dual-ds16 --data.source imagenet --run"
    run(f"{tokenizer} runs/first --config base/tokenizer.json")
    run(f"{tokenizer} runs/triple --config base/triple.json")
    run("train-classifier resnet-32 --config base/classifier.json --data.source imagenet --run runs/classifier")
    run("extract runs/first --data imagenet --workers 0 --out stores/photos")
    run("extract runs/triple --data imagenet --workers 0 --out codes/triple")
    far = "train-generator far-tiny --config base/generator.json --data"
    run(f"{far} stores/photos --run runs/far")
    run("reconstruct runs/first photo.jpg --whole --workers 0 --out reconstructions")
    run("generate runs/far --num 10 --npz --out samples/all")
    run(f"evaluate generator runs/far --data imagenet --num 4 --features {NETWORK} --kept 0 --workers 0")
    link("runs/first", *(f"runs/{name}" for name in ("dual", "mine", "large", "dual-ds16", "quickstart/tokenizer")))
    link("runs/far", *(f"runs/{name}" for name in ("other", "far-base", "far-large", "flat", "quickstart/generator")))
    link("runs/far", "runs/a", "runs/b", "runs/mine-far")
    link("runs/classifier", "runs/classifier-6", "runs/classifier-64")
    link(
        "runs/first",
        *(f"runs/recipe-64/rows/{name}/seed-0" for name in ("paper", "next")),
        "runs/recipe/rows/next/seed-1",
    )
    link("stores/photos", "stores/imagenet", "stores/imagenet-val", "stores/held-out", "stores/dual", "stores/flat")
    link("stores/photos", "stores/mine", "codes/dual", "codes/dual-test")
    link("codes/triple", "codes/triple-test", "stores/triple")
    link("stores/photos", *(f"stores/{name}-{seed}" for name in ("paper", "next") for seed in range(3)))
    link("stores/photos", "stores/64-paper", "stores/64-next")
    link("samples/all/samples.npz", "samples.npz", "VIRTUAL_imagenet256_labeled.npz")
    for name in ("vqgan-2k", "factorized", "disentangled", "represented", "both", "represented-0.02"):
        for seed in range(3):
            link(
                "runs/first", f"runs/ablation/rows/{name}/seed-{seed}", f"runs/quantizers-half/rows/{name}/seed-{seed}"
            )
    for name in ("dual-base", "dual-large", "triple-base", "triple-large"):
        link("runs/far", f"runs/curves/rows/{name}/seed-0")
    _write_released()
    np.savez("codes.npz", codes=np.full((1, 2, 8, 8), -1))
    link("codes.npz", "given.npz")
    Path("mine.py").write_text(mine)
    run("extract py:mine.py:tokenizer --data imagenet --size 64 --workers 0 --out stores/grey")
    run("extract split:256:runs/large --data imagenet --workers 0 --out stores/large")
    run(f"{far} stores/grey --tokenizer py:mine.py:tokenizer --run runs/grey")
    Path("mine.json").write_text('{"rows": [{"name": "mine", "parent": "both", "label": "m", "changes": {}}]}')


def _write_pictures() -> None:
    for i, label in enumerate(CLASSES):
        for split, count in (("train", 2), ("val", 2)):
            for j in range(count):
                draw_picture(Path("imagenet", split, label, f"{split}{j}.png"), 10 * i + j)
        draw_picture(Path("pictures", label, f"{i}.jpg"), i)
        draw_picture(Path("holiday-pictures", f"{i}.jpg"), i)
    link("holiday-pictures", "holiday")
    for i, name in enumerate(
        ("picture.jpg", "other.jpg", "cat.jpg", "dog.jpg", "photo.jpg", "map.tif", "pictures/a.jpg")
    ):
        draw_picture(Path(name), 100 + i)
    for split in ("train", "validation"):
        run(f"data pack imagenet --split {split} --size 64 --workers 0 --out imagenet-256")
    link("imagenet-256", "cifar10", "imagenette-64")
    link("imagenet", "imagenette")
    write_captioned(Path("flickr8k"), train=8, test=4)
    Path("tars").mkdir()
    with tarfile.open("tars/train-0000.tar", "w") as tar:
        for i in range(4):
            tar.add(f"holiday-pictures/{i}.jpg", f"{i}.jpg")
    link("tars/train-0000.tar", "tars/train-0001.tar")


def _write_released() -> None:
    """Files of the layouts and names of released models, and exports of them."""
    plain = replace(RELEASED, factors=(FactorConfig("visual", 64, 4, 0),))
    llamagen = replace(RELEASED_FAR, codebook_sizes=(64,), num_classes=1000, head="linear", aggregation=False)
    released = {"FQGAN_dual_ds16": RELEASED, "vq_ds16_c2i": plain, "FAR_B": RELEASED_FAR, "c2i_L_384": llamagen}
    for name, config in released.items():
        write(Path(f"{name}.pt"), small(config), args=Namespace(image_size=64, downsample_size=8))
    link("FQGAN_dual_ds16.pt", "FQGAN_triple_ds16.pt")
    run("convert FQGAN_dual_ds16.pt exported/dual")
    run("convert c2i_L_384.pt exported/llamagen --tokenizer vq_ds16_c2i.pt")
