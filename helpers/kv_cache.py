"""Keys and values that decoding keeps, so that a new token needs only its own.

Shape comments name the sizes: L blocks, B rows, H heads, T new tokens, S tokens held, d head width.
"""

import torch
from torch import Tensor


class KVCache:
    """The keys and values of all tokens read so far, which no later token changes.

    Pass it to `Decoder.forward`, which reads the new tokens and appends their keys and values.

    Args:
        config: the model's `ModelConfig`.
        batch_size: rows.
        capacity: tokens a row that memory is set aside for at once; None: the model's context.
        device, dtype: those of the model.
    """

    def __init__(
        self,
        config,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        capacity = config.context_length if capacity is None else capacity
        sizes = batch_size, config.num_heads, capacity, config.d_model // config.num_heads
        self.keys = torch.empty(
            config.num_layers, *sizes, device=device, dtype=dtype
        )  # (L, B, H, capacity, d)
        self.values = torch.empty_like(self.keys)  # (L, B, H, capacity, d)
        # Tokens that every layer holds: the last layer counts them. Fewer: the rest is forgotten.
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes set aside: 2 · L · B · H · capacity · d · bytes per number."""
        return self.keys.nbytes + self.values.nbytes

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add T new keys and values, and return all that the layer now holds.

        Args:
            layer: counted from 0.
            keys, values: (B, H, T, d) each.

        Returns:
            keys and values, (B, H, S, d) each.

        Raises:
            ValueError: if they do not fit the cache, or if it is full.
        """
        _, B, H, capacity, d = self.keys.shape
        start, T = self.length, keys.shape[-2]
        end = start + T
        if not (keys.shape == values.shape == (B, H, T, d) and end <= capacity):
            raise ValueError(
                f"keys {tuple(keys.shape)} and values {tuple(values.shape)} do not fit a cache of "
                f"{B} rows, {H} heads of width {d} and {capacity} tokens that holds {start}: "
                "build it with KVCache(model.config, batch_size, capacity)"
            )
        self.keys[layer, :, :, start:end] = keys
        self.values[layer, :, :, start:end] = values
        if layer == len(self.keys) - 1:  # else a pass that is interrupted would count
            self.length = end
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was. Rows may repeat; there may be fewer or more of them.

        Beams use it, and batches from which finished rows are dropped.
        """
        if len(rows) != self.keys.shape[1]:
            self.keys = self.keys.index_select(1, rows)  # (L, len(rows), H, capacity, d)
            self.values = self.values.index_select(1, rows)  # (L, len(rows), H, capacity, d)
            return
        # The other rows stay where they are.
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]  # (moved,)
        S = self.length
        for held in (self.keys, self.values):
            held[:, moved, :, :S] = held[:, rows[moved], :, :S]
