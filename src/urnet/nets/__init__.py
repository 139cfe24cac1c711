"""The networks: enhancers by name, timm's classifiers, and the joint model."""

# Importing an architecture registers it.
from urnet.nets.baselines import dynamic_filters, feature_fusion, rsgunet  # noqa: F401
from urnet.nets.baselines.traditional import list_traditional
from urnet.nets.classifiers import create_classifier, find_cam_layer, get_normalisation, list_classifiers
from urnet.nets.enhancers import identity, plain, resunet, unet, unetpp, urnet  # noqa: F401
from urnet.nets.enhancers.base import Enhancer
from urnet.nets.enhancers.registry import create_enhancer, list_enhancers, register_enhancer
from urnet.nets.joint import JointModel, build_from_recipe, build_joint
from urnet.nets.size import count_macs, count_parameters

__all__ = [
    "Enhancer",
    "JointModel",
    "build_from_recipe",
    "build_joint",
    "count_macs",
    "count_parameters",
    "create_classifier",
    "create_enhancer",
    "find_cam_layer",
    "get_normalisation",
    "list_classifiers",
    "list_enhancers",
    "list_traditional",
    "register_enhancer",
]
