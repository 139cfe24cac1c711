"""Load and augment a folder per class with torchvision: ImageFolder, PIL, DataLoader.

    python benchmarks/plain/loader.py FOLDER SIZE CHANNELS EPOCHS [BORDER]

Images are mirrored and rotated by any angle. BORDER is `reflect` (default; pad, rotate, crop) or `black`. The output is
one line of JSON: images, seconds and processor seconds of each epoch.
"""

import json
import math
import sys
import time

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode

BATCH = 32


def main() -> None:
    """Load all images in each epoch."""
    folder, size, channels, epochs = sys.argv[1], *map(int, sys.argv[2:5])
    reflect = sys.argv[5:] != ["black"]
    corner = math.ceil(size * (math.sqrt(2) - 1) / 2)
    steps = [
        transforms.Resize((size, size), InterpolationMode.BICUBIC),
        *([transforms.Grayscale()] if channels == 1 else []),
        transforms.RandomHorizontalFlip(),
        *([transforms.Pad(corner, padding_mode="reflect")] if reflect else []),
        transforms.RandomRotation(180, InterpolationMode.BILINEAR),
        *([transforms.CenterCrop(size)] if reflect else []),
        transforms.ToTensor(),
    ]
    torch.set_num_threads(1)
    loader = DataLoader(ImageFolder(folder, transforms.Compose(steps)), BATCH, shuffle=True)
    result = []
    for _ in range(epochs):
        started, worked = time.perf_counter(), time.process_time()
        images = sum(len(batch) for batch, _ in loader)
        result.append([images, time.perf_counter() - started, time.process_time() - worked])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
