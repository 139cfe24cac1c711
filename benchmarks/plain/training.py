"""Train UR-Net and a classifier with PyTorch alone: ImageFolder, PIL, DataLoader, float32, SGD.

    python benchmarks/plain/training.py FOLDER --width 64 --classifier resnet101 --size 200 --batch 8 --steps 6

FOLDER has a folder of images for each class. The output is one line of JSON: seconds and processor seconds of each
step, from the end of the step before; the losses; the peak memory of the process (on a GPU: of its tensors).
"""

import argparse
import json
import resource
import time
from itertools import islice, pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from urnet.nets.joint import build_joint


def main() -> None:
    """Train for some steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--classifier", default="resnet101")
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-tf32", action="store_true", help="no TF32 in convolutions, which is PyTorch's default")
    parser.add_argument("--order", type=Path, help="JSON: the files in this order, and no augmentation")
    parser.add_argument(
        "--jitter", type=float, default=0.0, help="noise on pixels in [0, 1], for the effect of rounding"
    )
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.no_tf32:
        torch.backends.cudnn.allow_tf32 = False
    print(json.dumps(train(arguments)))


def train(a: argparse.Namespace) -> dict[str, object]:
    """Run the training loop."""
    augmentation = [
        transforms.RandomHorizontalFlip(),
        transforms.RandomVerticalFlip(),
        transforms.RandomRotation(180, transforms.InterpolationMode.BILINEAR),
    ]
    resize = transforms.Resize((a.size, a.size))
    jitter = [transforms.Lambda(lambda x: x + a.jitter * torch.randn_like(x))] if a.jitter else []
    steps = [resize, *([] if a.order else augmentation), transforms.ToTensor(), *jitter]
    dataset = ImageFolder(str(a.folder), transforms.Compose(steps))
    classes = len(dataset.classes)
    if a.order:
        places = {Path(file).relative_to(a.folder).as_posix(): place for place, (file, _) in enumerate(dataset.samples)}
        dataset = Subset(dataset, [places[name] for name in json.loads(a.order.read_text(encoding="utf-8"))])
    loader = DataLoader(
        dataset,
        batch_size=a.batch,
        shuffle=not a.order,
        drop_last=True,
        num_workers=a.workers,
        pin_memory=a.device == "cuda",
        persistent_workers=a.workers > 0,
    )
    torch.manual_seed(a.seed)
    model = build_joint("urnet", a.classifier, classes, 3, enhancer_options={"width": a.width}).to(a.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=a.lr, momentum=0.9)
    losses, ends, worked = [], [], []
    model.train()
    for images, labels in islice(repeat(loader), a.steps):
        images, labels = images.to(a.device, non_blocking=True), labels.to(a.device, non_blocking=True)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        ends.append(time.perf_counter())
        worked.append(time.process_time())
    if a.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds, processor = ([after - before for before, after in pairwise(times)] for times in (ends, worked))
    return {"seconds": seconds, "processor": processor, "losses": losses, "peak_mib": peak / 2**20}


def repeat(loader: DataLoader):
    """Yield the batches of one epoch after the other."""
    while True:
        yield from loader


if __name__ == "__main__":
    main()
