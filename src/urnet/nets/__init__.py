"""The networks: one file an architecture, one registry of enhancers, timm for the classifiers."""

# Importing an architecture registers it.
from urnet.nets import dynamic, fusion, identity, plain, resunet, rsgunet, unet, unetpp, urnet  # noqa: F401
from urnet.nets.classifiers import cam_layer, create_classifier, list_classifiers, normalisation
from urnet.nets.enhancer import Enhancer
from urnet.nets.fixed import list_fixed
from urnet.nets.joint import JointModel, build_joint
from urnet.nets.registry import create_enhancer, list_enhancers, register_enhancer
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
