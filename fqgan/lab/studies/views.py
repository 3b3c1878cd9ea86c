"""What each factor draws alone (Fig. 3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fqgan.base.errors import UserError
from fqgan.base.spread import spread_evenly
from fqgan.data.loader import evaluation_batches
from fqgan.data.transforms import normalize
from fqgan.lab.studies.features import factors, images_of, load_models, size_for, stem_of
from fqgan.lab.studies.figures import write_picture
from fqgan.lab.studies.settings import ViewsOptions
from fqgan.lab.studies.tables import Table
from fqgan.metrics.psnr import psnr
from fqgan.tokenizer.pictures import grid_of, reconstruction_rows, save_picture, to_image


@torch.inference_mode()
def views(options: ViewsOptions) -> list[Path]:
    """Fig. 3: pictures, their reconstructions, and what each factor makes of them alone; and the PSNR of each, and of
    the factors without it. Returns the files, the table first. `UserError` where no picture can be read."""
    models = load_models(options)
    source = images_of(options)
    shown = spread_evenly(len(spread_evenly(len(source), options.limit)), options.shown)
    rows, data, files = [], [], []
    for name, tokenizer in models.items():
        k, names = tokenizer.num_factors, factors(tokenizer)
        kept = [("all factors", None)]
        if k > 1:
            kept += [(f"{names[i]} alone", [i]) for i in range(k)]
        if k > 2:
            kept += [(f"without {names[i]}", [j for j in range(k) if j != i]) for i in range(k)]
        sums, count, drawn = [0.0] * len(kept), 0, []
        device, size = next(tokenizer.parameters()).device, size_for(options, tokenizer)
        batches = {"batch": options.batch, "limit": options.limit, "workers": options.workers}
        for raw, _, _ in evaluation_batches(source, size=size, **batches):
            images = normalize(raw.to(device))
            codes = tokenizer.encode(images)
            for place, (_, keep) in enumerate(kept):
                sums[place] += psnr(images, tokenizer.decode(codes, keep)).clamp(max=100).sum().item()
            here = [i - count for i in shown if count <= i < count + len(images)]
            if here:
                drawn.append([images[here], *reconstruction_rows(tokenizer, codes[here])])
            count += len(images)
        if not drawn:
            raise UserError("not one picture of the data could be read")
        grid = grid_of([torch.cat(rows_) for rows_ in zip(*drawn, strict=True)])
        stem = stem_of("views", name, models)
        save_picture(grid, options.out / f"{stem}.png")
        files += [options.out / f"{stem}.png", write_picture(options.out / f"{stem}.pdf", np.asarray(to_image(grid)))]
        for (label, _), total in zip(kept, sums, strict=True):
            rows.append([name, label, f"{total / count:.2f}"])
            data.append([name, label, total / count, count])
    notes = (
        f"Mean over {data[0][-1]:,} images. A factor that is left out has embeddings of zero. Rows of the pictures: "
        "original, reconstruction, each factor alone."
    )
    table = Table(
        "What each factor draws", ["model", "from", "PSNR (dB)"], rows, ["model", "from", "psnr", "images"], data, notes
    )
    return [*table.write(options.out), *files]
