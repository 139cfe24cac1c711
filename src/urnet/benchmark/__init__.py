"""The paper's tables and figures over anyone's cells: what is trained, how it goes, what is printed."""
