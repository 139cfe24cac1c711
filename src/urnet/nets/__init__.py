"""The networks: enhancers by name, timm's classifiers, and the joint model."""

# Importing an architecture registers it.
from urnet.nets.baselines import dynamic_filters, feature_fusion, rsgunet  # noqa: F401
from urnet.nets.baselines.traditional import list_fixed
from urnet.nets.classifiers import cam_layer, create_classifier, list_classifiers, normalisation
from urnet.nets.enhancers import identity, plain, resunet, unet, unetpp, urnet  # noqa: F401
from urnet.nets.enhancers.base import Enhancer
from urnet.nets.enhancers.registry import create_enhancer, list_enhancers, register_enhancer
from urnet.nets.joint import JointModel, build_joint
from urnet.nets.size import count_macs, count_parameters

__all__ = [
    "Enhancer",
    "JointModel",
    "build_joint",
    "cam_layer",
    "count_macs",
    "count_parameters",
    "create_classifier",
    "create_enhancer",
    "list_classifiers",
    "list_enhancers",
    "list_fixed",
    "normalisation",
    "register_enhancer",
]
