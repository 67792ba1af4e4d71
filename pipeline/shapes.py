"""The legend of the suffix letters that name a tensor's dimensions, as in `acts_BTD` or `W_E_DF`.

| letter | dimension |
|---|---|
| B | batch: tokens of a 1-D batch, contexts of a 2-D one |
| T | position in a context |
| D | width of a hook point (d_in or d_out, d_model where they are equal) |
| F | feature (d_sae) |
| K | kept features of a token |
| L | layer or hook point |
| H | attention head |

Tensors that are parameters keep the field's names (W_E, b_E, W_D, b_D) and their shapes are in their class's docstring.
A leading `...` in a docstring is any number of token dimensions: [B] or [B, T].
"""

from __future__ import annotations
