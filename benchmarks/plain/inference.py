"""Classify a folder of crops with PyTorch alone: Dataset, DataLoader, eager network, CSV.

    python benchmarks/plain/inference.py MODEL FOLDER OUT.csv

The output is one line of JSON: seconds and processor seconds from the loaded network to the written table.
"""

import csv
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import urnet

BATCH = 16


class Crops(Dataset):
    """PNG files as tensors (C, S, S) in [0, 1]."""

    def __init__(self, files: list[Path], size: int, channels: int):
        self.files, self.size, self.mode = files, size, "L" if channels == 1 else "RGB"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = Image.open(self.files[index]).convert(self.mode)
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).float() / 255
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def main() -> None:
    """Load the crops, classify them and write the table."""
    bundle, folder, out = map(Path, sys.argv[1:])
    model = urnet.load(bundle)
    network, classes = model.joint, model.classes
    started, worked = time.perf_counter(), sum(os.times()[:4])
    files = sorted(folder.rglob("*.png"))
    loader = DataLoader(Crops(files, model.config.size, model.config.channels), batch_size=BATCH, num_workers=2)
    with torch.inference_mode():
        probabilities = torch.cat([network(images).softmax(dim=1) for images in loader])
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "predicted", *classes])
        for path, row in zip(files, probabilities.tolist(), strict=True):
            writer.writerow([path, classes[int(np.argmax(row))], *row])
    seconds, worked = time.perf_counter() - started, sum(os.times()[:4]) - worked
    print(json.dumps({"seconds": seconds, "processor": worked, "images": len(files)}))


if __name__ == "__main__":
    main()
