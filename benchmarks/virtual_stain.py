"""Show the output of an enhancer that was trained towards a paired image: input, output and real image of test cells.

    python benchmarks/virtual_stain.py RUN --out gallery.png

RUN is a run that was pre-trained with `pretrain.target=target`. The weights are those at the end of the pre-training,
and the cells are from the test part. The errors of the enhancer and of two trivial outputs are printed.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from urnet.cells.pixels import load_pixels
from urnet.evaluation.figure_style import to_png
from urnet.evaluation.galleries import draw_gallery
from urnet.images.scale import fit_scaling
from urnet.nets import create_enhancer
from urnet.run_folder import Run


def main() -> None:
    """Enhance the test part of one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    run = Run.open(arguments.run)
    model, recipe = run.load_model(), run.recipe()
    enhancer = create_enhancer(recipe.enhancer.name, model.config.channels, **recipe.enhancer.options)
    best = run.checkpoints / "pretrain" / "best.ckpt"
    state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
    enhancer.load_state_dict({name.removeprefix("enhancer."): tensor for name, tensor in state.items()})
    enhancer.eval()

    def images(part: str, column: str) -> np.ndarray:
        return load_pixels(run.cells().part(part), model.config.size, model.config.channels, column=column).images

    trained, real = images("train", "target"), images("test", "target")
    scaling = fit_scaling(trained, str(trained.dtype))
    raw, real = model.config.scaling.apply(images("test", "path")), scaling.apply(real)
    with torch.inference_mode():
        enhanced = torch.cat([enhancer(batch) for batch in torch.from_numpy(raw).split(32)]).numpy()
    mean = scaling.apply(trained).mean(axis=0)
    cells = run.cells().part("test")
    print(f"mean squared error towards the target on {len(cells)} test cells, values in [0, 1]")
    for name, guess in (
        ("enhanced", enhanced),
        ("mean target of the training part", mean[None]),
        ("the input itself", raw),
    ):
        print(f"  {name}: {np.mean((guess - real) ** 2):.4f}")

    labels = cells.labels
    shown = np.concatenate(
        [np.random.default_rng(0).permutation(np.flatnonzero(labels == k))[:2] for k in range(len(cells.classes))]
    )
    picture = lambda array: [np.moveaxis(image, 0, -1).squeeze() for image in array[shown]]  # noqa: E731
    figure = draw_gallery(
        picture(raw),
        picture(enhanced),
        [cells.classes[k] for k in labels[shown]],
        picture(real),
        target_name="real stain",
    )
    arguments.out.write_bytes(to_png(figure, dpi=150))


if __name__ == "__main__":
    main()
