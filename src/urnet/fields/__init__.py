"""From the microscope's fields of view to crops of single cells."""
