"""Export of trained models to other formats, and the engines that run exported graphs."""
