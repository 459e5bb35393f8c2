"""Networks: functions of ``(input shape, outputs)`` that return a module, their settings keyword-only.

They are built of ``nn.Sequential`` and PyTorch's own layers, residual blocks of `landscope.layers.Residual`, so that
what follows a network layer by layer can follow them. Unless a docstring says otherwise the initialisation is
PyTorch's.
"""

from landscope.models.contexts import called, device_of, evaluating, seeded
from landscope.models.convolutional import cnn, cnn1d, cnn5, vgg
from landscope.models.dense import PairwiseLinear, mlp, pairwise_linear, random_features, residual_mlp
from landscope.models.residual import resnet, resnet18, with_layer
from landscope.models.scaled import ScaledLinear, check_variances, wide_mlp

__all__ = [
    "PairwiseLinear",
    "ScaledLinear",
    "called",
    "check_variances",
    "cnn",
    "cnn1d",
    "cnn5",
    "device_of",
    "evaluating",
    "mlp",
    "pairwise_linear",
    "random_features",
    "residual_mlp",
    "resnet",
    "resnet18",
    "seeded",
    "vgg",
    "wide_mlp",
    "with_layer",
]
