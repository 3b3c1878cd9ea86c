"""Tables 1 and 2 of the paper, and which of their rows are of the same architecture as a model."""

from __future__ import annotations

from fqgan.config import ForeignConfig, GeneratorConfig, TokenizerConfig
from fqgan.models.released.layouts import EUCLIDEAN
from fqgan.tokenizer.protocol import Layout

# Table 1: model, downsampling, codes, dimension of a code, rFID, PSNR
TABLE_1 = [
    *(("VQGAN", "16", "16384", "256", "4.98", "–"), ("SD-VQGAN", "16", "16384", "4", "5.15", "–")),
    *(("RQ-VAE", "16", "16384", "256", "3.20", "–"), ("LlamaGen", "16", "16384", "8", "2.19", "20.79")),
    *(("Titok-B", "–", "4096", "12", "1.70", "–"), ("VQGAN-LC", "16", "100000", "8", "2.62", "23.80")),
    *(("VQ-KD", "16", "8192", "32", "3.41", "–"), ("VILA-U", "16", "16384", "256", "1.80", "–")),
    ("Open-MAGVIT2", "16", "262144", "1", "1.17", "21.90"),
    *(
        ("FQGAN-Dual", "16", "2 x 16384", "8", "0.94", "22.02"),
        ("FQGAN-Triple", "16", "3 x 16384", "8", "0.76", "22.73"),
    ),
    *(("SD-VAE ‡", "8", "–", "4", "0.74", "25.68"), ("SDXL-VAE ‡", "8", "–", "4", "0.68", "26.04")),
    *(("ViT-VQGAN", "8", "8192", "32", "1.28", "–"), ("VQGAN *", "8", "16384", "4", "1.19", "23.38")),
    *(("SD-VQGAN *", "8", "16384", "4", "1.14", "–"), ("OmniTokenizer", "8", "8192", "8", "1.11", "–")),
    *(("LlamaGen", "8", "16384", "8", "0.59", "25.45"), ("Open-MAGVIT2", "8", "262144", "1", "0.34", "26.19")),
    *(("FQGAN-Dual", "8", "2 x 16384", "8", "0.32", "26.27"), ("FQGAN-Triple", "8", "3 x 16384", "8", "0.24", "27.58")),
]
# Table 2: model, parameters, FID, IS, precision, recall
TABLE_2 = [
    *(("ADM", "554M", "10.94", "101.0", "0.69", "0.63"), ("CDM", "–", "4.88", "158.7", "–", "–")),
    *(("LDM-4", "400M", "3.60", "247.7", "–", "–"), ("DiT-XL/2", "675M", "2.27", "278.2", "0.83", "0.57")),
    ("Open-MAGVIT2-B", "343M", "3.08", "258.26", "0.85", "0.51"),
    ("Open-MAGVIT2-L", "804M", "2.51", "271.70", "0.84", "0.54"),
    *(("VQGAN", "227M", "18.65", "80.4", "0.78", "0.26"), ("VQGAN", "1.4B", "15.78", "74.3", "–", "–")),
    *(("VQGAN-re", "1.4B", "5.20", "280.3", "–", "–"), ("ViT-VQGAN", "1.7B", "4.17", "175.1", "–", "–")),
    *(("ViT-VQGAN-re", "1.7B", "3.04", "227.4", "–", "–"), ("RQTran.", "3.8B", "7.55", "134.0", "–", "–")),
    ("RQTran.-re", "3.8B", "3.80", "323.7", "–", "–"),
    *(
        ("LlamaGen-L", "343M", "3.80", "248.28", "0.83", "0.51"),
        ("LlamaGen-XL", "775M", "3.39", "227.08", "0.81", "0.54"),
    ),
    *(("FAR-Base", "415M", "3.38", "248.26", "0.81", "0.54"), ("FAR-Large", "898M", "3.08", "272.52", "0.82", "0.54")),
]
_CODES = 16384  # in each codebook of the tokenizers that are recognised
_CHANNELS = 128  # their base width
# factors, quantizer, downsampling, dimension of a code -> models of Table 1. Its SD-VQGAN at 16x is the released
# vq-f16, whose codes have 8 dimensions, not 4; at 8x the released files of two models look the same
_TOKENIZERS = {
    (1, EUCLIDEAN, 16, 256): ("VQGAN",),
    (1, EUCLIDEAN, 16, 8): ("SD-VQGAN",),
    (1, EUCLIDEAN, 8, 4): ("VQGAN *", "SD-VQGAN *"),
    **{(1, "vq", f, 8): ("LlamaGen",) for f in (8, 16)},
    **{(2, "vq", f, 8): ("FQGAN-Dual",) for f in (8, 16)},
    **{(3, "vq", f, 8): ("FQGAN-Triple",) for f in (8, 16)},
}
# the factor that diffusers scales latents by, which is each model's own
_AUTOENCODERS = {0.18215: "SD-VAE ‡", 0.13025: "SDXL-VAE ‡"}
# factors, width, depth -> models of Table 2
_GENERATORS = {
    (1, 1024, 24): "LlamaGen-L",
    (1, 1280, 36): "LlamaGen-XL",
    (2, 1024, 24): "FAR-Base",
    (2, 1280, 36): "FAR-Large",
}


def rows_of_tokenizer(config: Layout) -> tuple[int, ...]:
    """Numbers of the rows of Table 1 that a tokenizer of this architecture may be; none where it is recognised as
    nothing."""
    names: tuple[str, ...] = ()
    if isinstance(config, ForeignConfig):
        latents = (config.kind, config.downsampling, config.factors[0].code_dim) == ("AutoencoderKL", 8, 4)
        name = _AUTOENCODERS.get(config.facts.get("scaling_factor", 0.0)) if latents else None
        names = (name,) if name else ()
    elif isinstance(config, TokenizerConfig):
        first = config.factors[0]
        as_theirs = config.channels == _CHANNELS and config.stem == 1
        if as_theirs and all((f.codebook_size, f.code_dim) == (_CODES, first.code_dim) for f in config.factors):
            key = len(config.factors), first.quantizer, config.downsampling, first.code_dim
            names = _TOKENIZERS.get(key, ())
    at = str(config.downsampling)
    return tuple(i for i, (name, downsampling, *_) in enumerate(TABLE_1) if name in names and downsampling == at)


def rows_of_generator(config: GeneratorConfig) -> tuple[int, ...]:
    """The same of Table 2, at 256 pixels."""
    theirs = config.grid == (16, 16) and set(config.codebook_sizes) == {_CODES}
    theirs = theirs and config.head == ("ar" if config.aggregation else "linear")
    if not theirs or config.aggregation != (config.num_factors > 1):
        return ()
    wanted = _GENERATORS.get((config.num_factors, config.width, config.depth))
    return tuple(i for i, (name, *_) in enumerate(TABLE_2) if name == wanted)
