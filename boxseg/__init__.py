"""Instance segmentation that learns from boxes and runs on a robot.

This package is the network that ships. Training (`boxseg.train`), export (`boxseg.export`) and
the torch-free runtime (`boxseg.runtime`) stand beside it and are imported on their own.
"""

__version__ = "0.1.0"
