"""Rows of a study, made without training."""

import math

import numpy as np


def make_row(position, seed, accuracy, *, axes=None, epochs=9, fingerprint="f00d", **environment):
    """A row as the study writes it, deterministic in its arguments."""
    noise = np.random.default_rng(seed + 100 * len(position))
    y, x = np.divmod(np.arange(16), 4)
    cosine = np.exp(-0.5 * ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2)) * 2 - 1
    end = 0.5 if accuracy is None or math.isnan(accuracy) else accuracy
    table = {"grid": [4, 4], "rms_start": 0.71, "rms_end": 0.7, "similarity": cosine.round(2).tolist()}
    return {
        "format": 1,
        "hash": f"{position}-{seed}",
        "axes": {"position": position, **(axes or {})},
        "seed": seed,
        "config": {"position": position, "model": {"depth": 6}, "seed_everything": seed, "epochs": epochs},
        "data": {"name": "cifar10", "fingerprint": fingerprint, "train": 45000, "val": 5000, "test": 10000},
        "metrics": {"test/accuracy": accuracy, "test/loss": 1.2, "val/accuracy": accuracy},
        "history": [
            {
                "epoch": e,
                "train/loss": 2.3 / e,
                "val/accuracy": end * (1 - 0.6 * 0.6**e) + 0.004 * float(noise.standard_normal()),
            }
            for e in range(1, epochs + 1)
        ],
        "parameters": 684000,
        "position_parameters": 6144 if position == "learned" else 0,
        "flops": 97000000,
        "images_per_second": 310.2,
        "seconds": 1500.0,
        "peak_memory_mb": 900,
        "position": None if position == "none" else table,
        "environment": {
            "device": "cpu",
            "hardware": "a processor, 1 thread of 2 cores",
            "precision": "32-true",
            "python": "3.11.7",
            "torch": "2.14.1",
            "timm": "1.0.31",
            "lightning": "2.6.6",
            "vitpos": "0.1.0",
            "commit": "abc1234",
            **environment,
        },
        "finished": "2026-01-01T00:00:00+00:00",
    }


# Accuracies in percent by seed. Against learned: none far below, 1-D between, 2-D within a point.
STUDY = {
    "learned": [58.9, 59.3, 58.6, 59.1],
    "none": [53.4, 53.9, 53.2, 53.5],
    "sinusoidal_1d": [56.5, 58.0, 57.9, 56.9],
    "sinusoidal_2d": [58.8, 59.3, 58.7, 59.0],
    "sinusoidal_2d(temperature=100)": [59.8, 60.4, 59.9, 60.2],
    "sinusoidal_2d(scale=0.02)": [53.3, 54.6, 53.9, 53.1],
}
