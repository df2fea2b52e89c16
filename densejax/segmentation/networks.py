"""The networks of segmentation by the names that flags give them."""

from typing import Any

import jax.numpy as jnp

from densejax.models import hybrid, unet, unet3d
from densejax.models.planned_unet import PlannedUNet
from densejax.segmentation import planning


def network_of(options: Any, classes: int, *, dtype: Any = jnp.float32) -> Any:
    """Return the module that options name; nothing is computed.

    Args:
      options: ``network``, ``width``, ``norm`` and what else ``recipes.RecipeOptions`` says of an
        architecture, settled.
      classes: c of the logits.
      dtype: of the computation; parameters are float32.
    """
    common: dict[str, Any] = {
        "classes": classes,
        "width": options.width,
        "logit_relu": options.logit_relu,
        "norm": options.norm or "none",
        "dtype": dtype,
    }
    hybrid_options = common | {"upsample_z": options.released_upsampling}
    networks: dict[str, Any] = {
        "planned_unet": lambda: _planned_unet(options, classes, dtype),
        "hybrid": lambda: hybrid.Hybrid2D3D(**hybrid_options),
        "no_multi_loss": lambda: hybrid.Hybrid2D3D(**hybrid_options),
        "no_3x3x3": lambda: hybrid.Hybrid2D3D(**hybrid_options, conv3d_in_2d=False),
        "no_pyramid": lambda: hybrid.Hybrid2D3D(**hybrid_options, pyramid=False),
        "unet": lambda: unet.UNet(**common, padding="SAME"),
        "unet3d_thin": lambda: unet3d.thin(**common),
        "unet3d_thick": lambda: unet3d.thick(**common),
    }
    return networks[str(options.network)]()


def _planned_unet(options: Any, classes: int, dtype: Any) -> PlannedUNet:
    strides = tuple(planning.parse_sizes(text) for text in options.strides or ())
    width = options.width or 1
    return PlannedUNet(
        classes=classes,
        widths=tuple(min(width * 2**i, planning.MOST_WIDTH) for i in range(len(strides))),
        kernels=tuple(planning.parse_sizes(text) for text in options.kernels or ()),
        strides=strides,
        neighbours=options.neighbours or 0,
        block=options.block or "plain",
        norm=options.norm or "none",
        deep_supervision=bool(options.deep_supervision),
        dtype=dtype,
    )
