"""Parts shared by the pages of the web application."""
