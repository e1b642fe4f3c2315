"""Data: image sources as uint8 tensors, batched augmentation on the device, and the Lightning data module."""
