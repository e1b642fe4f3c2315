"""Writes the parquet copy of a CIFAR."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encode(image, suffix="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, suffix, **options)
    return buffer.getvalue()


def write_parquet(path, images, labels, column="label"):
    """Writes images, (C, H, W) arrays or bytes as they are, in the layout of the Hugging Face copy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": image if isinstance(image, bytes) else encode(image), "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"img": pa.array(rows, kind), column: pa.array(labels)}), path)
